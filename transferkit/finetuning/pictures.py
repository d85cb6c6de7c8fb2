"""The pictures of a configuration: scanned, split and grouped; their features."""

from dataclasses import replace

import numpy as np

from transferkit import processes
from transferkit.backbones.create import DEFAULT_BACKBONE
from transferkit.closed_form.similar import similar_groups
from transferkit.config import Config
from transferkit.config.network import AUTO
from transferkit.data.addresses import address_of, fetch
from transferkit.data.groups import SIMILAR, grouped
from transferkit.data.index import DatasetIndex, ScanOptions, Use, depth_notice, scan, with_groups
from transferkit.data.reading import reading_of
from transferkit.data.splits import draw_grouped
from transferkit.errors import usage_error
from transferkit.events import Notice, Progress, Show, Working
from transferkit.finetuning.evidence import Evidence, evidence_for
from transferkit.stopwatch import Stopwatch


def read_index(config: Config, show: Show, watch: Stopwatch, use: Use = "train") -> DatasetIndex:
    """Fetch the pictures where they lie elsewhere, and list them, once for all processes."""
    if address_of(config.data.path or ""):
        with watch.on("fetch"):
            fetch([config.data.path], show)
    with watch.on("scan"):
        return processes.from_first(scan_pictures, config, show, use)


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
        group_by=data.group_by,
        use=use,
        corrections=data.corrections,
    )
    show(Working("reading pictures"))
    index = scan(data.path, options, lambda done, total: show(Progress("pictures", done, total)))
    for warning in index.warnings:
        show(Notice(warning, warning=True))
    if notice := depth_notice(index):
        show(Notice(notice))
    return with_similar(config, index, show) if data.group_by == SIMILAR else index


def read_evidence(config: Config, show: Show) -> Evidence:
    """Read the features of a data set's pictures in one pass, see `evidence_for`."""
    return evidence_for(config, read_index(config, show, Stopwatch()), show)


def with_similar(config: Config, index: DatasetIndex, show: Show) -> DatasetIndex:
    """Group the pictures that are alike to the backbone, and draw the split anew by these groups.

    The draw is of what the data leaves open. Raises UserError where all are one group.
    """
    show(Working("looking for similar pictures"))
    options = replace(config.backbone, crop="backbone", image_size="backbone")  # nothing is chosen
    if options.name == AUTO:
        options = replace(options, name=DEFAULT_BACKBONE)
    plain = replace(config, backbone=options, solve=replace(config.solve, mirror="off"))
    evidence = evidence_for(plain, index, show)
    keys = [""] * len(index)
    numbers = similar_groups(evidence.features, evidence.widths, evidence.labels)
    several = numbers.bincount() > 1
    for position, number in zip(evidence.positions, numbers.tolist(), strict=True):
        keys[position] = f"similar {number}" * bool(several[number])
    groups = grouped(keys, index.digests, f"--group-by {SIMILAR}")
    splits = index.splits.copy()
    if index.drawn_split:
        drawn = np.flatnonzero(splits != "test")
        labels, own = [index.classes[k] for k in index.labels[drawn]], groups.numbers[drawn]
        to_val = draw_grouped(labels, own, config.data.val_fraction, config.training.seed)
        splits[drawn] = np.where(to_val, "val", "train")
    show(Notice(groups.note))
    found = with_groups(replace(index, splits=splits), groups.numbers)
    for warning in found.warnings[len(index.warnings) :]:
        show(Notice(warning, warning=True))
    return found
