"""Features of several depths of a backbone, from one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.block_groups import BlockGroup, in_any
from transferkit.backbones.chain import share
from transferkit.backbones.engine import TOLERANCE, Engine, make_engine, torch_runner

FEATURES = "features"
"""The name of the depth that is the backbone's own output: pooled, before a classifier."""
STEPS = 6
"""Depths are about a sixth of the backbone apart, as the steps of unfreezing are."""


@dataclass(frozen=True)
class Depth:
    """What is read at one depth of a backbone.

    name: of the block group. module: dotted path of the module whose result is read; "" is the
    backbone's output. kind: "maps" (N, C, H, W), "maps, channels last" (N, H, W, C), "tokens"
    (N, L, C) or "vector" (N, C). prefix: tokens before those of the patches; the first of them is
    read, too. columns: how many features it gives.
    """

    name: str
    module: str
    kind: str
    prefix: int = 0
    columns: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return asdict(self)

    def read(self, activation: Tensor) -> Tensor:
        """Return features (N, columns): mean and standard deviation over positions, first token.

        The standard deviation divides by the number of positions; with one position it is 0.
        """
        if self.kind == "vector":
            return activation.float()
        positions = activation.float()
        if self.kind == "tokens":
            positions = positions[:, self.prefix :]
        else:
            positions = positions.flatten(*((1, 2) if self.kind.endswith("last") else (2, 3)))
        axis = 2 if self.kind == "maps" else 1
        mean = positions.mean(axis, keepdim=True)
        # the root's slope at 0 would be infinite, and gradients through it not a number
        std = ((positions - mean).square().mean(axis) + 1e-12).sqrt() - 1e-6
        first = [activation[:, 0].float()] if self.prefix else []
        return torch.cat([mean.squeeze(axis), std, *first], dim=1)


def find_depths(
    model: nn.Module, groups: Sequence[BlockGroup], images: Tensor
) -> tuple[Depth, ...]:
    """Return the depths that can be read of a backbone, from the lowest to its output.

    groups: (G,), from the stem to the top. images: (N, 3, H, W), normalised, N >= 2; neither the
    model's modes nor its tensors are changed. One depth at the end of every block group, about
    `STEPS` of them, and the output; of a backbone whose blocks give no activations by position, the
    output alone.
    """
    twin = share(model)
    shapes, output = _shapes(twin, images)
    spaced = list(groups)[:: -max(1, len(groups) // STEPS)][::-1]
    found = [depth for group in spaced if (depth := _depth_of(twin, group, shapes))]
    found.append(Depth(FEATURES, "", "vector", 0, output.shape[1]))
    with torch.no_grad():
        read = read_depths(twin, found, images).split([depth.columns for depth in found], 1)
    # a network of plain vectors may end in what it gives out
    pairs = zip(found[:-1], read, strict=False)
    return (*(depth for depth, values in pairs if not torch.equal(values, read[-1])), found[-1])


def top_depths(depths: Sequence[Depth], number: int) -> tuple[Depth, ...]:
    """Return the highest depths, at least the output; all of them where there are fewer."""
    return tuple(depths[-max(1, number) :])


def num_columns(depths: Sequence[Depth]) -> int:
    """Return how many features depths give together."""
    return sum(depth.columns for depth in depths)


def read_depths(model: nn.Module, depths: Sequence[Depth], images: Tensor) -> Tensor:
    """Return features (N, D) of normalised images, the depths side by side as they are listed.

    Hooks listen for the length of the call only: the model is left as it was, and exporters see
    through them.
    """
    read: dict[str, Tensor] = {}

    def listen(depth: Depth) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, given: Any, result: Tensor) -> None:
            read[depth.module] = depth.read(result)  # at once: a later layer may work in place

        return model.get_submodule(depth.module).register_forward_hook(hook)

    handles = [listen(depth) for depth in depths if depth.module]
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([read[d.module] if d.module else output.float() for d in depths], dim=1)


class DepthTrunk(nn.Module):
    """Normalised images (N, 3, H, W) -> features of several depths (N, D)."""

    def __init__(self, model: nn.Module, depths: Sequence[Depth], mirror: bool = False) -> None:
        super().__init__()
        self.model = model
        self.depths = tuple(depths)
        self.mirror = mirror

    def forward(self, images: Tensor) -> Tensor:
        """Read the depths; with `mirror`, the mean over each picture and its mirror image."""
        return read_mirrored(self.model, self.depths, images, self.mirror)


def read_mirrored(
    model: nn.Module, depths: Sequence[Depth], images: Tensor, mirror: bool
) -> Tensor:
    """Return features as `read_depths`, averaged with those of the mirror image if wanted."""
    features = read_depths(model, depths, images)
    if not mirror:
        return features
    return (features + read_depths(model, depths, images.flip(3))) / 2


def make_depth_engine(
    network: nn.Module,
    depths: Sequence[Depth],
    example: Tensor,
    name: str,
    device: torch.device,
) -> Engine:
    """Prepare a network of images (N, ...) -> features (N, D), see `make_engine`.

    ONNX Runtime must agree with torch at every depth by itself: a wrong one of small numbers would
    not show beside large ones.
    """
    engine = make_engine(network, example, name, device)
    if engine.name == "torch":
        return engine
    run = torch_runner(network, device)
    worst, where = _largest_difference(depths, engine.run(example), run(example))
    if worst <= TOLERANCE:
        return engine
    notice = f"ONNX Runtime differs from torch by {worst:.1e} at {where}; torch runs the network"
    return Engine("torch", run, notice)


def _largest_difference(
    depths: Sequence[Depth], found: Tensor, expected: Tensor
) -> tuple[float, str]:
    """Return the largest difference, relative to its depth's largest feature, and the depth."""
    sizes = [depth.columns for depth in depths]
    parts = zip(depths, found.split(sizes, 1), expected.split(sizes, 1), strict=True)
    return max(
        (float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)), depth.name)
        for depth, a, b in parts
    )


