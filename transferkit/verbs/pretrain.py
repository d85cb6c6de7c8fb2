"""The command `pretrain`: from pictures without labels to a run folder with a backbone."""

import shlex
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from transferkit import processes
from transferkit.backbones.synchronized import synchronize_
from transferkit.config import Config, Pretraining
from transferkit.config.methods import METHODS
from transferkit.data.addresses import fetch
from transferkit.data.framing import cut_away, framing
from transferkit.data.index import DatasetIndex, ScanOptions, scan
from transferkit.data.kept import KeptPictures
from transferkit.data.reading import reading_of
from transferkit.data.unlabeled import scan_unlabeled
from transferkit.errors import usage_error
from transferkit.evaluation.pretraining_plots import feature_map, filters, pretraining_curves
from transferkit.events import NOT_FIGURES, Notice, PretrainingEpoch, Progress, Show, Working
from transferkit.pretraining.encoder import Encoder, first_weights
from transferkit.pretraining.evaluator import Evaluator
from transferkit.pretraining.features import features_of
from transferkit.pretraining.loop import fit, split_epochs
from transferkit.pretraining.method import Method
from transferkit.pretraining.methods import check_process_count, make_method, views_of
from transferkit.pretraining.run import (
    PretrainingRun,
    PretrainingSession,
    PretrainingSettings,
    PretrainingState,
    continue_run,
)
from transferkit.pretraining.sizes import fit_size
from transferkit.pretraining.summary import PretrainingSummary
from transferkit.pretraining.views import PretrainingViews
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
from transferkit.training.divergence import DivergedForGood
from transferkit.training.fabric import make_fabric
from transferkit.training.network import make_backbone, make_structure, take_scale
from transferkit.training.optimizers import hyperparameters_of
from transferkit.training.schedules import make_schedule
from transferkit.training.settings import update_rules
from transferkit.units import parse_duration
from transferkit.verbs.report import write_report

COMMAND = "pretrain"
TASK = "pretraining"
EPOCHS = 100
SMALLEST_HOLDOUT = 0.01
"""Share of each class of a labelled set that is held out even with --holdout 0."""
MOST_ON_MAP = 200


def pretrain(config: Config, out: Path | None, show: Show) -> PretrainingSummary:
    """Pretrain as configured in a new run folder, and return the summary.

    out: the folder to create; None creates one below runs/ with the time and the pictures' name.
    """
    pictures = pictures_of(config)
    name = f"{pictures.resolve().stem}-{config.pretraining.method}"
    refuse_among_pictures(out or RUNS, replace(config, data=replace(config.data, path=pictures)))
    with new_run(out, name) as folder:
        session = prepare(absolute_paths(config), show)
        processes.from_first(describe, session, folder)
        with working_on(folder, COMMAND):
            return train(session, folder, show)


def describe(session: PretrainingSession, folder: RunFolder) -> None:
    """Write what is needed to resume a run."""
    folder.write_json("data", data_description(session))
    folder.write_recipe(to_toml(session.config))  # last: with it, the run can be resumed


def resume(path: Path, show: Show, place: Path | None = None) -> PretrainingSummary:
    """Resume an interrupted run; without a budget it ends as an uninterrupted one would have.

    place: the folder of the pictures, if they were moved. Raises UserError if they have changed.
    """
    with earlier_run(path) as folder:
        data = folder.read_json("data")
        if not isinstance(data, dict) or data.get("task") != TASK:
            remedy = f"transferkit finetune --resume {path}"
            raise usage_error(f"{path} is no pretraining run", "", remedy)
        before = config_of(folder)
        config = moved(before, place, None, path)
        session = prepare(config, show)
        require_same_pictures(data, session.index, path, COMMAND)
        if config != before:
            show(Notice(f"the pictures lie in {pictures_of(config)} now"))
            processes.from_first(folder.write_recipe, to_toml(config))
        with working_on(folder, COMMAND):
            return train(session, folder, show)


