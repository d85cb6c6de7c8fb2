"""Steps of a compiled network: torch.compile where it is wanted, or where it has shown to pay."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from transferkit.errors import UserError
from transferkit.events import Event, Notice

TRIED = 3
"""Steps of each kind that "auto" compares, by the fastest of them."""
WORTH_TRYING_S = 600.0
"""Seconds of steps left in a stage from which on "auto" compiles.

On two cores compiling took 55 and 149 s, and gained a fifth at best (docs/speed.md).
"""
LEAST_GAIN = 1.03


@dataclass
class Forward:
    """What a step calls to turn inputs (N, ...) into logits (N, K): the network, or its twin.

    eager: the network. compile_: makes its twin, which has the same weights. reads: whether
    the step is one whose activations are read, which a compiled network does not show. left:
    calls until the stage ends. wanted: "on", "off" or "auto", which times calls of both kinds, from
    each to the next one, and takes the faster.
    """

    eager: Callable[[Tensor], Tensor]
    compile_: Callable[[], Callable[[Tensor], Tensor]]
    reads: Callable[[], bool]
    left: float
    wanted: str = "off"
    clock: Callable[[], float] = time.perf_counter
    compiled: Callable[[Tensor], Tensor] | None = None
    times: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    last: tuple[bool, float] | None = None
    said: list[str] = field(default_factory=list)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Run the network. Raises UserError where compiling is wanted and does not work."""
        if self.wanted == "auto":
            self._compare()
        self.left -= 1
        reads = self.reads()
        use = self.wanted == "on" or (self.wanted == "auto" and self._tries())
        self.last = None if reads else (use, self.clock())
        if use and not reads:
            return self._run_compiled(inputs)
        return self.eager(inputs)

    def notices(self) -> Iterator[Event]:
        """Yield once what was decided."""
        yield from map(Notice, self.said)
        self.said.clear()

    def _tries(self) -> bool:
        """Whether the network as it is has been timed, and the stage is long enough to compile."""
        if len(self.times[False]) <= TRIED:
            return False
        return bool(self.times[True]) or self.left * min(self.times[False][1:]) > WORTH_TRYING_S

    def _compare(self) -> None:
        """Note what the call before took; decide when enough of both kinds were timed."""
        if self.last is None:
            return
        kind, since = self.last
        self.times[kind].append(self.clock() - since)
        self.last = None
        if len(self.times[True]) <= TRIED:
            return
        first, *later = self.times[True]  # the first one compiles
        gain = min(self.times[False][1:]) / min(later)
        self.wanted = "on" if gain >= LEAST_GAIN else "off"
        what = f"compiled in {first:.0f} s: steps are {gain:.2f} times as fast"
        self.said.append(what if gain >= LEAST_GAIN else f"{what}; the stage goes on without")

    def _run_compiled(self, inputs: Tensor) -> Tensor:
        if self.compiled is None:
            self.compiled = self.compile_()
        try:
            return self.compiled(inputs)
        except Exception as error:
            if not _is_of_compiler(error):
                raise
            reason = str(error).strip().splitlines()[:1]
            what = f"torch.compile does not work here: {''.join(reason)[:200]}"
            if self.wanted == "on":
                raise UserError(
                    what, "", "it needs a C++ compiler (g++ or clang); or leave --compile out"
                ) from error
            self.said.append(f"{what}; the stage goes on without")
            self.wanted = "off"
            return self.eager(inputs)


def compiled(network: nn.Module) -> nn.Module:
    """Return a network's compiled twin, with the same weights and the same random numbers.

    It is compiled at its first call. What was compiled before, of other stages, is forgotten: of
    one function torch keeps eight versions, and runs the ninth uncompiled.
    """
    torch._dynamo.reset()
    twin: nn.Module = torch.compile(network, options={"fallback_random": True})  # type: ignore[assignment]
    return twin


def _is_of_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
