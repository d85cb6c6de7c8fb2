"""From a configuration to a run that can start: pictures, backbone, head, chain, plan, caches."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from transferkit import processes
from transferkit.backbones.chain import Chain, find_chain
from transferkit.backbones.create import Backbone
from transferkit.backbones.recompute import recompute
from transferkit.backbones.synchronized import synchronize_
from transferkit.config import Config
from transferkit.config.network import AUTO
from transferkit.data.addresses import address_of, fetch
from transferkit.data.framing import framing_notices
from transferkit.data.index import DatasetIndex, ScanOptions, Use, depth_notice, scan
from transferkit.data.loader import ViewMaker
from transferkit.data.reading import reading_of
from transferkit.errors import usage_error
from transferkit.events import Event, Notice, Progress, Show, Working
from transferkit.finetuning.backbone_choice import with_backbone
from transferkit.finetuning.first_pass import Channels, channel_statistics, recalibrate_batchnorm
from transferkit.finetuning.input_choice import InputChoice, can_choose, choose_input, with_mirror
from transferkit.finetuning.transfer import transfer_notice
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_handles import cache_settings
from transferkit.training.depth_features import KnownRows
from transferkit.training.fabric import make_fabric
from transferkit.training.kept_solve import extended, preprocessing_of
from transferkit.training.material import Material
from transferkit.training.memory import batch_size_for, refuse_more_classes
from transferkit.training.network import (
    check_network,
    make_backbone,
    make_classifier,
    random_images,
    reinitialize_above,
    start_notices,
    take_scale,
)
from transferkit.training.parts import Parts
from transferkit.training.sharded import refuse_old_torch
from transferkit.training.stage_checks import (
    cycle_notices,
    refuse_lone_pictures,
    refuse_size,
    refuse_unfilled,
)
from transferkit.training.stages import column_finder, make_plan

CACHED_VIEWS = 2400
"""Views to compute in all when caching, if the pictures are few; at least 3, at most 8 for each."""


def prepare(config: Config, show: Show, watch: Stopwatch | None = None) -> Parts:
    """Read the pictures, build the model and its plan; progress and notices go to `show`."""
    if config.backbone.name != AUTO:
        check_network(config)
    watch = watch or Stopwatch()
    refuse_sharing(config)
    index, known = all_pictures(config, show, watch)
    refuse_more_classes(len(index.classes), len(index.of_split("val")))
    if len(index.of_split("train")) < processes.count():
        raise usage_error(f"fewer training pictures than {processes.count()} processes")
    config = with_batch_size(config, index)
    if config.backbone.name == AUTO:
        with watch.on("backbone"):
            config = with_backbone(config, index, make_fabric(config).device, show)
        check_network(config)
    with watch.on("backbone"):
        return build(config, index, show, watch, known)


def read_index(config: Config, show: Show, watch: Stopwatch, use: Use = "train") -> DatasetIndex:
    """Fetch the pictures where they lie elsewhere, and list them, once for all processes."""
    if address_of(config.data.path or ""):
        with watch.on("fetch"):
            fetch([config.data.path], show)
    with watch.on("scan"):
        return processes.from_first(scan_pictures, config, show, use)


def refuse_sharing(config: Config) -> None:
    """Raise a usage error where several processes cannot share the batches of a run."""
    number, training = processes.count(), config.training
    if number == 1:
        return
    if training.budget is not None:
        remedy = "name stages and epochs: --stages"
        raise usage_error(f"--budget runs in one process, not in {number}", "", remedy)
    if training.lr == "auto":
        remedy = "find the rate before: transferkit find-lr"
        raise usage_error(f"--lr auto runs in one process, not in {number}", "", remedy)
    if training.batch_size == "auto" or training.accumulate not in (None, 1):
        what = "--batch-size auto and --accumulate run in one process"
        raise usage_error(
            f"{what}, not in {number}", "", "each takes a part of every batch already"
        )
    if training.batch_size < number:
        raise usage_error(f"--batch-size {training.batch_size} is too small for {number} processes")
    if config.device.strategy == "fsdp":
        refuse_old_torch()


def all_pictures(
    config: Config, show: Show, watch: Stopwatch
) -> tuple[DatasetIndex, KnownRows | None]:
    """Return the pictures of a run and of those that it extends, and what is known of these."""
    runs, data = config.solve.extends, config.data
    if not runs:
        return read_index(config, show, watch), None
    more = None
    if data.path is not None or data.manifest is not None:
        more = read_index(config, show, watch, "measure")
    index, known, notices = extended(runs, more)
    for text in dict.fromkeys(notices):
        show(Notice(text))
    return index, known


def build(
    config: Config,
    index: DatasetIndex,
    show: Show,
    watch: Stopwatch,
    known: KnownRows | None = None,
) -> Parts:
    """Build the model for the pictures of an index, its plan, and what it trains on."""
    show(Working(f"building {config.backbone.name}"))
    fabric = make_fabric(config)
    config, backbone, chain, read = make_input(config, index, fabric.device, watch, show)
    known = known or read
    classifier = make_classifier(config, backbone, len(index.classes))
    classifier.to(fabric.device)
    reinitialize_above(config, backbone, chain.groups)
    if config.training.checkpoint_activations:
        recompute(backbone.model, [path for group in chain.groups[1:] for path in group.modules])
    processes.copy_first_(classifier)
    synchronize_(classifier)
    if not chain.verified:
        backbone.notices.append(f"no cut inside {backbone.name} ({chain.reason}): trains live")
    plan = make_plan(config, [group.name for group in chain.groups])
    show(transfer_notice(config, index, backbone, plan))
    started = start_notices(config, backbone)
    for notice in (*map(Notice, backbone.notices), *started, *cycle_notices(config, plan.stages)):
        show(notice)
    column_of = column_finder([group.modules for group in chain.groups])
    refuse_unfilled(backbone, plan.stages, column_of, config.backbone.weights)
    for stage in plan.stages:
        if stage.side_px:
            refuse_size(backbone, stage.side_px, fabric.device)
    if config.training.batch_size == 1:
        image = random_images(backbone)[:1].to(fabric.device)
        refuse_lone_pictures(classifier, plan.stages, column_of, image)
    material, settings = make_material(config, index, backbone), cache_settings(config)
    return Parts(
        config, backbone, classifier, chain, plan, material, settings, fabric, watch, known=known
    )


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


def recalibrate(parts: Parts, show: Show) -> None:
    """Measure batch-norm statistics on the training pictures, if that is wanted.

    A resumed run does so again: what no stage trains is in no checkpoint.
    """
    training = parts.config.training
    if training.batchnorm != "recalibrate":
        return
    with parts.watch.on("batch-norm statistics"):
        classifier, seed = parts.classifier, training.seed
        for event in recalibrate_batchnorm(classifier, parts.material, parts.device, seed):
            show(event)


def with_batch_size(config: Config, index: DatasetIndex) -> Config:
    """Put a number in the place of `batch_size = "auto"`; parts are then made as needed, too."""
    training = config.training
    if training.batch_size != "auto":
        return config
    size = batch_size_for(len(index.of_split("train")))
    parts = "auto" if training.accumulate is None else training.accumulate
    return replace(config, training=replace(training, batch_size=size, accumulate=parts))


def scan_pictures(config: Config, show: Show, use: Use = "train") -> DatasetIndex:
    """Scan the data set that the configuration names; its warnings become notices."""
    data = config.data
    if data.path is None and data.manifest is None:
        raise usage_error(
            "no pictures given",
            "",
            "name a folder: transferkit finetune my_pictures/, or a table: --manifest my.csv",
        )
    options = ScanOptions(
        manifest=data.manifest,
        val_fraction=data.val_fraction,
        seed=config.training.seed,
        strict=data.strict,
        exclude=data.exclude,
        reading=reading_of(data),
        allow_outside=data.allow_outside,
        use=use,
    )
    show(Working("reading pictures"))
    index = scan(data.path, options, lambda done, total: show(Progress("pictures", done, total)))
    for warning in index.warnings:
        show(Notice(warning, warning=True))
    if notice := depth_notice(index):
        show(Notice(notice))
    return index


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
