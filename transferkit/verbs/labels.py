"""The verb `labels`: which labels of a data set are probably wrong."""

from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from transferkit.config import Config
from transferkit.config.network import AUTO
from transferkit.data.corrections import placed, read_corrections
from transferkit.data.index import DatasetIndex
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show, Working
from transferkit.files.atomic_write import disk_error
from transferkit.files.row_files import open_rows, require_replaceable
from transferkit.finetuning.evidence import Evidence, run_evidence
from transferkit.finetuning.pictures import read_evidence, read_index
from transferkit.finetuning.wrong_labels import COLUMNS, WrongLabels, find_suspects
from transferkit.inference.out_of_fold import out_of_fold
from transferkit.runs.folder import open_run
from transferkit.stopwatch import Stopwatch

SUFFIXES = (".csv", ".jsonl")


def labels(
    config: Config, run: Path | None, select: int | None, output: Path | None, show: Show
) -> WrongLabels:
    """Find suspects, and write a row for each where `output` is given (.csv or .jsonl).

    run, select: see `find`.
    """
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise usage_error(f"--output {output}: the name must end in {' or '.join(SUFFIXES)}")
    require_replaceable([output])
    found = find(config, run, select, show)
    if output is not None:
        write_rows(found, output)
    return found


def find(config: Config, run: Path | None, select: int | None, show: Show) -> WrongLabels:
    """Find suspects among the pictures of a data set, or those that a run has kept.

    run: its features are used, and what it says out of fold where it was judged by folds; a data
    set beside it says where its pictures lie and what their labels are now. select: how many
    suspects, None as many as are probably wrong.
    """
    if config.backbone.name == AUTO:
        remedy = "transferkit choose DATA compares backbones: name one of them"
        raise usage_error("--backbone auto chooses for finetune alone", "", remedy)
    data = config.data
    named = data.path is not None or data.manifest is not None
    probabilities = None
    if run is None:
        evidence = read_evidence(config, show)
    else:
        if data.corrections is not None and not named:
            remedy = f"name its pictures, too: transferkit labels DATA --run {run}"
            raise usage_error("--corrections has no effect on --run alone", "", remedy)
        evidence = run_evidence(run)
        evidence, probabilities = with_folds(evidence, run, show)
        if named:
            index = read_index(config, show, Stopwatch(), "measure")
            evidence, there = seen_in(evidence, index, show)
            probabilities = None if probabilities is None else probabilities[there]
    confirmed = set()
    if data.corrections is not None:
        index = evidence.index
        rows, _ = placed(read_corrections(data.corrections), index.root, index.paths)
        confirmed = {path for path, each in rows.items() if each.decided}
    show(Working("looking for suspects"))
    return find_suspects(evidence, select, confirmed, config.training.seed, probabilities)


def with_folds(evidence: Evidence, run: Path, show: Show) -> tuple[Evidence, Tensor | None]:
    """Return what a run has kept of the pictures that it was judged on by folds, and what models
    of other folds say of them (N, K); all that it has kept, and None, where it was not.
    """
    try:
        judged = out_of_fold(open_run(run))
    except UserError:
        return evidence, None
    places = {path: place for place, path in enumerate(judged.paths)}
    rows, found = [], []
    for row, position in enumerate(evidence.positions):
        parts = PurePath(evidence.index.paths[position])
        ends = (PurePath(*parts.parts[first:]).as_posix() for first in range(len(parts.parts)))
        place = next((places[end] for end in ends if end in places), None)
        if place is not None:
            rows.append(row)
            found.append(place)
    show(Notice(f"judged out of fold: {len(rows):,} pictures"))
    return part_of(evidence, rows), judged.logits[found].double().softmax(1)


def part_of(evidence: Evidence, rows: list[int]) -> Evidence:
    """Return the evidence of some of its pictures."""
    return replace(
        evidence,
        positions=evidence.positions[rows],
        features=evidence.features[rows],
        labels=evidence.labels[rows],
        groups=None if evidence.groups is None else evidence.groups[rows],
    )


def seen_in(evidence: Evidence, index: DatasetIndex, show: Show) -> tuple[Evidence, list[int]]:
    """Return what a run has kept of the pictures of an index, known by their contents, as it labels
    them, and their rows. Raises UserError where it has none of them, or other classes.
    """
    known = evidence.index
    if index.classes != known.classes:
        where = f"there: {', '.join(known.classes[:20])}\nhere: {', '.join(index.classes[:20])}"
        raise UserError("the run has other classes than these pictures", where)
    places: dict[str, list[int]] = {}
    for position, digest in enumerate(index.digests):
        places.setdefault(digest, []).append(position)
    digests = [known.digests[position] for position in evidence.positions]
    rows, found = [], []
    for row, digest in enumerate(digests):
        if left := places.get(digest):  # of copies, each has its own place
            rows.append(row)
            found.append(left.pop(0))
    if not rows:
        raise UserError("the run has kept none of these pictures", "", "leave --run out")
    if len(rows) < len(digests):
        text = f"{len(digests) - len(rows)} pictures of the run are not there, and are left out"
        show(Notice(text))
    positions = np.array(found)
    labels = torch.from_numpy(index.labels[positions])
    there = replace(part_of(evidence, rows), index=index, positions=positions, labels=labels)
    return there, rows


def write_rows(found: WrongLabels, output: Path) -> None:
    """Write a row for each suspect."""
    try:
        file = open_rows(output, COLUMNS, go_on=False)
        whole = False
        try:
            rows = found.rows()
            if output.suffix.lower() == ".csv":
                rows = [
                    {n: " | ".join(v) if isinstance(v, list) else v for n, v in row.items()}
                    for row in rows
                ]
            file.write(rows)
            whole = True
        finally:
            file.close(whole)
    except OSError as error:
        raise disk_error(output.parent, error) from error
