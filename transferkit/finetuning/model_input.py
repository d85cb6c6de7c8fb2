"""The backbone as it is to see the pictures: framing, input size, normalisation, views."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from transferkit import processes
from transferkit.backbones.chain import Chain, find_chain
from transferkit.backbones.create import Backbone
from transferkit.config import Config
from transferkit.data.framing import framing_notices
from transferkit.data.index import DatasetIndex
from transferkit.data.loader import ViewMaker
from transferkit.events import Event, Notice, Show, Working
from transferkit.finetuning.first_pass import Channels, channel_statistics
from transferkit.finetuning.input_choice import InputChoice, can_choose, choose_input, with_mirror
from transferkit.stopwatch import Stopwatch
from transferkit.training.depth_features import KnownRows
from transferkit.training.kept_solve import preprocessing_of
from transferkit.training.material import Material
from transferkit.training.network import make_backbone, random_images, take_scale

CACHED_VIEWS = 2400
"""Views to compute in all when caching, if the pictures are few; at least 3, at most 8 for each."""


def make_input(
    config: Config, index: DatasetIndex, device: torch.device, watch: Stopwatch, show: Show
) -> tuple[Config, Backbone, Chain, KnownRows | None]:
    """Build the backbone as it is to see the pictures: framing, size and normalisation.

    Returns with it what was chosen, as a configuration, and the features that were read for that.
    """
    backbone, chain = make_chain(config, device, show)
    known = None
    if can_choose(config, index):
        show(Working("choosing framing and input size"))
        choice = chosen_input(config, index, backbone, chain, device, watch)
        show(Notice(choice.text))
        config, known = with_input(config, choice.crop, choice.side_px), choice.known
        config = with_mirror(config, choice.mirror)
        if choice.side_px:
            backbone, chain = make_chain(config, device, show)
        backbone.preprocessing = choice.size
    config = with_mirror(with_input(config, "backbone", None), False)  # where nothing was chosen
    if config.solve.extends:
        backbone.preprocessing = preprocessing_of(config.solve.extends[0])
        return config, backbone, chain, None
    with watch.on("pictures"):
        for event in set_normalization(config, index, backbone):
            show(event)
    for notice in framing_notices(index.sizes, backbone.preprocessing, config.backbone.frames):
        show(notice)
    return config, backbone, chain, known


def make_chain(config: Config, device: torch.device, show: Show) -> tuple[Backbone, Chain]:
    """Build the backbone, and find where it can be cut."""
    backbone = make_backbone(config, config.backbone.pretrained, config.backbone.weights)
    backbone.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    show(Working(f"checking where {backbone.name} can be cut"))
    return backbone, find_chain(backbone.model, random_images(backbone).to(device))


def chosen_input(
    config: Config,
    index: DatasetIndex,
    backbone: Backbone,
    chain: Chain,
    device: torch.device,
    watch: Stopwatch,
) -> InputChoice:
    """Return the choice that the first process makes; what it has read stays in it."""
    given = (config, index, backbone, chain.groups, device, watch)
    if processes.count() == 1:
        return choose_input(*given)
    return processes.from_first(lambda: replace(choose_input(*given), known=None))


def with_input(config: Config, crop: str, side_px: int | None) -> Config:
    """Put a framing and an input size in the place of `auto`; None: the backbone's own size."""
    backbone = config.backbone
    if backbone.crop == "auto":
        backbone = replace(backbone, crop=crop)  # type: ignore[arg-type]
    if backbone.image_size == "auto":
        backbone = replace(backbone, image_size=side_px or "backbone")
    return replace(config, backbone=backbone)


def set_normalization(config: Config, index: DatasetIndex, backbone: Backbone) -> Iterator[Event]:
    """Give the backbone another mean and deviation of its input, if that is wanted."""
    if config.data.normalize == "backbone":
        yield from take_scale(backbone, config.backbone.weights)
        return
    mean: Channels = (0.0, 0.0, 0.0)
    deviation: Channels = (1.0, 1.0, 1.0)
    of = "none: values 0 to 1"
    if config.data.normalize == "dataset":
        mean, deviation = yield from channel_statistics(make_material(config, index, backbone))
        shown = (", ".join(f"{value:.3f}" for value in values) for values in (mean, deviation))
        of = "mean {}, deviation {} of the training pictures".format(*shown)
    backbone.preprocessing = replace(backbone.preprocessing, mean=mean, std=deviation)
    yield Notice(f"input normalisation: {of}")


def make_material(config: Config, index: DatasetIndex, backbone: Backbone) -> Material:
    """Decide how many views each training picture has, and how they are made."""
    augment = config.augment
    maker = ViewMaker(
        backbone.preprocessing,
        augment.level,
        augment.flip,
        config.training.seed,
        index.reading,
    )
    if augment.level == "none":
        return Material(index, maker, num_views=1, live_views=1)
    if augment.views is not None:
        count = augment.views + 1
        return Material(index, maker, num_views=count, live_views=count)
    varied = min(8, max(3, CACHED_VIEWS // len(index.of_split("train")) - 1))
    return Material(index, maker, num_views=varied + 1, live_views=None)
