"""The verb `predict`: pictures in, rows out, batch by batch in flat memory."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from transferkit import processes
from transferkit.config import Predict
from transferkit.data.named_pictures import list_pictures as list_pictures
from transferkit.data.tar_members import archive_of, read_member
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show
from transferkit.files.atomic_write import write_atomically
from transferkit.files.row_files import (
    SUFFIXES,
    ArrayFile,
    Provenance,
    RowFile,
    not_in,
    open_rows,
    picture_key,
    provenance,
    provenance_path,
    require_replaceable,
)
from transferkit.inference.compared import Compared
from transferkit.inference.decide import NEVER, DecisionRule, fit_rule
from transferkit.inference.exported import is_exported, require_trust
from transferkit.inference.members import Member, open_members
from transferkit.inference.outputs import Outputs, completed, write_arrays
from transferkit.inference.overlays import Overlays, open_overlays, write_overlays
from transferkit.inference.pipeline import PictureBatch, Prediction, predictions
from transferkit.inference.rows import columns, error_row, prediction_rows
from transferkit.inference.sampled import calibrated, decides
from transferkit.inference.select import Pool, label_gain, score_by
from transferkit.recipes.reading import load_config, predict_options
from transferkit.runs.folder import RunFolder, open_run

Model = RunFolder | Path
"""A run, or the path of an exported model."""
OF_EXPORTED = ("predict.top_k", "predict.batch_size")
"""The options of an exported model; all others need a run folder."""


@dataclass(frozen=True)
class Job:
    """Everything that a prediction needs, opened and checked. names: columns of the rows.

    compared: takes a sample of the pictures; told: what it says in the end, for JSON.
    """

    members: list[Member]
    files: list[Path]
    options: Predict
    rule: DecisionRule
    names: list[str]
    compared: Compared
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the first member."""
        return self.members[0].loaded.classes

    @cached_property
    def provenance(self) -> Provenance:
        """What the rows depend on, see `open_rows`."""
        by = {k: v for k, v in asdict(self.options).items() if k not in ("batch_size", "engine")}
        return provenance([member.files for member in self.members], by, self.files)


def open_models(text: str, trusted: bool = False) -> list[Model]:
    """Open RUN or RUN1,RUN2, or name an exported file; a name with a comma may be one run.

    trusted: see `require_trust`. Raises a usage error for the same run twice.
    """
    path = Path(text)
    if trusted or is_exported(path):
        require_trust(path, trusted)
        if processes.count() > 1:
            raise usage_error("an exported model runs in one process", "", "name the run folder")
        return [path]
    return [*open_runs(text)]


def open_runs(text: str) -> list[RunFolder]:
    """Open RUN or RUN1,RUN2. Raises a usage error for the same run twice."""
    paths = [Path(text)] if Path(text).exists() else [Path(p.strip()) for p in text.split(",")]
    if len({path.resolve() for path in paths}) < len(paths):
        raise usage_error(f"{text} names a run twice", remedy="an ensemble needs different runs")
    return [open_run(path) for path in paths]


def read_options(
    models: Sequence[Model], sets: Iterable[str], flags: Mapping[str, Any], outputs: Outputs
) -> Predict:
    """Return the options: what was typed, over the recipe of the first run.

    Raises a usage error, before anything is read, for what cannot be or would have no effect.
    """
    first = models[0]
    if isinstance(first, RunFolder):
        options = predict_options(first, sets, flags)
    else:
        keys = [*flags, *(pair.partition("=")[0].strip() for pair in sets)]
        keys += ["--save-samples"] if outputs.samples else []
        keys += ["--save-features"] if outputs.features else []
        keys += ["--saliency"] if outputs.saliency else []
        if others := [key for key in keys if key not in OF_EXPORTED]:
            raise usage_error(
                f"{', '.join(others)}: has no effect on an exported model",
                "the file holds the network alone, not the run's calibration",
                "predict with the run folder instead",
            )
        options = load_config(None, tuple(sets), flags).predict
    check_outputs(outputs, options, len(models))
    return options


