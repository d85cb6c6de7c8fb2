"""The verb `compare`: what differed between runs, and what came out of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.errors import UserError, usage_error
from transferkit.evaluation.comparison import (
    Comparison,
    differing,
    outcome,
    short_names,
    stages_of,
)
from transferkit.evaluation.comparison_plot import side_by_side
from transferkit.files.atomic_write import require_png, write_plot
from transferkit.files.foreign_files import understood
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import RunFolder, open_run


def compare(paths: Sequence[Path], plot: Path | None) -> Comparison:
    """Read finished runs and put them side by side; draw their curves together into `plot`.

    Raises a usage error for fewer than two runs or one named twice, a UserError where a run is not
    finished.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise usage_error("compare needs two or more different runs", remedy="name them all")
    if plot is not None:
        require_png(plot)
    folders = [open_run(path) for path in paths]
    names = short_names(paths)
    with understood(" and ".join(map(str, paths))):
        summaries = [summary_of(folder) for folder in folders]
        found = Comparison(
            names,
            outcome(summaries),
            stages_of(summaries),
            differing([config_of(folder) for folder in folders]),
        )
        if plot is None:
            return found
        figure = side_by_side(dict(zip(names, (f.read_metrics() for f in folders), strict=True)))
    write_plot(plot, figure)
    return found


def summary_of(folder: RunFolder) -> dict[str, Any]:
    """Return what a finished run says of itself."""
    found: dict[str, Any] | None = folder.read_json("summary")
    if found is None:
        raise UserError(
            f"{folder.path} is not finished: there is nothing to compare yet",
            remedy=f"finish it first: transferkit finetune --resume {folder.path}",
        )
    if "metrics" not in found:
        raise usage_error(
            f"{folder.path} is a pretraining run: compare looks at classifiers",
            "",
            f"train one on it: transferkit finetune DATA --from {folder.path}",
        )
    return found
