"""The verb `finetune`: from pictures to a run folder with a trained classifier."""

import json
import math
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transferkit import processes
from transferkit.config import Config
from transferkit.errors import usage_error
from transferkit.evaluation.layer_plots import gradients, inside
from transferkit.evaluation.plots import confusion, curves, learning_rates
from transferkit.evaluation.reliability_plot import reliability
from transferkit.events import Event, Notice, Show, StageEnded, StageStarted, Working, drain
from transferkit.files.foreign_files import understood
from transferkit.finetuning.batch_parts import with_micro_batches
from transferkit.finetuning.final_validation import Validation, validate
from transferkit.finetuning.outlook import look_ahead
from transferkit.finetuning.preparation import prepare, recalibrate
from transferkit.finetuning.summary import RunSummary, going_on, summarize
from transferkit.finetuning.time_budget import choose, notice_of, with_views
from transferkit.recipes.reading import config_of, to_toml
from transferkit.runs.creation import RUNS
from transferkit.runs.folder import RECIPE, RunFolder
from transferkit.runs.life import (
    absolute_paths,
    earlier_run,
    moved,
    new_run,
    refuse_among_pictures,
    require_same_pictures,
    working_on,
)
from transferkit.stopwatch import Stopwatch
from transferkit.training.budget import Budget
from transferkit.training.cache_choice import choose_base
from transferkit.training.checkpoints import continue_run, restore, write_unsaved
from transferkit.training.divergence import DivergedForGood
from transferkit.training.end_check import require_as_recorded, require_best
from transferkit.training.interpolation import interpolate
from transferkit.training.loop import fit
from transferkit.training.network import head_design, make_structure
from transferkit.training.parts import Parts
from transferkit.training.run import Run, make_run
from transferkit.training.solved import Solved
from transferkit.training.solving import take_solved
from transferkit.training.stage_checks import refuse_unfilled
from transferkit.units import parse_duration
from transferkit.verbs.cross_validation import (
    add_folds,
    announce,
    fold_config,
    folds_left,
    parted,
    trains_folds,
)
from transferkit.verbs.find_lr import with_found_rate
from transferkit.verbs.pretraining_stage import part_of, pretrained_first, with_pretraining
from transferkit.verbs.report import write_card, write_report

COMMAND = "finetune"


def finetune(
    config: Config, out: Path | None, show: Show, watch: Stopwatch | None = None
) -> RunSummary:
    """Train as configured into a new run folder and return what came out.

    out: the folder to make; None makes one below runs/ with the time and the data set's name.
    watch: counts the time; without one it counts from here.
    """
    if config.device.strategy == "fsdp" and processes.count() == 1:
        what = "--strategy fsdp has no effect in one process"
        raise usage_error(what, "", "start several with torchrun or srun, or leave it out")
    source = config.data.path or config.data.manifest
    name = source.resolve().stem if source else "run"
    refuse_among_pictures(out or RUNS, config)
    with new_run(out, name) as folder:
        given, watch = absolute_paths(config), watch or Stopwatch()
        with watch.on("pretraining"):
            config = pretrained_first(given, folder, show)
        announce(config, show)
        parts = prepare(config, show, watch)
        with parts.watch.on("measuring"):
            parts = with_micro_batches(parts, show)
        budget = plan_budget(parts, folder, show)
        parts = parts if budget is None else with_views(parts, budget)
        parts = with_found_rate(parts, budget, logged(show, folder))
        run = make_run(parts, folder, budget)
        processes.from_first(describe, run, given)
        return with_folds(run, train(run, show), show)


def with_folds(run: Run, summary: RunSummary, show: Show) -> RunSummary:
    """Train the plan without each fold, where folds are wanted and a solve does not tell them."""
    config, folder = run.parts.config, run.folder
    if not trains_folds(config) or summary.stopped:
        return summary
    index, number = parted(config, run.parts.index), config.data.folds
    assert number is not None
    for fold, path in folds_left(folder, number):
        show(Notice(f"fold {fold + 1} of {number}"))
        with part_of(folder):
            if (path / RECIPE).is_file():
                resume(path, show)
            else:
                own = processes.from_first(fold_config, config, index, folder, fold)
                finetune(own, path, show)
    return add_folds(folder, summary, show)