def _shapes(model: nn.Module, images: Tensor) -> tuple[dict[str, torch.Size], Tensor]:
    """Return the shapes of what modules gave, one tensor each, in order of their end; the output.

    Left out is what is of another number than the images: windows of them.
    """
    found: dict[str, torch.Size] = {}

    def listen(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            found.pop(path, None)
            if isinstance(result, Tensor) and len(result) == len(images):
                found[path] = result.shape

        return hook

    handles = [m.register_forward_hook(listen(p)) for p, m in model.named_modules() if p]
    try:
        with torch.no_grad():
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found, output


def _depth_of(model: nn.Module, group: BlockGroup, shapes: dict[str, torch.Size]) -> Depth | None:
    """Return how to read a block group's end: the group itself, else what it called last."""
    inside = [path for path in reversed(shapes) if in_any(path, group.modules)]
    for path in [group.name] * (group.name in shapes) + inside:
        if kind := _kind(model, shapes[path]):
            prefix = _prefix(model, shapes, path) if kind == "tokens" else 0
            width = shapes[path][1 if kind in ("maps", "vector") else -1]
            copies = 1 if kind == "vector" else 3 if prefix else 2
            return Depth(group.name, path, kind, prefix, copies * width)
    return None


def _kind(model: nn.Module, shape: torch.Size) -> str:
    """Return how an activation lies in memory; "" for one that is none."""
    if len(shape) == 4:
        square_first, square_last = shape[1] == shape[2], shape[2] == shape[3]
        last = getattr(model, "output_fmt", "") == "NHWC" or (square_first and not square_last)
        return "maps, channels last" if last else "maps"
    return {3: "tokens", 2: "vector"}.get(len(shape), "")


def _prefix(model: nn.Module, shapes: dict[str, torch.Size], path: str) -> int:
    """Return how many tokens come before the patches', which a patch embedding has not yet."""
    number = int(getattr(model, "num_prefix_tokens", 0))
    last = next(shape for shape in reversed(shapes.values()) if len(shape) == 3)
    return number if shapes[path][1] == last[1] else 0
