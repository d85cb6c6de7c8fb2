"""Changes to a backbone after its weights are in: activations, pooling, fewer blocks.

All work on a model in place, need no pretrained weights, and do the same each time, so that a run
folder's model is rebuilt by repeating them. None of them touches the remaining tensors.
"""

from collections.abc import Callable

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm.layers.activations as timm_activations
import torch
from torch import Tensor, nn

from transferkit.backbones.block_groups import called_units, is_opened, lies_in, tensors, units
from transferkit.backbones.chain import Skip, find_chain
from transferkit.backbones.layers import make_activation
from transferkit.backbones.structure import Structure
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import usage_error

ACTIVATION_CLASSES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Tanh, nn.Hardswish, nn.Hardtanh),
    *(timm_activations.Swish, timm_activations.Mish, timm_activations.HardSwish),
    *(timm_activations.HardMish, timm_activations.PReLU, timm_activations.GELU),
    *(timm_activations.GELUTanh, timm_activations.QuickGELU, timm_activations.Tanh),
)
"""What stands between layers. Sigmoids are left out: in backbones they are gates (attention)."""
UNFIT = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What a model may raise when its parts do not fit together, or when it lacks an ability."""


def operate(
    name: str, model: nn.Module, structure: Structure, preprocessing: Preprocessing
) -> list[str]:
    """Make all changes of a structure to a timm model in evaluation mode; return what to tell.

    Raises a usage error that names the option for what this model cannot do.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, preprocessing.height_px, preprocessing.width_px)
    images = torch.randn(shape, generator=generator)
    notices = []
    if structure.replace_activations is not None:
        wanted = structure.replace_activations
        notices.append(replace_activations(name, model, wanted, structure.slope))
    if structure.pooling is not None:
        set_pooling(name, model, structure.pooling, images)
    if structure.drop_top_blocks:
        notices.append(drop_top_blocks(name, model, structure.drop_top_blocks, images))
    return notices


def replace_activations(
    name: str, model: nn.Module, wanted: str, slope: float | None = None
) -> str:
    """Put the activation `wanted` in the place of all those between a model's layers.

    Gates of attention modules stay, and activations that a model calls as functions cannot be
    reached. Returns what was replaced.
    """
    replaced: dict[str, int] = {}
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, ACTIVATION_CLASSES) and child_name != "gate":
                setattr(parent, child_name, make_activation(wanted, slope))
                kind = type(child).__name__
                replaced[kind] = replaced.get(kind, 0) + 1
    if not replaced:
        what = f"--replace-activations: {name} has no activation modules"
        raise usage_error(what, "it calls them as functions, or has none", "leave the option out")
    counts = ", ".join(f"{count} {kind}" for kind, count in replaced.items())
    return f"{name}: {wanted} in place of {counts}; pretrained blocks must learn to live with it"


def set_pooling(name: str, model: nn.Module, pooling: str, images: Tensor) -> None:
    """Pool the last maps or tokens another way: "avg", "max", "avgmax", "catavgmax" or "token".

    Raises a usage error where the model cannot, or where nothing changes by it.
    Source: the poolings of timm's `SelectAdaptivePool2d` and of its transformers.
    """
    with torch.no_grad():
        before = model(images)  # (N, D)
        try:
            model.reset_classifier(0, pooling)  # type: ignore[operator]
            after = model(images)
        except UNFIT as error:
            reason = " ".join(str(error).split())[:120]
            what = f"--pooling {pooling}: {name} cannot pool its features that way"
            raise usage_error(what, reason, "choose another, or leave it out") from None
    unchanged = before.shape == after.shape and torch.equal(before, after)
    if unchanged and pooling not in ("avg", "token"):  # those may be what the model does anyway
        raise usage_error(
            f"--pooling {pooling} changes nothing for {name}",
            "it pools its own way, or its last maps are of 1 x 1 at this picture size",
            "leave it out, or use a larger --image-size",
        )


def drop_top_blocks(name: str, model: nn.Module, count: int, images: Tensor) -> str:
    """Remove the `count` top block groups of a model; its features come from below them.

    Layers between the last block and the pooling (a last norm, a wide convolution) stay where they
    fit what is left, and go where they do not. Returns what was dropped.
    Raises a usage error when the model's blocks are no chain or when it has too few of them.
    """
    chain = find_chain(model, images)
    groups = [group.name for group in chain.groups]
    if not chain.verified:
        what = f"--drop-top-blocks: no block of {name} can be taken off"
        raise usage_error(what, chain.reason, "choose another backbone, or leave it out")
    if count >= len(groups):
        raise usage_error(
            f"--drop-top-blocks {count}: {name} has {len(groups) - 1} block groups above its stem",
            f"from the stem to the top: {', '.join(groups)}",
            f"use a number up to {len(groups) - 1}",
        )
    blocks, after = chain.calls_from(len(groups) - count)
    for path in blocks:
        remove(model, path)
    if not runs(lambda: model.forward_features(images)):  # type: ignore[operator]
        for path in after:
            remove(model, path)
    if not runs(lambda: model(images)):
        for path in pooling_layers(model, images):
            put(model, path, nn.Identity())
    if not runs(lambda: model(images)):
        what = f"--drop-top-blocks {count}: the rest of {name} does not fit together"
        raise usage_error(what, "", "use another number")
    return f"{name} without its top blocks {', '.join(groups[-count:])}"


def remove(model: nn.Module, path: str) -> None:
    """Take the module at a dotted path out of its container, or put nothing in its place."""
    parent_path, _, child = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    if is_opened(parent):
        del parent._modules[child]
    else:
        put(model, path, Skip())


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at a dotted path."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def runs(forward: Callable[[], object]) -> bool:
    """Whether a forward goes through."""
    try:
        with torch.no_grad():
            forward()
    except UNFIT:
        return False
    return True


def pooling_layers(model: nn.Module, images: Tensor) -> list[str]:
    """Return the paths of the layers with parameters that `forward_head` may call."""
    used = called_units(model, lambda: runs(lambda: model.forward_features(images)))  # type: ignore[operator]
    idle = [path for path, _ in units(model) if path not in used]
    return [
        path
        for path, module in model.named_modules()
        if any(lies_in(path, unit) for unit in idle) and any(True for _ in tensors(module, False))
    ]
