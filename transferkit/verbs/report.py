"""The verb `report`: a page that shows what came out of a run."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from transferkit.config import Config
from transferkit.errors import UserError, usage_error
from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.reliability import log_softmax
from transferkit.events import Notice, Show, Working
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.files.foreign_files import understood
from transferkit.recipes.reading import config_of
from transferkit.redaction import redacted
from transferkit.reporting.card import Intervals, model_card
from transferkit.reporting.comparison_page import comparison_page
from transferkit.reporting.gather import RunData, gather
from transferkit.reporting.pretraining_page import pretraining_page
from transferkit.reporting.run_page import run_page
from transferkit.runs.folder import CARD, REPORT, RunFolder, open_run
from transferkit.verbs.compare import compare


def report(path: Path, show: Show) -> Path:
    """Write the page of a finished run into its folder and return where it lies.

    Raises UserError when the run is not finished.
    """
    folder = open_run(path)
    with understood(path):
        return write_report(folder, show)


def report_together(paths: Sequence[Path], output: Path, show: Show) -> Path:
    """Write one page of several finished runs side by side into `output`, and return it.

    Raises a usage error for fewer than two different runs, or pretraining runs among them.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise usage_error(f"--output {output}: the name must end in .html")
    show(Working("writing the page"))
    folders = [open_run(path) for path in paths]
    for folder in folders:
        if is_pretraining(folder):
            what = f"{folder.path} is a pretraining run: there is no accuracy to compare"
            raise usage_error(what, "", f"look at it by itself: transferkit report {folder.path}")
    found = compare(paths, None)
    with understood(" and ".join(map(str, paths))):
        runs = [run_data(folder) for folder in folders]
        page = comparison_page(runs, found, [intervals_of(folder) for folder in folders])
    shown = [run.file(p) for run in runs for p in run.least_certain(3)]
    if shown and not any(file and file.is_file() for file in shown):
        show(Notice("the pictures are no longer where they were: the report goes without them"))
    data = redacted(page).encode(errors="backslashreplace")
    try:
        write_atomically(output, lambda file: file.write(data))
    except OSError as error:
        raise disk_error(output.parent, error) from error
    return output


def is_pretraining(folder: RunFolder) -> bool:
    """Whether a run has a model of pretraining, without a classifier."""
    return folder.has_model and folder.read_description().get("task") == "pretraining"


def intervals_of(folder: RunFolder) -> Intervals:
    """Return the intervals of a run's figures, from what it kept of its validation; {} without."""
    kept, calibration = folder.load_validation(), folder.read_json("calibration")
    if kept is None or calibration is None:
        return {}
    logs = log_softmax(kept["logits"], float(calibration["temperature"]))
    return bootstrap_intervals(logs, kept["labels"].numpy())


def write_report(folder: RunFolder, show: Show) -> Path:
    """Write report.html; tells when the pictures are no longer where they were."""
    show(Working("writing the report"))
    if is_pretraining(folder):
        recipe, config = recipe_of(folder)
        return folder.write_page(REPORT, pretraining_page(folder, config, recipe))
    run = run_data(folder)
    files = [run.file(p) for p in run.confident_errors(3) + run.least_certain(3)]
    if files and not any(file and file.is_file() for file in files):
        show(Notice("the pictures are no longer where they were: the report goes without them"))
    return folder.write_page(REPORT, run_page(run))


def write_card(folder: RunFolder, intervals: Intervals) -> Path:
    """Write the run's model card. intervals: of the figures, see `bootstrap_intervals`."""
    return folder.write_page(CARD, model_card(run_data(folder), intervals))


def run_data(folder: RunFolder) -> RunData:
    """Read a run with its configuration, if that is there and sound."""
    recipe, config = recipe_of(folder)
    with understood(folder.path):
        return gather(folder, config, recipe)


def recipe_of(folder: RunFolder) -> tuple[str, Config | None]:
    """Return a run's recipe, "" without one, and what it says, if that is sound."""
    recipe, config = "", None
    if "recipe" in folder.files:
        recipe = folder.read_recipe()
        with contextlib.suppress(UserError):  # damaged: the rest of the run is worth showing
            config = config_of(folder)
    return recipe, config