def prepare(config: Config, show: Show) -> PretrainingSession:
    """Read the pictures and build the networks; progress and notices go to `show`."""
    data, options = config.data, config.pretraining
    if config.device.precision == "16":
        raise usage_error("--precision 16 is not for pretraining", "", "use bf16 or 32")
    check_process_count(options, processes.count())
    fetch([data.path, options.probe, options.aux], show)
    fabric = make_fabric(config)
    probe_index = processes.from_first(scan_probe, config, show)
    index = processes.from_first(scan_pictures, config, show)
    config, resized = fit_size(config, index)
    show(Working(f"building {config.backbone.name}"))
    backbone = make_backbone(config, options.init == "pretrained", config.backbone.weights)
    for scale in take_scale(backbone, config.backbone.weights):
        show(scale)
    if resized:
        show(Notice(resized))
    cut = cut_away(index.sizes, backbone.preprocessing)
    warnings = [*index.warnings, *backbone.notices, *cut]
    if (count := len(index.of_split("train"))) < options.batch_size:
        size = options.batch_size
        warnings.append(f"only {count} training pictures: every batch has {count}, not {size}")
    for text in warnings:
        show(Notice(text, warning=True))
    shown, source = framing(backbone.preprocessing), backbone.weights_source
    show(Notice(f"{backbone.name}, {shown}, weights: {source}"))
    encoder = Encoder(backbone)
    method = make_method(encoder, options, config.training.seed, len(index.classes))
    method.networks.to(fabric.device)
    method.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    processes.copy_first_(method.networks)
    synchronize_(method.networks)
    views = PretrainingViews(
        views_of(encoder, options),
        backbone.preprocessing,
        config.augment.flip,
        config.training.seed,
        index.reading,
        KeptPictures(),
    )
    return PretrainingSession(config, index, backbone, encoder, method, views, fabric, probe_index)


def pictures_of(config: Config) -> Path:
    """Return the folder of the training pictures. Raises a usage error if none is given."""
    data, aux = config.data.path, config.pretraining.aux
    if aux is not None and data is not None:
        what = f"{data} has no effect: supervised learns from --aux {aux} only"
        raise usage_error(what, "", "leave it out")
    path = aux or data
    if path is None:
        raise usage_error(
            "no pictures given", "", "name a folder: transferkit pretrain my_pictures/"
        )
    return path


def scan_pictures(config: Config, show: Show) -> DatasetIndex:
    """Scan the training pictures: with classes if the method learns those, else without."""
    data, options = config.data, config.pretraining
    path, seed, reading = pictures_of(config), config.training.seed, reading_of(config.data)
    show(Working("reading pictures"))

    def progress(done: int, total: int) -> None:
        show(Progress("pictures", done, total))

    if METHODS[options.method].reads_labels:
        holdout = options.holdout or SMALLEST_HOLDOUT
        labelled = ScanOptions(val_fraction=holdout, seed=seed, strict=data.strict, reading=reading)
        return scan(path, labelled, progress)
    index = scan_unlabeled(
        path,
        holdout=options.holdout,
        by_folder=options.identities,
        seed=seed,
        strict=data.strict,
        reading=reading,
        on_progress=progress,
    )
    if options.identities and len(index.classes) < 2:
        what = f"--identities needs two folders with pictures or more; {path} has one"
        remedy = "put every identity into a separate folder, or leave --identities out"
        raise usage_error(what, "", remedy)
    return index


def scan_probe(config: Config, show: Show) -> DatasetIndex | None:
    """Scan the labelled pictures for probes, if any are given."""
    path = config.pretraining.probe
    if path is None:
        return None
    options = ScanOptions(seed=config.training.seed, reading=reading_of(config.data))
    return scan(path, options, lambda done, total: show(Progress("probe", done, total)))


def train(session: PretrainingSession, folder: RunFolder, show: Show) -> PretrainingSummary:
    """Train from the start or the last checkpoint, then write the results."""
    path = shlex.quote(str(folder.path))
    evaluator = Evaluator(session, folder, show)
    settings = loop_settings(session.config, session.method)
    state = PretrainingState(split_epochs(session.method.phases, settings.epochs))
    run = PretrainingRun(
        **vars(session), settings=settings, folder=folder, evaluate=evaluator, state=state
    )
    if continue_run(run):
        show(Notice(f"resuming after epoch {len(run.state.rows)}"))
    try:
        for event in fit(run):
            show(event)
            if processes.is_first() and isinstance(event, (PretrainingEpoch, Notice)):
                folder.log(f"{type(event).__name__} {asdict(event)}")
    except DivergedForGood as problem:
        if run.state.rows and continue_run(run):  # the weights that were saved last
            processes.from_first(finish, run, evaluator, problem.what)
            problem.remedy += f"; or take what was learned: transferkit finetune DATA --from {path}"
        raise
    return processes.from_first(finish, run, evaluator)


