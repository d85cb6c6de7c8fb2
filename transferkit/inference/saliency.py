"""Saliency maps: Grad-CAM on the last feature maps or tokens.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. For transformers the tokens that enter the last block serve as maps: after
it, the class token has attended to all others, and those have no gradient any more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from transferkit.backbones.head import Classifier
from transferkit.errors import usage_error
from transferkit.inference.members import Member
from transferkit.inference.pipeline import Picture, views_of

STRENGTH = 0.6  # how much of the colour covers the picture where the evidence is strongest
SHOWN_PX = 320  # smaller views are enlarged to about this
FEWEST_PLACES = 4  # of the map
BATCH = 16

Run = Callable[[Classifier, Tensor], tuple[Tensor, Tensor]]
"""(classifier, images) -> (activations as a leaf of the graph, logits (N, K))."""


def last_maps(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the backbone pools, (N, C, H, W) or (N, H, W, C), and the logits of it.

    Raises ValueError for a backbone whose last activations are no maps.
    """
    backbone: Any = classifier.backbone
    with torch.no_grad():
        maps = backbone.forward_features(classifier.normalize(images))
    if maps.ndim != 4:
        raise ValueError("these are tokens")
    leaf = maps.detach().requires_grad_()
    return leaf, classifier.head(backbone.forward_head(leaf))


