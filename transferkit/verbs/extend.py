"""The verbs `extend` and `merge`: pictures are added to a solve, without those it has seen."""

from dataclasses import replace
from pathlib import Path

from transferkit.config import Config, Data, Stage, Training
from transferkit.errors import usage_error
from transferkit.events import Notice, Show
from transferkit.finetuning.summary import RunSummary
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import open_run
from transferkit.training.kept_solve import read_kept
from transferkit.verbs.finetune import finetune


def extend(
    run: Path, more: Path | None, manifest: Path | None, out: Path | None, show: Show
) -> RunSummary:
    """Solve on the pictures of a run and on more of them, as if all had been there from the start.

    more, manifest: folder or table of the new pictures; classes that are new there are added.
    Raises UserError where the run keeps no solve.
    """
    if more is None and manifest is None:
        remedy = f"name a folder: transferkit extend {run} MORE, or a table: --manifest my.csv"
        raise usage_error("no pictures given", "", remedy)
    return solve_again((run,), Data(path=more, manifest=manifest), out, show)


def merge(runs: tuple[Path, ...], out: Path | None, show: Show) -> RunSummary:
    """Solve on the pictures of several runs, of the same options, together."""
    if len({run.resolve() for run in runs}) < 2:
        raise usage_error("merge needs two runs or more", "", "transferkit merge RUN RUN")
    return solve_again(runs, Data(), out, show)


def solve_again(runs: tuple[Path, ...], data: Data, out: Path | None, show: Show) -> RunSummary:
    """Solve on what runs have kept and on the pictures of `data`, into a new run."""
    for run in runs:
        if text := beyond(run):
            show(Notice(text, warning=True))
    first = config_of(open_run(runs[0]))
    weighted = first.data.balance != "none" and any(read_kept(run).sums for run in runs)
    if weighted or first.training.batchnorm == "recalibrate":
        what = f"{runs[0]} cannot be extended"
        where = "its class weights or batch-norm statistics depend on pictures that are gone"
        raise usage_error(what, where, "train on all pictures")
    config = Config(
        data=replace(
            first.data, path=data.path, manifest=data.manifest, corrections=None, exclude=()
        ),
        backbone=first.backbone,
        head=replace(first.head, layers=(), batchnorm=(), dropout=first.head.dropout[-1:]),
        solve=replace(first.solve, extends=runs),
        training=Training(seed=first.training.seed),
        device=first.device,
        cache=first.cache,
        stages=(Stage("solve", 1),),
    )
    return finetune(config, out, show)


def beyond(run: Path) -> str:
    """Return a warning where a run has trained after its solve, which is all that is extended."""
    summary = open_run(run).read_json("summary") or {}
    trained = [
        stage["name"]
        for stage in summary.get("stages", [])
        if not stage["name"].startswith("solve") and stage["epochs"]
    ]
    if not trained:
        return ""
    what = f"{run} went on after its solve ({', '.join(trained)})"
    return f"{what}: the new model starts from the solve, without what they learned"
