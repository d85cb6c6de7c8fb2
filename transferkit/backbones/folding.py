"""Fold batch norm into the layer before it: fewer operations, the same function."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

# exactly these: a subclass may change its weights on the way (weight standardisation)
FOLDED_INTO = {"Conv1d", "Conv2d", "Conv3d", "Conv2dSame", "Linear"}
TOLERANCE = 1e-4
"""Largest change of an output by folding, relative to the largest output; sums in float32."""


def fold_batchnorm(network: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
    """Return a copy of `network` with batch norms folded, and how many; all of them or none.

    A batch norm is folded where its input is the very output of a layer that nothing else runs. The
    copy is verified on the example; where it differs by more than `TOLERANCE`, an unfolded copy is
    returned with 0.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
    """
    network = network.eval()
    folded = copy.deepcopy(network)
    pairs = foldable_pairs(folded, example)
    fold_(folded, pairs)
    with torch.inference_mode():
        expected, found = network(example), folded(example)
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not difference <= TOLERANCE:
        return copy.deepcopy(network), 0
    return folded.eval(), len(pairs)


def fold_(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold batch norms in place. pairs: names of (layer, batch norm), see `foldable_pairs`."""
    for layer_name, norm_name in pairs:
        layer: Any = network.get_submodule(layer_name)
        norm: Any = network.get_submodule(norm_name)
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        network.set_submodule(layer_name, fuse(layer, norm))
        network.set_submodule(norm_name, what_remains(norm))


def foldable_pairs(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return the names of (layer, batch norm) where the one's output is the other's input."""
    made: dict[int, str] = {}
    taken: list[tuple[str, str]] = []
    calls: dict[str, int] = {}
    alive: list[Tensor] = []  # so that no identity is given twice
    hooks = []

    def after_layer(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = name
            alive.append(output)

        return hook

    def before_norm(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if id(inputs[0]) in made:
                taken.append((made[id(inputs[0])], name))

        return hook

    for name, module in network.named_modules():
        if type(module).__name__ in FOLDED_INTO:
            hooks.append(module.register_forward_hook(after_layer(name)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before_norm(name)))
    with torch.inference_mode():
        network(example)
    for handle in hooks:
        handle.remove()
    return [pair for pair in taken if all(calls[name] == 1 for name in pair)]


def what_remains(norm: nn.Module) -> nn.Module:
    """Return what a batch norm does beside normalising: timm's have an activation inside."""
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*rest) if rest else nn.Identity()
