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
from transferkit.evaluation.layer_plots import inside
from transferkit.evaluation.plots import confusion, curves, learning_rates
from transferkit.evaluation.reliability_plot import reliability
from transferkit.events import Event, Notice, Show, StageEnded, StageStarted, Working
from transferkit.files.foreign_files import understood
from transferkit.finetuning.batch_parts import resolve_parts
from transferkit.finetuning.final_validation import Validation, validate
from transferkit.finetuning.session import Session, make_run, prepare, recalibrate
from transferkit.finetuning.summary import RunSummary, going_on, summarize
from transferkit.finetuning.time_budget import choose, take
from transferkit.recipes.reading import config_of, to_toml
from transferkit.runs.creation import RUNS
from transferkit.runs.folder import RunFolder
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
from transferkit.training.checkpoints import continue_run, restore, write_unsaved
from transferkit.training.divergence import DivergedForGood
from transferkit.training.end_check import require_as_recorded, require_best
from transferkit.training.interpolation import interpolate
from transferkit.training.loop import fit
from transferkit.training.network import head_design, make_structure
from transferkit.training.run import Run
from transferkit.training.solving import take_solved
from transferkit.training.stage_checks import refuse_unfilled
from transferkit.units import parse_duration
from transferkit.verbs.find_lr import resolve_rate
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
        session = prepare(absolute_paths(config), show, watch)
        with session.watch.on("measuring"):
            resolve_parts(session, show)
        plan_budget(session, folder, show)
        if config.training.lr == "auto":
            with session.watch.on("range test"):
                resolve_rate(session, folder, show)
        processes.from_first(describe, session, folder)
        return train(session, folder, show)


def describe(session: Session, folder: RunFolder) -> None:
    """Write what a run needs to be taken up again."""
    folder.write_json("data", data_description(session))
    folder.write_recipe(to_toml(session.config))  # last: with it, the run can be taken up


def plan_budget(session: Session, folder: RunFolder, show: Show) -> None:
    """Measure and choose what fits the budget of time, if there is one, and keep the choice."""
    text = session.config.training.budget
    if text is None:
        return
    show(Working("measuring what fits into the time"))
    with session.watch.on("measuring"):
        notice = choose(session, parse_duration(text))
    show(notice)
    stages = session.used_plan.stages
    refuse_unfilled(session.backbone, stages, session.column_of, session.config.backbone.weights)
    assert session.budget is not None
    folder.write_json("budget", session.budget.to_dict())
    folder.log(notice.text)


def resume(
    path: Path,
    show: Show,
    watch: Stopwatch | None = None,
    place: tuple[Path | None, Path | None] = (None, None),
) -> RunSummary:
    """Continue an interrupted run; the result equals that of an uninterrupted one.

    place: folder and manifest, where the pictures lie elsewhere now.
    Raises UserError when the pictures are no longer the same.
    """
    with earlier_run(path) as folder:
        known = folder.read_json("data")
        if isinstance(known, dict) and known.get("task") == "pretraining":
            remedy = f"transferkit pretrain --resume {path}"
            raise usage_error(f"{path} is a pretraining run", "", remedy)
        before = config_of(folder)
        config = moved(before, *place, path)
        session = prepare(config, show, watch)
        if (planned := folder.read_json("budget")) is not None:
            with understood(path):
                take(session, Budget.from_dict(planned))
        if known is None:
            processes.from_first(folder.write_json, "data", data_description(session))
        else:
            require_same_pictures(known, session.index, path, COMMAND)
        if config != before:
            show(Notice(f"the pictures lie in {config.data.manifest or config.data.path} now"))
            text = to_toml(replace(before, data=config.data))
            processes.from_first(folder.write_recipe, text)
        return train(session, folder, show)


def train(session: Session, folder: RunFolder, show: Show) -> RunSummary:
    """Run the plan, from the start or from the last checkpoint, and finish the run folder."""
    try:
        with working_on(folder, COMMAND):
            return run_plan(session, folder, show)
    finally:
        session.sources.close()  # whoever waits for these caches need not wait for this process


def run_plan(session: Session, folder: RunFolder, show: Show) -> RunSummary:
    """Train stage by stage, then validate and describe the result."""
    run = make_run(session, folder)
    processes.from_first(recalibrate, session, show)
    processes.copy_first_(session.classifier)
    if continue_run(run):
        names = [*(stage.name for stage in session.plan.stages), "(all are over)"]
        show(Notice(f"resuming in stage {names[run.state.stage]} after epoch {run.state.epoch}"))
    for notice in session.sources.choose_base(session.used_plan, run.state.base):
        show(notice)
    run.state.base = session.sources.base
    try:
        for event in fit(run):
            show(event)
            log_event(folder, event)
    except DivergedForGood as problem:
        if run.state.rows:
            end_early(session, run, folder, show, problem)
        raise
    finally:  # also of what interrupts
        write_unsaved(run)
    if run.state.best[0] > -math.inf:
        processes.from_first(require_best, run)
    if run.settings.wise_ft is not None:
        with session.watch.on("evaluation"):
            for event in interpolate(run):
                show(event)
                log_event(folder, event)
        processes.from_first(folder.write_json, "interpolation", run.interpolation)
    prefer_solved(session, run)
    if run.settings.profile:
        show(Notice(f"{folder.files['profile']}: steps of each stage, for https://ui.perfetto.dev"))
    return processes.from_first(finish, session, run, folder, show)