def last_tokens(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens (N, T, D) that enter the last block, and the logits of them."""
    backbone: Any = classifier.backbone
    return leaf_and_logits(classifier, images, backbone.blocks[-1], is_input=True)


def last_depth_maps(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest maps that a head over several depths reads, and the logits of them.

    What lower depths add to the logits does not depend on these maps.
    Raises IndexError where the head reads no maps.
    """
    depths = getattr(classifier, "depths", ())
    name = [depth.module for depth in depths if depth.kind.startswith("maps")][-1]
    module = classifier.backbone.get_submodule(name)
    return leaf_and_logits(classifier, images, module, is_input=False)


def leaf_and_logits(
    classifier: Classifier, images: Tensor, module: nn.Module, is_input: bool
) -> tuple[Tensor, Tensor]:
    """Return a module's input or output as a leaf of the graph, and the logits computed from it."""
    leaves: list[Tensor] = []

    def cut(_: nn.Module, inputs: tuple[Tensor, ...], output: Any = None) -> Any:
        leaves.append((inputs[0] if is_input else output).detach().requires_grad_())
        torch.set_grad_enabled(True)  # from here on; `no_grad` below ends it
        return (leaves[-1], *inputs[1:]) if is_input else leaves[-1]

    register: Any = module.register_forward_pre_hook if is_input else module.register_forward_hook
    handle = register(cut)
    try:
        with torch.no_grad():
            logits = classifier(images)
    finally:
        handle.remove()
    return leaves[-1], logits


def choose_run(classifier: Classifier, name: str, side_px: tuple[int, int]) -> Run:
    """Return how a classifier's activations are reached, tried on a grey picture.

    name: of the backbone, for the message. side_px: (height, width) of the input.
    Raises a usage error for a model whose last activations have no places.
    """
    example = torch.full((1, 3, *side_px), 128, dtype=torch.uint8)
    for run in (last_maps, last_tokens, last_depth_maps):
        try:
            activations, logits = run(classifier, example)
            placed = to_maps(classifier, activations)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            continue
        with torch.no_grad():
            expected = classifier(example)
        if placed.shape[2] * placed.shape[3] >= FEWEST_PLACES and torch.allclose(
            logits, expected, rtol=1e-3, atol=1e-4
        ):
            return run
    raise usage_error(
        f"--saliency: {name} keeps no map of places to look at",
        "it needs convolutional maps before the pooling, or tokens on a grid, larger than 1 × 1",
        "leave --saliency out, or train another backbone or a larger --image-size",
    )


def to_maps(classifier: Classifier, activations: Tensor) -> Tensor:
    """Return activations as (N, C, H, W), without prefix tokens.

    Raises ValueError where they form no grid.
    """
    backbone: Any = classifier.backbone
    if activations.ndim == 4:
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return activations.permute(0, 3, 1, 2) if last else activations
    if activations.ndim != 3:
        raise ValueError("no places")
    height, width = backbone.patch_embed.grid_size
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    placed = activations[:, prefix:].transpose(1, 2)  # (N, D, H * W)
    if placed.shape[2] != height * width:
        raise ValueError("the tokens are not those of the grid")
    return placed.unflatten(2, (height, width))


def grad_cam(classifier: Classifier, run: Run, images: Tensor, targets: Tensor) -> Tensor:
    """Return maps (N, H, W), 0 or more, of the evidence for a class at each place.

    images: (N, 3, H, W), values 0..255. targets: (N,) classes. Of linear pooled features this is
    the class activation map: the maps weighted by the class's row of weights, where positive.
    """
    classifier.eval()
    activations, logits = run(classifier, images)
    scores = logits.gather(1, targets[:, None]).sum()  # pictures are independent
    (gradients,) = torch.autograd.grad(scores, activations)
    maps, slopes = to_maps(classifier, activations.detach()), to_maps(classifier, gradients)
    weights = slopes.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    return (weights * maps).sum(dim=1).relu()


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (N, h, w) at (N, *size), each with its highest value at 1, or all 0."""
    large = nn.functional.interpolate(
        maps[:, None].float(), size, mode="bilinear", align_corners=False
    )[:, 0]
    return large / large.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def choose_runs(members: Sequence[Member]) -> list[Run]:
    """Return `choose_run` of each member. Raises a usage error if their crops differ."""
    sizes = [m.maker.preprocessing for m in members]
    if len({(p.height_px, p.width_px, p.crop_pct, p.crop_mode) for p in sizes}) > 1:
        raise usage_error(
            "--saliency: these runs see different parts of a picture",
            "their input sizes or crops differ, so their maps do not lie over each other",
            "explain one run at a time",
        )
    return [
        choose_run(m.loaded.classifier, str(m.loaded.description["backbone"]), size_px)
        for m, size_px in zip(members, ((p.height_px, p.width_px) for p in sizes), strict=True)
    ]


def saliency(
    members: Sequence[Member],
    runs: Sequence[Run],
    pictures: Sequence[Picture],
    targets: NDArray[Any],
) -> NDArray[np.float32]:
    """Return the evidence (N, H, W), 0..1, for classes (N,) in the clean views of N pictures.

    The mean over the members. pictures: readable ones only.
    """
    total = []
    for number, (member, run) in enumerate(zip(members, runs, strict=True)):
        images = views_of(pictures, number)[:, 0]  # (N, 3, H, W)
        classes = torch.from_numpy(member.order[targets])
        classifier, size = member.loaded.classifier, (images.shape[2], images.shape[3])
        batches = zip(images.split(BATCH), classes.split(BATCH), strict=True)
        maps = [enlarged(grad_cam(classifier, run, *batch), size) for batch in batches]
        total.append(torch.cat(maps))
    return torch.stack(total).mean(dim=0).numpy()


def overlay(view: NDArray[np.uint8], evidence: NDArray[np.float32]) -> Image.Image:
    """Return the view (3, H, W) beside itself under the evidence (H, W), 0..1, in colours.

    Evidence is covered in yellow to red; the rest is greyscale.
    """
    from matplotlib import colormaps

    plain = view.transpose(1, 2, 0).astype(np.float32)  # (H, W, 3)
    grey = plain.mean(axis=2, keepdims=True).repeat(3, axis=2)
    share = evidence[:, :, None].clip(0, 1)
    colour = 255 * colormaps["YlOrRd"](0.25 + 0.75 * evidence)[:, :, :3]
    kept = grey + (plain - grey) * share  # colour comes back where the evidence is
    covered = kept + (colour - kept) * (STRENGTH * share)
    height, width = evidence.shape
    gap = np.full((height, max(1, width // 40), 3), 255.0)
    both = np.concatenate([plain, gap, covered], axis=1).round().clip(0, 255).astype(np.uint8)
    factor = max(1, round(SHOWN_PX / max(height, width)))
    image = Image.fromarray(both)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