def check_outputs(outputs: Outputs, options: Predict, num_models: int) -> None:
    """Raise a usage error for outputs that cannot be or would have no effect."""
    if outputs.rows is not None and outputs.rows.suffix.lower() not in SUFFIXES:
        names = ", ".join(SUFFIXES)
        raise usage_error(f"--output {outputs.rows}: the name must end in one of {names}")
    if outputs.skip_existing and outputs.rows is None:
        raise usage_error("--skip-existing has no effect without --output")
    for flag, path in (("--save-samples", outputs.samples), ("--save-features", outputs.features)):
        if path and path.suffix.lower() != ".safetensors":
            raise usage_error(f"{flag} {path}: the name must end in .safetensors")
        if path and outputs.skip_existing:
            raise usage_error(f"{flag} holds every picture, --skip-existing leaves some out")
    if outputs.copy_to is not None and options.select is None:
        raise usage_error("--copy-to has no effect without --select")
    if outputs.saliency is not None and options.select is not None:
        raise usage_error("--saliency has no effect with --select: leave one of them out")
    if options.select is not None and outputs.skip_existing:
        raise usage_error("--select looks at all pictures: leave --skip-existing out")
    if outputs.samples is not None and not (options.mc_dropout or options.tta or num_models > 1):
        raise usage_error("--save-samples needs samples", "", "add --mc-dropout or --tta 8")
    if processes.count() > 1:
        if outputs.rows is None:
            raise usage_error("several processes predict into a file: name it with --output")
        for flag, given in (("--select", options.select), ("--saliency", outputs.saliency)):
            if given is not None:
                raise usage_error(f"{flag} runs in one process, not in {processes.count()}")
    require_replaceable((outputs.rows, outputs.samples, outputs.features))


def open_job(
    models: Sequence[Model],
    sources: tuple[Sequence[str], Iterable[str]],
    options: Predict,
    trusted: bool = False,
    max_pixels: int | None = None,
) -> Job:
    """Load the models, list the pictures, choose thresholds.

    sources: see `list_pictures`. trusted: see `require_trust`. max_pixels: in place of the models'.
    """
    files = processes.from_first(list_pictures, *sources)
    members = open_members(models, options, len(files), trusted, max_pixels)
    members = calibrated(members, options, measure=decides(options))
    count = num_samples(members, options)
    needs = options.by == "bald" or options.abstain_by in ("mutual_information", "variation_ratio")
    if needs and count == 1:
        raise usage_error(
            f"{'--by bald' if options.by == 'bald' else options.abstain_by} needs samples that can "
            "disagree",
            remedy="add --mc-dropout, --tta 8, or several runs",
        )
    has_ood = any(member.ood for member in members)
    names = columns(options, len(members[0].loaded.classes), count, has_ood)
    compared = Compared(members[0], options.seed)
    return Job(members, files, options, fit_rule(members, options), names, compared)


def num_samples(members: Sequence[Member], options: Predict) -> int:
    """Return S, the number of samples of each picture."""
    return max(options.mc_dropout, 1) * max(options.tta, 1) * len(members)


