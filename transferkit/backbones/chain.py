"""A backbone as a chain of block groups: found by one traced forward, verified by numbers.

Below a boundary lies the trunk, above it a section of the model's own modules. How the chain is
found: forward hooks on the children (plain containers opened), one `forward_features`, then from
its output backwards as long as a module's result is, as the same tensor object, the next module's
only input. What was walked is the part that can be cut; the rest below is the stem.
"""

import copy
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.block_groups import (
    BlockGroup,
    Call,
    called_units,
    cover,
    group_calls,
    in_any,
    lies_in,
    matcher_groups,
    num_parameters,
    tensors,
    units,
    walk_back,
)

MIN_GROUPS = 3  # with fewer, the largest module of the tail is looked into
MAX_OPENINGS = 3
MAX_STEM_SHARE = 0.5  # of the parameters and of the layers


class NoChain(Exception):
    """Why a model cannot be cut; becomes `Chain.reason`."""


class Skip(nn.Module):
    """Return the first argument; unlike `nn.Identity`, take the further ones some blocks get."""

    def forward(self, activation: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `activation` itself."""
        return activation


class Trunk(nn.Module):
    """Pictures (N, 3, H, W), normalised -> the activation before a block group, or features."""

    def __init__(self, body: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.body = body
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        """Run the backbone up to the boundary."""
        if self.pooled:
            return self.body(images)
        return self.body.forward_features(images)  # type: ignore[operator]


class Section(nn.Module):
    """Modules of a model one after the other, then, if `model` is given, its pooling head."""

    def __init__(
        self,
        parts: Iterable[nn.Module],
        model: nn.Module | None = None,
        head_parts: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.head_parts = nn.ModuleList(head_parts)
        # a bound method, not a submodule: the section must not own the blocks below it
        self._pool = model.forward_head if model is not None else None

    def forward(self, activation: Tensor) -> Tensor:
        """Run the section."""
        for part in self.parts:
            activation = part(activation)
        return activation if self._pool is None else self._pool(activation)  # type: ignore[operator]


@dataclass(frozen=True)
class Chain:
    """Ordered block groups of a backbone, and the cuts between them.

    groups: (G,), from the stem to the top. reason: why there are no cuts; "" when verified.
    max_difference: largest |cut - whole| over all boundaries, relative to the largest |whole|.
    """

    groups: tuple[BlockGroup, ...]
    verified: bool
    reason: str
    max_difference: float
    _model: nn.Module = field(repr=False)
    _calls: tuple[tuple[str, ...], ...] = field(repr=False, default=())  # (G,), the stem's is empty
    _head: tuple[str, ...] = field(repr=False, default=())

    def trunk(self, boundary: int) -> nn.Module:
        """Return a module: images (N, 3, H, W), normalised -> activation before group `boundary`.

        boundary: 1..G; G gives pooled features (N, D). A structural copy in evaluation mode that
        shares the model's tensors and holds none from above the boundary; it needs no hooks. Move
        the model between devices first: that gives the model new buffers.
        Raises ValueError for a boundary outside 1..G, or inside a model without a verified chain.
        """
        self._check(boundary, lowest=1)
        body = share(self._model)
        if boundary == len(self.groups):
            return Trunk(body, pooled=True).eval()
        for path in [p for paths in self._calls[boundary:] for p in paths] + list(self._head):
            parent, _, name = path.rpartition(".")
            setattr(body.get_submodule(parent), name, Skip())
        return Trunk(body, pooled=False).eval()

    def section(self, start: int, stop: int) -> nn.Module:
        """Return a module: activation before group `start` -> activation before group `stop`.

        1 <= start <= stop <= G; stop == G includes the pooling: features (N, D). It holds the
        model's own modules: training it trains the model.
        Raises ValueError for other boundaries, or inside a model without a verified chain.
        """
        self._check(start, lowest=1)
        self._check(stop, lowest=start)
        return self._section(self._model, start, stop)

    def calls_from(self, boundary: int) -> tuple[list[str], list[str]]:
        """Return the paths of the modules called from `boundary` on: (blocks, what follows them).

        What follows is what comes after the top group's own modules: a last norm, a convolution.
        """
        paths = [path for paths in self._calls[boundary:] for path in paths]
        last = max((i for i, p in enumerate(paths) if lies_in(p, self.groups[-1].name)), default=-1)
        return paths[: last + 1], paths[last + 1 :]

    def _section(self, model: nn.Module, start: int, stop: int) -> nn.Module:
        paths = [path for group in self._calls[start:stop] for path in group]
        parts = [model.get_submodule(path) for path in paths]
        if stop < len(self.groups):
            return Section(parts)
        if start == stop:
            return Section([])  # the activation at G is pooled already
        return Section(parts, model, [model.get_submodule(path) for path in self._head])

    def _check(self, boundary: int, lowest: int) -> None:
        top = len(self.groups)
        if not lowest <= boundary <= top:
            raise ValueError(f"boundary {boundary} is not in {lowest}..{top}")
        if boundary < top and not self.verified:
            raise ValueError(
                f"boundary {boundary} is inside a model without a chain: {self.reason}"
            )


def find_chain(model: nn.Module, images: Tensor, tolerance: float = 1e-4) -> Chain:
    """Find a timm model's block groups and verify every boundary between them.

    model: built with num_classes=0; neither its modes nor its tensors are changed.
    images: (N, 3, H, W), normalised, at the size the model will be used with; a few are enough.
    tolerance: relative to the largest |feature|. Trunk and section run the same operations on the
    same numbers, so the difference is usually 0; a kernel chosen by memory layout may round
    otherwise (about 1e-6 in float32, more in depth), while a wrongly cut model differs by order 1.
    Never raises for an unusual model: `verified` is False, `reason` says why, only trunk(G) works.
    """
    try:
        with torch.no_grad():
            return _verify(_find(model, images), images, tolerance)
    except NoChain as error:
        reason = str(error)
    except Exception as error:  # any model of any version of timm: an unforeseen one trains live
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    return Chain(matcher_groups(model), False, reason, float("nan"), model)


def share(model: nn.Module) -> nn.Module:
    """Return a structural copy in evaluation mode whose parameters and buffers are the model's."""
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    # there and back: some attention layers cache biases in evaluation; older timm drops them only
    # on train()
    return twin.train().eval()


def _find(model: nn.Module, images: Tensor) -> Chain:
    """Trace a copy, group the calls that can be cut; the result is not verified yet."""
    twin = share(model)
    opened: frozenset[str] = frozenset()
    best: list[tuple[str, list[str]]] = []
    for _ in range(MAX_OPENINGS):
        calls, output = _trace(twin, images, opened)
        tail = walk_back(calls, output)
        best = max(best, group_calls(twin, calls, tail) if tail else [], key=len)
        if len(best) + 1 >= MIN_GROUPS or not (giant := _giant(twin, tail)):
            break
        opened |= {giant}
    if not best:
        raise NoChain("its blocks are not a chain of modules with one input and one output")
    groups = [paths for _, paths in best]
    head = called_units(twin, lambda: twin.forward_head(output))  # type: ignore[operator]
    head = [path for path in head if not any(in_any(path, paths) for paths in groups)]
    listed = cover(twin, [[], *groups[:-1], groups[-1] + head])
    _refuse_low_cuts_missing(twin, listed[0])
    _refuse_shared(twin, listed)
    names = ["stem", *(name for name, _ in best)]
    return Chain(
        groups=tuple(BlockGroup(n, paths) for n, paths in zip(names, listed, strict=True)),
        verified=True,
        reason="",
        max_difference=0.0,
        _model=model,
        _calls=((), *(tuple(paths) for paths in groups)),
        _head=tuple(head),
    )


def _trace(model: nn.Module, images: Tensor, opened: frozenset[str]) -> tuple[list[Call], Any]:
    """Run `forward_features` once and return the units' calls, in order of their end, and it."""
    calls: list[Call] = []

    def note(path: str, _: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given = [value for value in (*args, *kwargs.values()) if value is not None]
        sole = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None
        calls.append(Call(path, sole, result if isinstance(result, Tensor) else None))

    with ExitStack() as hooks:
        for path, module in units(model, opened):
            hook = partial(note, path)
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        output = model.forward_features(images)  # type: ignore[operator]
    return calls, output


def _giant(model: nn.Module, tail: Sequence[Call]) -> str:
    """Return the path of a call of the tail that holds most of the model's parameters, else ""."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for call in tail:
        has_children = len(list(model.get_submodule(call.path).children())) > 0
        if has_children and num_parameters(model, call.path) > total / 2:
            return call.path
    return ""


def _refuse_low_cuts_missing(model: nn.Module, stem: Sequence[str]) -> None:
    """Raise NoChain when the stem holds most of the model: its blocks could not be cut apart.

    Most is meant of the parameters and of the layers that have them: the first layer of a
    perceptron is large, but one layer.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    parameters = sum(num_parameters(model, path) for path in stem)
    owners = [path for path, m in model.named_modules() if any(True for _ in tensors(m, False))]
    layers = sum(in_any(path, stem) for path in owners)
    if parameters > total * MAX_STEM_SHARE and layers > len(owners) * MAX_STEM_SHARE:
        raise NoChain("most of its blocks are not a chain of modules with one input and one output")


def _refuse_shared(model: nn.Module, listed: Sequence[Sequence[str]]) -> None:
    """Raise NoChain when two groups own the same parameter: one could not be frozen alone."""
    owner: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        group = next((i for i, paths in enumerate(listed) if in_any(name, paths)), 0)
        if owner.setdefault(id(parameter), group) != group:
            raise NoChain(f"its parameter {name} is shared between blocks")


def _verify(chain: Chain, images: Tensor, tolerance: float) -> Chain:
    """Return the chain with its largest difference; raise NoChain at the first wrong boundary."""
    twin = share(chain._model)
    whole = twin(images)  # (N, D)
    scale = whole.abs().max().item()
    if not 0 < scale < float("inf"):
        raise NoChain("its features are not finite numbers")
    twin(-images)  # what a module may keep of a forward must not be of these pictures
    worst = 0.0
    top = len(chain.groups)
    for boundary in range(1, top + 1):
        activation = chain.trunk(boundary)(images)
        untouched = activation.clone()
        features = chain._section(twin, boundary, top)(activation)
        if features.shape != whole.shape:
            raise NoChain(f"cut before {_before(chain, boundary)} it gives another shape")
        difference = (features - whole).abs().max().item() / scale
        if not difference <= tolerance:
            name = _before(chain, boundary)
            raise NoChain(f"cut before {name} its features differ by {difference:.1e}")
        if not torch.equal(activation, untouched):
            raise NoChain(f"the blocks from {_before(chain, boundary)} change their input in place")
        worst = max(worst, difference)
    return Chain(chain.groups, True, "", worst, chain._model, chain._calls, chain._head)


def _before(chain: Chain, boundary: int) -> str:
    return chain.groups[boundary].name if boundary < len(chain.groups) else "the head"