def describe(run: Run, given: Config) -> None:
    """Write what a run needs to be resumed. given: the configuration that it began with."""
    run.folder.write_json("data", data_description(run.parts))
    recipe = with_pretraining(run.parts.config, given)
    run.folder.write_recipe(to_toml(recipe))  # last: with it, the run can be resumed


def plan_budget(parts: Parts, folder: RunFolder, show: Show) -> Budget | None:
    """Measure and choose what fits the time limit, if there is one, and keep the choice."""
    config = parts.config
    if config.training.budget is None:
        return None
    show(Working("measuring what fits into the time"))
    with parts.watch.on("measuring"):
        budget = choose(parts, parse_duration(config.training.budget))
    logged(show, folder)(notice_of(parts, budget))
    used = budget.used(parts.plan.stages)
    refuse_unfilled(parts.backbone, used, parts.column_of, config.backbone.weights)
    folder.write_json("budget", budget.to_dict())
    return budget


def resume(
    path: Path,
    show: Show,
    watch: Stopwatch | None = None,
    place: tuple[Path | None, Path | None, Path | None] = (None, None, None),
) -> RunSummary:
    """Continue an interrupted run; the result equals that of an uninterrupted one.

    place: folder, manifest and corrections, where these lie elsewhere now.
    Raises UserError when the pictures are no longer the same.
    """
    with earlier_run(path) as folder:
        known = folder.read_json("data")
        if isinstance(known, dict) and known.get("task") == "pretraining":
            remedy = f"transferkit pretrain --resume {path}"
            raise usage_error(f"{path} is a pretraining run", "", remedy)
        before = config_of(folder)
        data, manifest, corrections = place
        config = moved(before, data, manifest, path, corrections)
        parts, budget = prepare(pretrained_first(config, folder, show), show, watch), None
        if (planned := folder.read_json("budget")) is not None:
            with understood(path):
                budget = Budget.from_dict(planned)
            parts = with_views(parts, budget)
        if known is None:
            processes.from_first(folder.write_json, "data", data_description(parts))
        else:
            require_same_pictures(known, parts.index, path, COMMAND)
        if config != before:
            show(Notice(f"the pictures lie in {config.data.manifest or config.data.path} now"))
            text = to_toml(replace(before, data=config.data))
            processes.from_first(folder.write_recipe, text)
        run = make_run(parts, folder, budget)
        return with_folds(run, train(run, show), show)


def train(run: Run, show: Show) -> RunSummary:
    """Run the plan, from the start or from the last checkpoint, and finish the run folder."""
    try:
        with working_on(run.folder, COMMAND):
            return run_plan(run, show)
    finally:
        run.parts.handles.close()  # whoever waits for these caches need not wait for this process


def run_plan(run: Run, show: Show) -> RunSummary:
    """Train stage by stage, then validate and describe the result."""
    folder = run.folder
    processes.from_first(recalibrate, run.parts, show)
    processes.copy_first_(run.classifier)
    if continue_run(run):
        names = [*(stage.name for stage in run.plan.stages), "(all are over)"]
        show(Notice(f"resuming in stage {names[run.state.stage]} after epoch {run.state.epoch}"))
    run.state.base, notices = choose_base(run.parts, run.stages, run.state.base)
    for notice in notices:
        show(notice)
    try:
        drain(fit(run), logged(show, folder))
    except DivergedForGood as problem:
        if run.state.rows:
            end_early(run, show, problem)
        raise
    finally:  # also of what interrupts
        write_unsaved(run)
    if run.state.best[0] > -math.inf:
        processes.from_first(require_best, run)
    if run.settings.wise_ft is not None:
        with run.watch.on("evaluation"):
            drain(interpolate(run), logged(show, folder))
        processes.from_first(folder.write_json, "interpolation", run.interpolation)
    if run.settings.profile:
        show(Notice(f"{folder.files['profile']}: steps of each stage, for https://ui.perfetto.dev"))
    return processes.from_first(finish, run, show)


def end_early(run: Run, show: Show, problem: DivergedForGood) -> None:
    """Finish a run that diverged for good with its best weights, and say how to go on from them."""
    if run.state.best[0] > -math.inf:
        restore(run, "best")
    run.stopped = problem.what
    summary = processes.from_first(finish, run, show)
    problem.where += f"\n{run.folder.path} ends with its best weights so far, accuracy "
    problem.where += f"{summary.metrics['accuracy']:.1%}"
    problem.remedy += f"; or go on from them: {going_on(run)}"


