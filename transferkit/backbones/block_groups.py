"""Which modules of a backbone form its block groups: traced calls in, groups out."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
from timm.models import group_parameters
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockGroup:
    """What is frozen or trained as one.

    modules: dotted paths inside the timm model. A parameter or buffer belongs to the group of its
    longest listed prefix; what no path covers (position embeddings ...) belongs to the stem, the
    first group.
    """

    name: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One module's call during a forward: its only tensor in and its only tensor out, else None."""

    path: str
    source: Tensor | None
    result: Tensor | None


def is_opened(module: nn.Module) -> bool:
    """Whether a module only strings its children together, so that they are looked at instead."""
    plain = type(module).forward in (nn.Sequential.forward, nn.ModuleList.forward)
    return plain and len(list(module.children())) > 0


def units(
    model: nn.Module, opened: frozenset[str] = frozenset(), prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of the smallest parts considered: children, plain containers opened.

    opened: paths of further modules to look into.
    """
    for name, child in model.named_children():
        path = prefix + name
        if is_opened(child) or path in opened:
            yield from units(child, opened, f"{path}.")
        else:
            yield path, child


def called_units(model: nn.Module, forward: Callable[[], object]) -> list[str]:
    """Return the paths of the units that a forward calls, in the order of their first call."""
    called: list[str] = []
    with ExitStack() as hooks:
        for path, module in units(model):
            hook = lambda *_, path=path: called.append(path)  # noqa: E731
            hooks.enter_context(module.register_forward_pre_hook(hook))
        forward()
    return list(dict.fromkeys(called))


def tensors(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    """Yield a module's parameters and buffers."""
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def lies_in(path: str, key: str) -> bool:
    """Whether a dotted path is `key` or lies below it."""
    return path == key or path.startswith(f"{key}.")


def num_parameters(model: nn.Module, path: str) -> int:
    """Return the number of parameter values below a dotted path."""
    return sum(parameter.numel() for parameter in model.get_submodule(path).parameters())


def walk_back(calls: Sequence[Call], output: Any) -> list[Call]:
    """Return the unbroken tail of calls that ends in `output`, first call first.

    Each one's result is, as the same object, the next one's only input. A module that is called
    twice ends the tail, for a boundary before it could not hold it back once only.
    """
    times: dict[str, int] = defaultdict(int)
    for call in calls:
        times[call.path] += 1
    tail: list[Call] = []
    wanted = output
    for call in reversed(calls):
        if call.result is None or call.result is not wanted:
            continue
        if call.source is None or times[call.path] > 1:
            break
        tail.append(call)
        wanted = call.source
    return tail[::-1]


def families(paths: Sequence[str]) -> list[list[str]]:
    """Return the sets of siblings that are named alike: layer1 ... layer4, blocks.0 ... blocks.6.

    The outermost ones come first; a set has at least two members.
    """
    siblings: dict[tuple[int, str], dict[str, None]] = defaultdict(dict)
    for path in paths:
        parts = path.split(".")
        for depth, name in enumerate(parts):
            kind = re.split(r"[\d_]", name)[0]
            parent = ".".join(parts[:depth])
            siblings[depth, f"{parent}.{kind}"][".".join(parts[: depth + 1])] = None
    ordered = sorted(siblings.items(), key=lambda item: item[0][0])
    return [list(members) for _, members in ordered if len(members) > 1]


def group_calls(
    model: nn.Module, calls: Sequence[Call], tail: Sequence[Call]
) -> list[tuple[str, list[str]]]:
    """Merge the tail's calls into block groups; return (name, call paths) from low to high.

    One group per member of the sibling set that holds most parameters. What is called before its
    first member is left to the stem, what comes between two members joins the later one, what
    follows the last joins the last. Groups without parameters join the one below.
    """
    paths = [call.path for call in tail]
    weight = {path: num_parameters(model, path) for path in paths}

    def held(keys: Sequence[str]) -> int:
        return sum(number for path, number in weight.items() if in_any(path, keys))

    keys = max(families(paths) or [paths], key=held)
    groups: list[tuple[str, list[str]]] = []
    waiting: list[str] = []
    for path in paths:
        key = next((key for key in keys if lies_in(path, key)), "")
        if not key:
            waiting.append(path)
        elif groups and groups[-1][0] == key:
            groups[-1][1].extend([*waiting, path])
        else:
            groups.append((key, [*waiting, path] if groups else [path]))
        waiting = [] if key else waiting
    if groups:
        groups[-1][1].extend(waiting)
    for i in range(len(groups) - 1, 0, -1):
        if not any(weight[path] for path in groups[i][1]):
            groups[i - 1][1].extend(groups.pop(i)[1])
    return groups[_first_free(model, calls, [group for _, group in groups], keys) :]


def in_any(path: str, keys: Sequence[str]) -> bool:
    """Whether a path is, or lies below, one of the keys."""
    return any(lies_in(path, key) for key in keys)


def _first_free(
    model: nn.Module, calls: Sequence[Call], groups: list[list[str]], keys: Sequence[str]
) -> int:
    """Return how many of the lowest groups the stem must take.

    Those up to the last one that has calls outside the tail too; else the first one if the stem
    would have no parameters without it.
    """
    grouped = {path for group in groups for path in group}
    outside = [call.path for call in calls if call.path not in grouped]
    for i in range(len(groups), 0, -1):
        own = [key for key in keys if any(lies_in(path, key) for path in groups[i - 1])]
        if any(in_any(path, own) for path in outside):
            return i
    loose = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    return 0 if loose or any(num_parameters(model, path) for path in outside) else 1


def cover(model: nn.Module, groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the shortest lists of module paths that say the same as the groups' unit paths.

    groups: unit paths, group 0 being the stem; units of no group are added to the stem.
    A container whose units all lie in one group stands for them.
    """
    owner = {path: i for i, paths in enumerate(groups) for path in paths}
    lists: list[list[str]] = [[] for _ in groups]

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = prefix + name
            below = {i for unit, i in owner.items() if lies_in(unit, path)}
            direct = any(True for _ in tensors(child, recurse=False))
            if path in owner or len(below) <= 1:
                i = owner.get(path, next(iter(below), 0))
                if below or any(True for _ in tensors(child)):
                    lists[i].append(path)
            else:
                if direct:
                    lists[min(below)].append(path)
                visit(child, f"{path}.")

    visit(model, "")
    return [tuple(paths) for paths in lists]


def matcher_groups(model: nn.Module) -> tuple[BlockGroup, ...]:
    """Return groups for a model without a chain: timm's own layer grouping, or one group.

    Source: `group_matcher(coarse=True)` of the timm model, made for layer-wise learning rates.
    """
    whole = (BlockGroup("stem", cover(model, [[]])[0]),)
    try:
        matcher = getattr(model, "group_matcher")(coarse=True)  # noqa: B009
        layers = group_parameters(model, matcher)
    except (AttributeError, AssertionError, NotImplementedError, TypeError, ValueError):
        return whole
    ordered = (names for _, names in sorted(layers.items()))
    owners = [[n.rpartition(".")[0] for n in names if "." in n] for names in ordered]
    owners = [list(dict.fromkeys(paths)) for paths in owners if paths]
    if len(owners) > 1 and not any(p.count(".") for p in owners[-1]):  # a norm or the like on top
        owners[-2:] = [owners[-2] + owners[-1]]
    if len(owners) < 2:
        return whole
    listed = cover(model, owners)
    names = ["stem", *(_common_name(paths) for paths in listed[1:])]
    groups = [BlockGroup(n, paths) for n, paths in zip(names, listed, strict=True)]
    return tuple(group for group in groups if group.modules)


def _common_name(paths: Sequence[str]) -> str:
    """Return the dotted prefix that several paths share, or the first path when they share none."""
    if not paths:
        return ""
    shared = paths[0].split(".")
    for _, path in pairwise(paths):
        parts = path.split(".")
        while shared and parts[: len(shared)] != shared:
            shared = shared[:-1]
    return ".".join(shared) or paths[0]
