"""Which kind of step is taken: the network's own, or that of its compiled twin."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferkit.config import Config
from transferkit.errors import UserError
from transferkit.runs.folder import RunFolder
from transferkit.training import compiling, loop
from transferkit.training.compiling import Forward
from transferkit.verbs import finetune as verb

LONG, SHORT = 1000.0, 10.0
"""Calls left in a stage."""


class Clocked(nn.Module):
    """Adds a number, and lets a clock run for each call; the first may take longer."""

    def __init__(self, now: list[float], each_s: float, first_s: float, added: float) -> None:
        super().__init__()
        self.now, self.each_s, self.first_s, self.added = now, each_s, first_s, added
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.now[0] += self.first_s if self.calls == 0 else self.each_s
        self.calls += 1
        return inputs + self.added


def make(
    wanted: str, left: float, compiled_s: float = 5.0, reads: Callable[[], bool] = lambda: False
) -> tuple[Forward, Clocked, Clocked]:
    """Return what steps call, where a step takes ten seconds, and a compiled one compiled_s."""
    now = [0.0]
    eager, twin = Clocked(now, 10.0, 20.0, 1.0), Clocked(now, compiled_s, 50.0, 2.0)
    return Forward(eager, lambda: twin, reads, left, wanted, clock=lambda: now[0]), eager, twin


def called(forward: Forward, times: int) -> list[float]:
    return [float(forward(torch.zeros(1))) for _ in range(times)]


def test_off_compiles_nothing_and_on_everything_but_steps_that_are_read() -> None:
    forward, _, twin = make("off", LONG)
    assert called(forward, 20) == [1.0] * 20
    assert twin.calls == 0
    steps = iter([False, True, False])
    forward, _, _ = make("on", SHORT, reads=lambda: next(steps))
    assert called(forward, 3) == [2.0, 1.0, 2.0]
    assert list(forward.notices()) == []


@pytest.mark.parametrize(
    ("compiled_s", "later", "what"),
    [
        (5.0, 2.0, "compiled in 50 s: steps are 2.00 times as fast"),
        (12.5, 1.0, "compiled in 50 s: steps are 0.80 times as fast; the stage goes on without"),
        (9.9, 1.0, "compiled in 50 s: steps are 1.01 times as fast; the stage goes on without"),
    ],
)
def test_auto_keeps_what_has_shown_to_be_faster(compiled_s: float, later: float, what: str) -> None:
    forward, _, _ = make("auto", LONG, compiled_s)
    first = called(forward, 30)
    assert first == [1.0] * 4 + [2.0] * 4 + [later] * 22
    assert [event.text for event in forward.notices()] == [what]  # type: ignore[attr-defined]
    assert list(forward.notices()) == []


def test_auto_compiles_nothing_in_a_short_stage() -> None:
    forward, _, twin = make("auto", 63.0)  # after four calls 590 s are left
    assert called(forward, 63) == [1.0] * 63
    assert twin.calls == 0
    forward, _, twin = make("auto", 66.0)
    called(forward, 10)
    assert twin.calls > 0


def test_a_compiler_that_fails_ends_a_run_that_wants_it_and_no_other() -> None:
    class Failed(Exception):
        pass

    Failed.__module__ = "torch._inductor.exc"

    def fails(inputs: Tensor) -> Tensor:
        raise Failed("no C++ compiler\nmore")

    forward, _, _ = make("on", LONG)
    forward.compile_ = lambda: fails
    with pytest.raises(UserError, match="does not work here: no C") as told:
        called(forward, 1)
    assert "leave --compile out" in told.value.remedy
    forward, _, _ = make("auto", LONG)
    forward.compile_ = lambda: fails
    assert called(forward, 20) == [1.0] * 20
    assert [event.text for event in forward.notices()] == [  # type: ignore[attr-defined]
        "torch.compile does not work here: no C++ compiler; the stage goes on without"
    ]


def test_an_error_of_the_network_stays_what_it_is() -> None:
    def fails(inputs: Tensor) -> Tensor:
        raise RuntimeError("of the network")

    forward, _, _ = make("on", LONG)
    forward.compile_ = lambda: fails
    with pytest.raises(RuntimeError, match="of the network"):
        called(forward, 1)


def trained(config: Config, out: Path) -> dict[str, Tensor]:
    verb.finetune(config, out, lambda event: None)
    return RunFolder(out).load_model()[1]


def test_a_compiled_run_learns_what_another_one_learns(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []

    def traced(network: nn.Module) -> Any:  # all of torch.compile but the C++ compiler
        calls.append(network)
        return torch.compile(network, backend="aot_eager")

    monkeypatch.setattr(loop, "compiled", traced)
    config = replace(tiny_config, device=replace(tiny_config.device, compile="on"))
    other = trained(config, tmp_path / "compiled")
    assert len(calls) == len(config.stages)
    plain = trained(tiny_config, tmp_path / "plain")
    for name, values in plain.items():
        torch.testing.assert_close(other[name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by torch
def test_a_compiled_network_has_the_same_values_gradients_and_dropout() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    network = nn.Sequential(*layers)
    inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for one in (network, compiling.compiled(network)):
        network.zero_grad()
        torch.manual_seed(5)
        outputs = one(inputs)
        outputs.square().sum().backward()
        found.append((outputs.detach(), network[0].weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