def finish(run: Run, show: Show) -> RunSummary:
    """Validate the best model as `predict` will run it; write model, predictions, plots, report."""
    folder, watch = run.folder, run.watch
    run.parts.handles.close()
    run.solved = take_solved(run)
    show(Working("validating the best model"))
    with watch.on("final validation"):
        validation = validate(run, show)
    evaluation = validation.evaluation
    require_as_recorded(run, evaluation.headline["accuracy"], validation.loss)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in run.model.state_dict().items()
    }
    with watch.on("checkpoint"):
        folder.save_model(model_description(run, validation), tensors)
    show(Working("drawing plots and the report"))
    with watch.on("plots"):
        draw(run, validation)
    with watch.on("final validation"):
        look_ahead(run, logged(show, folder))
    summary = summarize(run, evaluation)
    folder.write_json("summary", summary.to_dict())
    write_report(folder, show)
    write_card(folder, evaluation.intervals)
    summary = replace(summary, files=folder.files)  # report and card are among them
    folder.write_json("summary", summary.to_dict())
    return summary


def draw(run: Run, validation: Validation) -> None:
    """Draw the plots of a finished run."""
    rows, calibration, folder = run.state.rows, validation.calibration, run.folder
    folder.save_plot("curves", curves(rows))
    folder.save_plot(
        "learning_rates", learning_rates(rows, run.parts.config.schedule.name == "1cycle")
    )
    folder.save_plot("inside", inside(run.state.monitored, run.plan.columns))
    limit = run.parts.config.clipping.norm
    folder.save_plot("gradients", gradients(run.state.monitored, limit))
    matrix = validation.evaluation.confusion
    folder.save_plot("confusion", confusion(matrix, run.parts.index.classes))
    before, after = calibration.before.reliability, calibration.after.reliability
    folder.save_plot("reliability", reliability(before, after))


def model_description(run: Run, validation: Validation) -> dict[str, Any]:
    """Describe the model so that it can be rebuilt, understood and trusted: model.json."""
    parts, solved = run.parts, run.solved
    config, backbone = parts.config, parts.backbone
    size = solved.size if solved else backbone.preprocessing
    resized = size.height_px != backbone.preprocessing.height_px
    return {
        "backbone": config.backbone.name,
        "image_size": size.height_px if resized else config.backbone.side_px,
        "structure": make_structure(config.backbone).to_dict(),
        "head": (solved.design if solved else head_design(config)).to_dict(),
        **depths_entries(solved),
        "drop_path": config.backbone.drop_path,
        "classes": list(parts.index.classes),
        "preprocessing": size.to_dict(),
        "background": config.data.background,
        **parts.index.reading.entries(),
        "temperature": validation.calibration.temperature,
        "started_from": backbone.weights_source,
        "license": backbone.license,
        "data": data_description(parts),
        "validation": {n: validation.evaluation.headline[n] for n in ("accuracy", "log_loss")},
        "versions": {n: version(n) for n in ("transferkit", "torch", "timm", "pillow")},
    }


def depths_entries(solved: Solved | None) -> dict[str, Any]:
    """Return the entries of model.json that a solved head adds; none without one."""
    if solved is None:
        return {}
    classifier = solved.classifier
    depths = [depth.to_dict() for depth in classifier.depths]
    return {"depths": depths, "mirror": classifier.mirror}


def data_description(parts: Parts) -> dict[str, Any]:
    """Describe the data set of a run: enough to tell whether it has changed."""
    index = parts.index
    counts = {s: len(index.of_split(s)) for s in ("train", "val", "test")}
    return {
        "fingerprint": index.fingerprint,
        "contents": index.contents,
        "files": index.picture_digest,
        "folds": index.folds is not None,
        "pictures": len(index.paths),
        "splits": counts,
        "classes": list(index.classes),
        "counts": index.counts,
        "warnings": list(index.warnings),
        "left_out": [asdict(u) for u in index.unreadable],
    }


def logged(show: Show, folder: RunFolder) -> Show:
    """Return what shows events, and writes those that a person may look up into the run's log."""

    def show_and_log(event: Event) -> None:
        show(event)
        if processes.is_first() and isinstance(event, (StageStarted, StageEnded, Notice)):
            folder.log(f"{type(event).__name__} {json.dumps(asdict(event), default=str)}")

    return show_and_log
