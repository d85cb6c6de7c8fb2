"""The verb `predict`: pictures in, rows out, batch by batch in flat memory."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from transferkit import processes
from transferkit.config import Predict
from transferkit.data.named_pictures import list_pictures as list_pictures
from transferkit.data.tar_members import archive_of, read_member
from transferkit.errors import UserError, usage_error
from transferkit.events import Event, Notice, Progress
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.files.row_files import (
    SUFFIXES,
    ArrayFile,
    Made,
    RowFile,
    made_by,
    made_path,
    not_in,
    open_rows,
    part_path,
    picture_key,
    require_replaceable,
)
from transferkit.inference.decide import Rules, make_rules
from transferkit.inference.members import (
    Batch,
    Member,
    Read,
    open_members,
    read_files,
    sample_batch,
)
from transferkit.inference.overlays import Overlays, open_overlays, write_overlays
from transferkit.inference.rows import batch_rows, columns, error_row
from transferkit.inference.select import Pool, score_by
from transferkit.inference.uncertainty import Uncertainty, measure
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import RunFolder, open_run
from transferkit.runs.lock import hold

Show = Callable[[Event], None]


@dataclass(frozen=True)
class Outputs:
    """Where results go beside the rows that are returned.

    rows: .csv, .jsonl or .parquet. skip_existing: go on with `rows`. samples, features:
    .safetensors, one array in the order of the pictures. copy_to: folder for selected pictures.
    saliency: folder for overlays.
    """

    rows: Path | None = None
    skip_existing: bool = False
    samples: Path | None = None
    features: Path | None = None
    copy_to: Path | None = None
    saliency: Path | None = None


@dataclass(frozen=True)
class Job:
    """Everything that a prediction needs, opened and checked."""

    members: list[Member]
    files: list[Path]
    options: Predict
    rules: Rules
    names: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the first run."""
        return self.members[0].loaded.classes

    @cached_property
    def made(self) -> Made:
        """What the rows depend on, see `open_rows`."""
        by = {k: v for k, v in asdict(self.options).items() if k not in ("batch_size", "engine")}
        return made_by([m.folder.deciding_files() for m in self.members], by, self.files)


def split_runs(text: str) -> list[Path]:
    """Read RUN or RUN1,RUN2; a folder whose own name has a comma is one run."""
    return [Path(text)] if Path(text).exists() else [Path(p.strip()) for p in text.split(",")]


def check_outputs(outputs: Outputs, options: Predict, num_runs: int) -> None:
    """Refuse, before anything is read, outputs that cannot be or would have no effect."""
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
    if outputs.samples is not None and not (options.mc_dropout or options.tta or num_runs > 1):
        raise usage_error("--save-samples needs samples", "", "add --mc-dropout or --tta 8")
    if processes.count() > 1:
        if outputs.rows is None:
            raise usage_error("several processes predict into a file: name it with --output")
        for flag, given in (("--select", options.select), ("--saliency", outputs.saliency)):
            if given is not None:
                raise usage_error(f"{flag} runs in one process, not in {processes.count()}")
    require_replaceable((outputs.rows, outputs.samples, outputs.features))


def open_job(
    folders: Sequence[RunFolder],
    sources: Sequence[str],
    lines: Iterable[str],
    options: Predict,
    max_pixels: int | None = None,
) -> Job:
    """Load the runs, list the pictures, choose thresholds.

    sources: files, folders, patterns; "-" stands for `lines`, one path in each.
    max_pixels: in place of the runs' own.
    """
    files = processes.from_first(list_pictures, sources, lines)
    flip = "recipe" not in folders[0].files or config_of(folders[0]).augment.flip
    members = open_members(folders, options, len(files), flip, max_pixels)
    sampled = max(options.mc_dropout, 1) * max(options.tta, 1) * len(members)
    needs = options.by == "bald" or options.abstain_by in ("mutual_information", "variation_ratio")
    if needs and sampled == 1:
        raise usage_error(
            f"{'--by bald' if options.by == 'bald' else options.abstain_by} needs samples that can "
            "disagree",
            remedy="add --mc-dropout, --tta 8, or several runs",
        )
    unlike = any(member.unlikeness for member in members)
    names = columns(options, len(members[0].loaded.classes), sampled, unlike)
    return Job(members, files, options, make_rules(members, options), names)