def prefer_solved(session: Session, run: Run) -> None:
    """Let the session's classifier be the solved one, where that is the best of the run."""
    session.solved = take_solved(run)
    if session.solved is not None:
        session.classifier = session.solved.classifier


def end_early(
    session: Session, run: Run, folder: RunFolder, show: Show, problem: DivergedForGood
) -> None:
    """Finish a run that diverged for good with its best weights, and say how to go on from them."""
    if run.state.best[0] > -math.inf:
        restore(run, "best")
    prefer_solved(session, run)
    run.stopped = problem.what
    summary = processes.from_first(finish, session, run, folder, show)
    problem.where += f"\n{folder.path} ends with its best weights so far, accuracy "
    problem.where += f"{summary.metrics['accuracy']:.1%}"
    problem.remedy += f"; or go on from them: {going_on(session, run)}"


def finish(session: Session, run: Run, folder: RunFolder, show: Show) -> RunSummary:
    """Validate the best model as `predict` will run it; write model, predictions, plots, report."""
    session.sources.close()
    show(Working("validating the best model"))
    with session.watch.on("final validation"):
        validation = validate(session, folder, show)
    evaluation = validation.evaluation
    loss = validation.calibration.before.log_loss
    require_as_recorded(run, evaluation.headline["accuracy"], loss)
    description = model_description(session, validation)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in session.classifier.state_dict().items()
    }
    with session.watch.on("checkpoint"):
        folder.save_model(description, tensors)
    show(Working("drawing plots and the report"))
    with session.watch.on("plots"):
        draw(session, run, folder, validation)
    summary = summarize(session, run, folder, evaluation)
    folder.write_json("summary", summary.to_dict())
    write_report(folder, show)
    write_card(folder, evaluation.intervals)
    summary = replace(summary, files=folder.files)  # report and card are among them
    folder.write_json("summary", summary.to_dict())
    return summary


def draw(session: Session, run: Run, folder: RunFolder, validation: Validation) -> None:
    """Draw the plots of a finished run."""
    rows, calibration = run.state.rows, validation.calibration
    folder.save_plot("curves", curves(rows))
    folder.save_plot("learning_rates", learning_rates(rows))
    folder.save_plot("inside", inside(run.state.monitored, run.plan.columns))
    matrix = validation.evaluation.confusion
    folder.save_plot("confusion", confusion(matrix, session.index.classes))
    folder.save_plot("reliability", reliability(calibration.before, calibration.after))


def model_description(session: Session, validation: Validation) -> dict[str, Any]:
    """Describe the model so that it can be rebuilt, understood and trusted: model.json."""
    config, backbone = session.config, session.backbone
    return {
        "backbone": config.backbone.name,
        "image_size": config.backbone.image_size,
        "structure": make_structure(config.backbone).to_dict(),
        "head": (session.solved.design if session.solved else head_design(config)).to_dict(),
        **depths_entries(session),
        "drop_path": config.backbone.drop_path,
        "classes": list(session.index.classes),
        "preprocessing": backbone.preprocessing.to_dict(),
        "background": config.data.background,
        **session.index.reading.entries(),
        "temperature": validation.calibration.temperature,
        "started_from": backbone.weights_source,
        "license": backbone.license,
        "data": data_description(session),
        "validation": {n: validation.evaluation.headline[n] for n in ("accuracy", "log_loss")},
        "versions": {n: version(n) for n in ("transferkit", "torch", "timm", "pillow")},
    }


def depths_entries(session: Session) -> dict[str, Any]:
    """Return the entries of model.json that a solved head adds; none without one."""
    if session.solved is None:
        return {}
    classifier = session.solved.classifier
    depths = [depth.to_dict() for depth in classifier.depths]
    return {"depths": depths, "mirror": classifier.mirror}


def data_description(session: Session) -> dict[str, Any]:
    """Describe the data set of a run: enough to tell whether it has changed."""
    index = session.index
    counts = {s: len(index.of_split(s)) for s in ("train", "val", "test")}
    return {
        "fingerprint": index.fingerprint,
        "contents": index.contents,
        "pictures": len(index.paths),
        "splits": counts,
        "classes": list(index.classes),
        "counts": index.counts,
        "warnings": list(index.warnings),
        "left_out": [asdict(u) for u in index.unreadable],
    }


def log_event(folder: RunFolder, event: Event) -> None:
    """Write what a person may want to look up later into the run's log."""
    if processes.is_first() and isinstance(event, (StageStarted, StageEnded, Notice)):
        values = asdict(event)
        folder.log(f"{type(event).__name__} {json.dumps(values, default=str)}")
