"""Fold batch norm into the layer before or after it: fewer operations, the same function."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

# exactly these: a subclass may change its weights on the way (weight standardisation)
FOLDED_INTO = {"Conv1d", "Conv2d", "Conv3d", "Conv2dSame", "Linear"}
TOLERANCE = 1e-4
"""Largest change of an output by folding, relative to the largest output; sums in float32."""
Pair = tuple[str, str]
"""Names of a layer and of the batch norm after it, or of a batch norm and of the layer after it."""

PADS = "the convolution after it pads its input"
ALONE = "no linear layer or convolution is right before or after it"
SHARED = "something else uses its input or its output"


@dataclass(frozen=True)
class Folding:
    """What was folded. pairs: see `fold_`. left: name of a batch norm -> why it is not folded."""

    pairs: tuple[Pair, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Say how many of the batch norms are folded, and why not the others."""
        whys = [
            f"{', '.join([n for n, why in self.left.items() if why == reason][:3])}: {reason}"
            for reason in dict.fromkeys(self.left.values())
        ]
        count = f"folded {len(self.pairs)} of {len(self.pairs) + len(self.left)} batch norms"
        return f"{count}; left {'; '.join(whys)}" if whys else count


def fold_batchnorm(network: nn.Module, example: Tensor) -> tuple[nn.Module, Folding]:
    """Return a copy of `network` with batch norms folded, and which.

    A batch norm is folded where its input is the very output of a layer, or its output the very
    input of one that does not pad. The copy is verified on the example; where it differs by more
    than `TOLERANCE`, the pairs are tried one by one.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
    """
    network = network.eval()
    pairs, left = every_pair(network, example)
    folded = copy.deepcopy(network)
    fold_(folded, pairs)
    if not alike(network, folded, example):
        kept: list[Pair] = []
        for pair in pairs:
            trial = copy.deepcopy(network)
            fold_(trial, [*kept, pair])
            if alike(network, trial, example):
                kept, folded = [*kept, pair], trial
        left |= {norm_of(network, pair): SHARED for pair in pairs if pair not in kept}
        pairs = kept
        folded = folded if kept else copy.deepcopy(network)
    return folded.eval(), Folding(tuple(pairs), left)


def alike(network: nn.Module, folded: nn.Module, example: Tensor) -> bool:
    """Whether both compute the same on the example."""
    with torch.inference_mode():
        expected, found = network(example), folded(example)
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    return bool(difference <= TOLERANCE)


def norm_of(network: nn.Module, pair: Pair) -> str:
    """Return the batch norm's name of a pair."""
    return next(name for name in pair if isinstance(network.get_submodule(name), _BatchNorm))


def fold_(network: nn.Module, pairs: Iterable[Pair]) -> None:
    """Fold batch norms in place."""
    for first, second in pairs:
        before: Any = network.get_submodule(first)
        after: Any = network.get_submodule(second)
        if isinstance(before, _BatchNorm):
            network.set_submodule(second, fused_after(before, after))
            network.set_submodule(first, nn.Identity())
        else:
            linear = isinstance(before, nn.Linear)
            fuse: Any = fuse_linear_bn_eval if linear else fuse_conv_bn_eval
            network.set_submodule(first, fuse(before, after))
            network.set_submodule(second, what_remains(after))


@torch.no_grad()
def fused_after(norm: Any, layer: Any) -> nn.Module:
    """Return a layer that does what a batch norm and it do: W (s x + t) + b = (W s) x + (b + W t).

    layer: linear, or a convolution without padding, whose border would need the shift as well.
    """
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    made, weight = copy.deepcopy(layer), layer.weight
    groups = getattr(layer, "groups", 1)  # (out, in / groups, ...): each sees its own channels
    rows = weight.shape[0] // groups
    shape = (weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
    scales, shifts = (
        each.view(groups, 1, -1).expand(groups, rows, -1).reshape(shape) for each in (scale, shift)
    )
    bias = (weight * shifts).flatten(1).sum(1)
    made.weight = nn.Parameter(weight * scales)
    made.bias = nn.Parameter(bias if layer.bias is None else layer.bias + bias)
    return made


def foldable_pairs(network: nn.Module, example: Tensor) -> list[Pair]:
    """Return the (layer, batch norm) where the one's output is the other's input."""
    pairs, _ = every_pair(network, example)
    return [pair for pair in pairs if norm_of(network, pair) == pair[1]]


def every_pair(network: nn.Module, example: Tensor) -> tuple[list[Pair], dict[str, str]]:
    """Return what might be folded, each batch norm once, and why the others cannot be."""
    calls = traced_calls(network, example)
    count = {name: sum(name == other for other, _, _ in calls) for name, _, _ in calls}
    made = {id(output): name for name, _, output in calls}
    found = [(made[id(given)], name) for name, given, _ in calls if id(given) in made]
    found = [pair for pair in found if all(count[name] == 1 for name in pair)]
    norms = [n for n in count if isinstance(network.get_submodule(n), _BatchNorm)]
    pairs = [(a, b) for a, b in found if b in norms and a not in norms]
    left: dict[str, str] = {}
    for norm in norms:
        if any(norm == b for _, b in pairs):
            continue
        module = network.get_submodule(norm)
        after = [b for a, b in found if a == norm and b not in norms]
        if not after or not isinstance(what_remains(module), nn.Identity):
            left[norm] = ALONE if count[norm] == 1 else SHARED
        elif pads(network.get_submodule(after[0])):
            left[norm] = PADS
        else:
            pairs.append((norm, after[0]))
    return pairs, left


def traced_calls(network: nn.Module, example: Tensor) -> Sequence[tuple[str, Tensor, Tensor]]:
    """Run a network; return the calls of its layers and batch norms: name, input and output."""
    calls: list[tuple[str, Tensor, Tensor]] = []  # with tensors, so that no identity comes twice

    def listen(name: str) -> Any:
        return lambda _, inputs, output: calls.append((name, inputs[0], output))

    hooks = [
        module.register_forward_hook(listen(name))
        for name, module in network.named_modules()
        if type(module).__name__ in FOLDED_INTO
        or (isinstance(module, _BatchNorm) and module.track_running_stats)
    ]
    with torch.inference_mode():
        network(example)
    for handle in hooks:
        handle.remove()
    return calls


def pads(layer: Any) -> bool:
    """Whether a layer pads its input."""
    if type(layer).__name__ == "Conv2dSame":
        return any(size > 1 for size in layer.kernel_size)
    return any(getattr(layer, "padding", ()))  # "valid" and "same" are texts: they count as padding


def what_remains(norm: nn.Module) -> nn.Module:
    """Return what a batch norm does beside normalising: timm's have an activation inside."""
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    return nn.Sequential(*rest) if rest else nn.Identity()