def loop_settings(config: Config, method: Method) -> PretrainingSettings:
    """Return the part of the configuration that the loop reads."""
    options = config.pretraining
    rules = update_rules(config)
    takes = hyperparameters_of(config.optimizer.name)
    has_momentum = bool(takes & {"momentum", "beta1"})
    return PretrainingSettings(
        batch_size=options.batch_size,
        epochs=options.epochs or EPOCHS,
        budget_s=parse_duration(options.budget) if options.budget else None,
        lr=options.lr or method.lr,
        weight_decay=method.weight_decay if options.weight_decay is None else options.weight_decay,
        schedule=make_schedule(config.schedule, options.warmup, has_momentum),
        optimizer=rules.optimizer,
        hyper={**{n: v for n, v in method.hyper.items() if n in takes}, **rules.hyper},
        clipping=rules.clipping,
        drop_last=METHODS[options.method].drops_last,
        seed=config.training.seed,
    )


def finish(run: PretrainingRun, evaluator: Evaluator, stopped: str = "") -> PretrainingSummary:
    """Write the backbone, the plots, the summary and the report. stopped: see the summary."""
    started = time.perf_counter()
    evaluator.show(Working("drawing plots and the report"))
    backbone, folder = run.backbone, run.folder
    if run.method.finish is not None:
        run.method.finish()
    folder.save_model(model_description(run), backbone.model.state_dict())
    folder.save_plot("curves", pretraining_curves(run.state.rows))
    first = first_weights(backbone)
    if first is not None and (figure := filters(first)) is not None:
        folder.save_plot("filters", figure)
    images = evaluator.sample()[:MOST_ON_MAP]
    if len(images) >= 5:
        features = features_of(run.encoder, iter(images.split(128)), run.device)
        folder.save_plot("feature_map", feature_map(features, images.numpy()))
    last = run.state.rows[-1].items()
    summary = PretrainingSummary(
        run=folder.path,
        method=run.config.pretraining.method,
        backbone=backbone.name,
        pictures=len(run.index.of_split("train")),
        held_out=len(run.index.of_split("val")),
        epochs=len(run.state.rows),
        seconds=run.state.seconds + time.perf_counter() - started,
        figures={n: v for n, v in last if isinstance(v, float) and n not in NOT_FIGURES},
        files=folder.files,
        stopped=stopped,
    )
    folder.write_json("summary", summary.to_dict())
    write_report(folder, evaluator.show)
    summary = replace(summary, files=folder.files)  # the report is one of them
    folder.write_json("summary", summary.to_dict())
    return summary


def model_description(session: PretrainingSession) -> dict[str, Any]:
    """Describe the backbone so that it can be rebuilt and traced: model.json."""
    config, backbone = session.config, session.backbone
    return {
        "task": TASK,
        "method": config.pretraining.method,
        "backbone": config.backbone.name,
        "image_size": config.backbone.side_px,
        "structure": make_structure(config.backbone).to_dict(),
        "preprocessing": backbone.preprocessing.to_dict(),
        "background": config.data.background,
        **session.index.reading.entries(),
        "started_from": backbone.weights_source,
        "license": backbone.license,
        "data": data_description(session),
        "versions": {n: version(n) for n in ("transferkit", "torch", "timm", "pillow", "lightly")},
    }


def data_description(session: PretrainingSession) -> dict[str, Any]:
    """Describe the pictures of a run, so that changes can be detected: data.json."""
    index = session.index
    return {
        "task": TASK,
        "fingerprint": index.fingerprint,
        "contents": index.contents,
        "pictures": len(index.paths),
        "splits": {s: len(index.of_split(s)) for s in ("train", "val")},
        "warnings": list(index.warnings),
        "left_out": [asdict(u) for u in index.unreadable],
    }


def resolve(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill in a method's default backbone, before validation."""
    method = raw.get("pretraining", {}).get("method", Pretraining.method)
    if method in METHODS:
        backbone = raw.setdefault("backbone", {})
        backbone.setdefault("name", METHODS[method].backbone)
        if method == "rbm" and backbone["name"] == "mlp":
            backbone.setdefault("activation", "logistic")
    return raw