def predict(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Yield one row per picture, in order; an unreadable one has its reason in `error`.

    With `options.select` the rows are the selected pictures with their rank and score.
    With `outputs.skip_existing`, pictures with rows of an earlier job are left out.
    Of several processes each yields the rows of its own block of pictures.
    """
    if job.rule.note:
        show(Notice(job.rule.note, warning=job.rule.threshold == NEVER))
    way = select if job.options.select else stream
    try:
        with outputs.held():
            yield from (way if processes.count() == 1 else predict_block)(job, outputs, show)
    except processes.LostProcess as error:
        remedy = "go on with the same command and --skip-existing"
        raise processes.LostProcess(error.what, error.where, remedy) from None


def stream(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Predict batch by batch; every batch is on disk before the next one begins."""
    drawn = None
    if outputs.saliency is not None:
        drawn = open_overlays(outputs.saliency, job.members, job.files)
    files, table = job.files, None
    if outputs.rows is not None:
        names = [*job.names[:-1], *(["saliency"] if drawn else []), "error"]
        table = open_rows(outputs.rows, names, outputs.skip_existing, job.provenance)
        files = not_in(table.done, files)
    if len(files) < len(job.files):
        show(Notice(f"{len(job.files) - len(files):,} pictures were done already"))
    arrays = open_arrays(job, outputs, len(files))
    strange: list[str] = []  # out of distribution
    unreadable: list[str] = []
    with completed(*([table] if table else []), *arrays.values()):
        for batch, prediction in predictions(job.members, files, job.options, show):
            rows = rows_of(job, batch, prediction)
            if drawn:
                add_overlays(rows, drawn, job, batch, prediction)
            if table:
                table.write(rows)
            write_arrays(arrays, batch, prediction)
            yield from rows
            if prediction is not None:
                readable = [picture.file for picture in batch.readable]
                job.compared.add(readable, prediction.first_classes, prediction.features)
            strange += [row["path"] for row in rows if row.get("unlike")]
            unreadable += [row["path"] for row in rows if row["error"]]
    if table:
        warn_of(unreadable, "{} could not be read; see column error", show)
    warn_of(strange, "out of distribution (column ood above 1): {}", show)
    if processes.count() == 1:
        warning, found = job.compared.told()
        job.told.update({"shift": found} if found else {})
        if warning:
            show(Notice(warning, warning=True))


def warn_of(paths: list[str], text: str, show: Show) -> None:
    """Say something of pictures of all processes. text: with {} for their names."""
    paths = [path for part in processes.from_all(paths) for path in part]
    if paths:
        more = len(paths) - 1
        others = f" and {more:,} other{'s' * (more > 1)}" if more else ""
        show(Notice(text.format(f"{paths[0]}{others}"), warning=True))


def predict_block(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Predict this process's block of the pictures; the first one joins all blocks.

    Blocks consist of whole batches, so that the numbers, and the files, are those of one process.
    """
    assert outputs.rows is not None
    files, size, count = job.files, job.options.batch_size, processes.count()
    if outputs.skip_existing:
        files = not_in(processes.from_first(done_already, outputs.rows, job), files)
    starts = processes.share(range(0, len(files), size))
    block = [file for start in starts for file in files[start : start + size]]
    part = outputs.part(processes.rank(), count)
    assert part.rows is not None
    if outputs.skip_existing and not done_already(part.rows, job) <= {*map(picture_key, block)}:
        raise UserError(
            f"cannot go on with {part.rows}: it belongs to other pictures",
            remedy="remove it, or leave --skip-existing out",
        )
    yield from stream(replace(job, files=block), part, show)
    processes.from_all(None)  # every part is there
    processes.from_first(join_blocks, job, outputs, len(files), count)


def done_already(path: Path, job: Job) -> set[str]:
    """Return the `picture_key` of the rows that an earlier job has written."""
    table = open_rows(path, job.names, go_on=True, made=job.provenance)
    table.close(whole=False)
    return table.done


def join_blocks(job: Job, outputs: Outputs, num_rows: int, count: int) -> None:
    """Append the files of all `count` processes to the outputs, `num_rows` new rows in all."""
    assert outputs.rows is not None
    parts = [outputs.part(number, count) for number in range(count)]
    table = open_rows(outputs.rows, job.names, outputs.skip_existing, job.provenance)
    joined: dict[str, RowFile | ArrayFile] = {"rows": table, **open_arrays(job, outputs, num_rows)}
    for name, file in joined.items():
        pieces: list[Path] = [getattr(part, name) for part in parts]
        for piece in pieces:
            file.append(piece)
        file.close(whole=True)
        for piece in pieces:
            piece.unlink()
            provenance_path(piece).unlink(missing_ok=True)


def select(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Score all pictures, then yield the chosen ones: rank, path, score, and copy them."""
    options = job.options
    assert options.select is not None
    gain = label_gain(job.members[0]) if options.by == "solve" else None
    pool = Pool(options.select, options.by, options.seed, gain)
    for batch, prediction in predictions(job.members, job.files, options, show):
        if prediction is not None:
            scores = score_by(options.by, prediction.uncertainty)
            if gain is not None:
                chances = torch.from_numpy(prediction.uncertainty.mean)
                scores = gain.surprise(prediction.features, chances).numpy()
            vectors = prediction.features.numpy()
            for picture, score, features in zip(batch.readable, scores, vectors, strict=True):
                pool.add(picture.file, float(score), features)
    folder = job.members[0].folder
    labelled = folder.load_reference() if folder else None
    features = None if labelled is None else labelled["features"].float().numpy()
    chosen = pool.choose(features)
    if len(chosen) < options.select:
        show(Notice(f"only {len(chosen)} pictures are left without near duplicates"))
    rows = [
        {"rank": rank, "path": str(file), "score": round(score, 6), "error": ""}
        for rank, (file, score) in enumerate(chosen, start=1)
    ]
    if outputs.rows is not None:
        table = open_rows(outputs.rows, ["rank", "path", "score", "error"], go_on=False)
        with completed(table):
            table.write(rows)
    if outputs.copy_to is not None:
        outputs.copy_to.mkdir(parents=True, exist_ok=True)
        for rank, (file, _) in enumerate(chosen, start=1):
            copy_picture(file, outputs.copy_to / f"{rank:04d}-{file.name}")
    yield from rows


def copy_picture(file: Path, target: Path) -> None:
    """Copy a picture, also one inside of a shard. Raises OSError."""
    is_file = archive_of(file) is None
    data = file.read_bytes() if is_file else read_member(file)
    write_atomically(target, lambda copy: copy.write(data))
    if is_file:
        shutil.copystat(file, target)


def rows_of(job: Job, batch: PictureBatch, prediction: Prediction | None) -> list[dict[str, Any]]:
    """Return a row for every file of a batch, in order."""
    rows: list[dict[str, Any]] = []
    if prediction is not None:
        paths = [str(picture.file) for picture in batch.readable]
        rows = prediction_rows(paths, prediction, job.rule, job.options, job.classes)
    return [
        row or error_row(str(picture.file), picture.error, job.names)
        for picture, row in zip(batch.pictures, batch.per_file(rows), strict=True)
    ]


def add_overlays(
    rows: list[dict[str, Any]],
    overlays: Overlays,
    job: Job,
    batch: PictureBatch,
    prediction: Prediction | None,
) -> None:
    """Write the overlays of a batch, each for the picture's first class; add their paths."""
    paths: list[Path] = []
    if prediction is not None:
        paths = write_overlays(overlays, job.members, batch.readable, prediction.first_classes)
    for row, path in zip(rows, batch.per_file(paths), strict=True):
        error = row.pop("error")  # stays the last column
        row |= {"saliency": path and str(path), "error": error}


def open_arrays(job: Job, outputs: Outputs, count: int) -> dict[str, ArrayFile]:
    """Open the files of arrays that were asked for, for `count` pictures."""
    shapes = {
        "samples": (count, num_samples(job.members, job.options), len(job.classes)),
        "features": (count, job.members[0].loaded.num_features),
    }
    paths = {"samples": outputs.samples, "features": outputs.features}
    metadata = {"classes": "\n".join(job.classes), "seed": str(job.options.seed)}
    return {n: ArrayFile(p, n, shapes[n], metadata) for n, p in paths.items() if p is not None}
