"""From a configuration to a run that can start: pictures, backbone, head, chain, plan, caches."""

from dataclasses import replace

from transferkit import processes
from transferkit.backbones.recompute import recompute
from transferkit.backbones.synchronized import synchronize_
from transferkit.config import Config
from transferkit.config.network import AUTO
from transferkit.data.groups import SIMILAR
from transferkit.data.index import DatasetIndex, in_folds
from transferkit.errors import usage_error
from transferkit.events import Notice, Show, Working
from transferkit.finetuning.backbone_choice import with_backbone
from transferkit.finetuning.first_pass import recalibrate_batchnorm
from transferkit.finetuning.model_input import make_input, make_material
from transferkit.finetuning.pictures import read_index
from transferkit.finetuning.transfer import transfer_notice
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_handles import cache_settings
from transferkit.training.depth_features import KnownRows
from transferkit.training.fabric import make_fabric
from transferkit.training.kept_solve import extended
from transferkit.training.memory import batch_size_for, refuse_more_classes
from transferkit.training.network import (
    check_network,
    make_classifier,
    random_images,
    reinitialize_above,
    start_notices,
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
    if config.data.folds and config.only_solves:
        index = in_folds(index, config.data.folds, config.training.seed)
        count = len(index.of_split("train"))
        show(
            Notice(
                f"{count:,} pictures in {config.data.folds} folds: all train, each is judged "
                "without its own"
            )
        )
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
    if config.data.group_by == SIMILAR:
        remedy = "find the groups before, and name their column: --manifest my.csv --group-by group"
        raise usage_error(f"--group-by similar runs in one process, not in {number}", "", remedy)
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