def predict(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Yield one row per picture, in order; an unreadable one has its reason in `error`.

    With `options.select` the rows are the selected pictures with their rank and score.
    Rows of an earlier job are not made again with `outputs.skip_existing`.
    Of several processes each yields the rows of its own block of pictures.
    """
    if job.rules.note:
        show(Notice(job.rules.note))
    way = select if job.options.select else stream
    try:
        with ExitStack() as held:
            processes.from_first(hold, held, outputs.rows, outputs.samples, outputs.features)
            yield from (way if processes.count() == 1 else shared_out)(job, outputs, show)
    except processes.LostProcess as error:
        remedy = "go on with the same command and --skip-existing"
        raise processes.LostProcess(error.what, error.where, remedy) from None
    except OSError as error:
        places = (outputs.rows, outputs.features, outputs.samples, outputs.copy_to)
        place = next((p for p in (*places, outputs.saliency) if p is not None), Path())
        raise disk_error(place.parent, error) from error


def stream(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Predict batch by batch; every batch is on disk before the next one begins."""
    drawn = None
    if outputs.saliency is not None:
        drawn = open_overlays(outputs.saliency, job.members, job.files)
    with ExitStack() as stack:
        table: RowFile | None = None
        if outputs.rows is not None:
            names = [*job.names[:-1], *(["saliency"] if drawn else []), "error"]
            table = open_rows(outputs.rows, names, outputs.skip_existing, job.made)
        files = not_in(table.done, job.files) if table else job.files
        if len(files) < len(job.files):
            show(Notice(f"{len(job.files) - len(files):,} pictures were done already"))
        arrays = open_arrays(job, outputs, len(files))
        opened: list[RowFile | ArrayFile] = [*([table] if table else []), *arrays.values()]
        whole = False
        stack.callback(lambda: [part.close(whole) for part in opened])
        unlike: list[str] = []
        unread: list[str] = []
        done = 0
        for reads, batch, found in batches(job, files):
            rows = rows_of(job, reads, batch, found)
            if drawn:
                add_overlays(rows, drawn, job, reads, found)
            if table:
                table.write(rows)
            write_arrays(arrays, reads, batch)
            yield from rows
            unlike += [row["path"] for row in rows if row.get("unlike")][: 1 if unlike else None]
            unread += [row["path"] for row in rows if row["error"]]
            done += len(reads)
            show(Progress("pictures", done, len(files)))
        whole = True
        if table:
            warn_of_unread([path for paths in processes.from_all(unread) for path in paths], show)
        unlike = [path for paths in processes.from_all(unlike) for path in paths]
        if unlike:
            text = f"{unlike[0]} and others are" if len(unlike) > 1 else f"{unlike[0]} is"
            show(Notice(f"{text} unlike the training data (column ood above 1)", warning=True))


def warn_of_unread(paths: list[str], show: Show) -> None:
    """Say that some of the rows hold no prediction."""
    if paths:
        others = f" and {len(paths) - 1:,} others" if len(paths) > 1 else ""
        text = f"{paths[0]}{others} could not be read: column error says why"
        show(Notice(text, warning=True))


def shared_out(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Predict this process's block of the pictures; the first one puts all blocks together.

    Blocks consist of whole batches, so that the numbers, and the files, are those of one process.
    """
    assert outputs.rows is not None
    files, size, number = job.files, job.options.batch_size, processes.count()
    if outputs.skip_existing:
        files = not_in(processes.from_first(done_already, outputs.rows, job), files)
    starts = processes.share(range(0, len(files), size))
    block = [file for start in starts for file in files[start : start + size]]
    own = parts(outputs, processes.rank(), number)
    assert own.rows is not None
    if outputs.skip_existing and not done_already(own.rows, job) <= {*map(picture_key, block)}:
        raise UserError(
            f"cannot go on with {own.rows}: it is of other pictures",
            remedy="remove it, or leave --skip-existing out",
        )
    yield from stream(replace(job, files=block), own, show)
    processes.from_all(None)  # every part is there
    processes.from_first(put_together, job, outputs, len(files), number)


def done_already(path: Path, job: Job) -> set[str]:
    """Return the `picture_key` of the rows that an earlier job has written."""
    table = open_rows(path, job.names, go_on=True, made=job.made)
    table.close(whole=False)
    return table.done


def parts(outputs: Outputs, number: int, count: int) -> Outputs:
    """Return where process `number` of `count` writes what belongs into the outputs."""

    def part(path: Path | None) -> Path | None:
        return path and part_path(path, number, count)

    rows, samples, features = map(part, (outputs.rows, outputs.samples, outputs.features))
    return replace(outputs, rows=rows, samples=samples, features=features)


def put_together(job: Job, outputs: Outputs, count: int, number: int) -> None:
    """Make the outputs of the parts of all `number` processes, `count` new rows in all."""
    assert outputs.rows is not None
    found = [parts(outputs, each, number) for each in range(number)]
    table = open_rows(outputs.rows, job.names, outputs.skip_existing, job.made)
    whole: dict[str, RowFile | ArrayFile] = {"rows": table, **open_arrays(job, outputs, count)}
    for name, file in whole.items():
        pieces = [getattr(part, name) for part in found]
        for piece in pieces:
            file.append(piece)
        file.close(whole=True)
        for piece in pieces:
            piece.unlink()
            made_path(piece).unlink(missing_ok=True)


def select(job: Job, outputs: Outputs, show: Show) -> Iterator[dict[str, Any]]:
    """Score all pictures, then yield the chosen ones: rank, path, score, and copy them."""
    options = job.options
    assert options.select is not None
    pool = Pool(options.select, options.by, options.seed)
    done = 0
    for reads, batch, found in batches(job, job.files):
        if batch is not None and found is not None:
            readable = [read.file for read in reads if read.views is not None]
            scores = score_by(options.by, found)
            for file, score, features in zip(readable, scores, batch.features, strict=True):
                pool.add(file, float(score), features.numpy())
        done += len(reads)
        show(Progress("pictures", done, len(job.files)))
    kept = job.members[0].folder.load_reference()
    chosen = pool.choose(None if kept is None else kept["features"].float().numpy())
    if len(chosen) < options.select:
        show(Notice(f"only {len(chosen)} pictures are left without near duplicates"))
    rows = [
        {"rank": rank, "path": str(file), "score": round(score, 6), "error": ""}
        for rank, (file, score) in enumerate(chosen, start=1)
    ]
    if outputs.rows is not None:
        table = open_rows(outputs.rows, ["rank", "path", "score", "error"], go_on=False)
        table.write(rows)
        table.close(whole=True)
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


def batches(
    job: Job, files: Iterable[Path]
) -> Iterator[tuple[list[Read], Batch | None, Uncertainty | None]]:
    """Yield the files in batches, with what the readable ones of each give."""
    reads = read_files(job.members, files, max(job.options.tta, 1))
    while part := list(islice(reads, job.options.batch_size)):
        batch, found = None, None
        if any(read.views is not None for read in part):
            batch = sample_batch(job.members, part, job.options)
            found = measure(batch.probabilities)
        yield part, batch, found


def rows_of(
    job: Job, reads: Sequence[Read], batch: Batch | None, found: Uncertainty | None
) -> list[dict[str, Any]]:
    """Return a row for every file of a batch, in order."""
    readable = [str(read.file) for read in reads if read.views is not None]
    made: Iterator[dict[str, Any]] = iter(())
    if batch is not None and found is not None:
        made = iter(batch_rows(readable, batch, found, job.rules, job.options, job.classes))
    return [
        error_row(str(read.file), read.reason, job.names) if read.views is None else next(made)
        for read in reads
    ]


def add_overlays(
    rows: list[dict[str, Any]],
    overlays: Overlays,
    job: Job,
    reads: Sequence[Read],
    found: Uncertainty | None,
) -> None:
    """Write the overlays of a batch, each for the picture's first class; put their paths in."""
    readable = [read for read in reads if read.views is not None]
    paths: Iterator[Path] = iter(())
    if readable and found is not None:
        paths = iter(write_overlays(overlays, job.members, readable, found.mean.argmax(axis=1)))
    for row, read in zip(rows, reads, strict=True):
        reason = row.pop("error")  # stays the last column
        row |= {"saliency": None if read.views is None else str(next(paths)), "error": reason}


def open_arrays(job: Job, outputs: Outputs, count: int) -> dict[str, ArrayFile]:
    """Open the files of arrays that were asked for."""
    options, loaded = job.options, job.members[0].loaded
    sampled = max(options.mc_dropout, 1) * max(options.tta, 1) * len(job.members)
    shapes: dict[str, tuple[int, ...]] = {"samples": (count, sampled, len(job.classes))}
    shapes["features"] = (count, loaded.num_features)
    paths = {"samples": outputs.samples, "features": outputs.features}
    metadata = {"classes": "\n".join(job.classes), "seed": str(options.seed)}
    return {n: ArrayFile(p, n, shapes[n], metadata) for n, p in paths.items() if p is not None}


def write_arrays(arrays: dict[str, ArrayFile], reads: Sequence[Read], batch: Batch | None) -> None:
    """Write what a batch gave, a row for every file."""
    values: dict[str, Iterator[np.ndarray]] = {}
    if batch is not None:
        values["samples"] = iter(batch.probabilities)
        values["features"] = iter(batch.features.numpy())
    for read in reads:
        for name, file in arrays.items():
            file.write(None if read.views is None else next(values[name]))


def open_runs(text: str) -> list[RunFolder]:
    """Open RUN or RUN1,RUN2. Raises a usage error for the same run twice."""
    paths = split_runs(text)
    if len({path.resolve() for path in paths}) < len(paths):
        raise usage_error(f"{text} names a run twice", remedy="an ensemble needs different runs")
    return [open_run(path) for path in paths]
