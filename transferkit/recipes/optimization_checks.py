"""Options of the optimisation that contradict each other, or would have no effect."""

import itertools
from dataclasses import fields
from typing import Any

from transferkit.config import Config, OptimizerOptions, Training
from transferkit.config.optimization import SCHEDULE_USES
from transferkit.units import parse_duration


def optimization_problems(config: Config) -> list[str]:
    """Find what is wrong in the optimiser, schedule, clipping and regularisation together."""
    takes, found = optimizer_problems(config)
    found += schedule_problems(config, takes)
    clipping = {name: value for name, value in vars(config.clipping).items() if value}
    if len(clipping) > 1:
        keys = " and ".join(f"clipping.{name}" for name in clipping)
        found.append(f"{keys} exclude each other: choose one")
    return found + rate_problems(config) + regularization_problems(config) + shard_problems(config)


def rate_problems(config: Config) -> list[str]:
    """Say where a rate that is to be found is given already."""
    if config.training.lr != "auto":
        return []
    trained = [stage for stage in config.stages if not stage.solves]
    if config.stages and not trained:
        return ["training.lr = auto has no effect: every stage is solved without steps"]
    if trained and trained[0].lr is not None:
        return [
            "training.lr = auto has no effect: it finds the first stage's rate, "
            "and that stage has one of its own"
        ]
    unfreezes = not config.head_trains_first
    if unfreezes and config.training.unfrozen_lr != Training().unfrozen_lr:
        return [
            "training.unfrozen_lr has no effect with training.lr = auto, which finds it: the first "
            "stage unfreezes blocks"
        ]
    return []


def changed(section: Any) -> list[str]:
    """Return the fields of a section that differ from their defaults."""
    return [f.name for f in fields(section) if getattr(section, f.name) != f.default]


def optimizer_problems(config: Config) -> tuple[set[str], list[str]]:
    """Return which hyperparameters the optimiser takes, and what is wrong with it."""
    options = config.optimizer
    given = [name for name in changed(options) if name != "name"]
    if options == OptimizerOptions():
        return {"beta1", "beta2", "eps"}, []  # the usual case loads no torch
    from transferkit.training.optimizers import hyperparameters_of

    try:
        takes = hyperparameters_of(options.name)
    except ValueError as error:
        return set(), [f"optimizer.name {error}, not {options.name!r}"]
    wrong = [name for name in given if name not in takes]
    plain = options.name == "sgd"
    return takes, [
        f"optimizer.{name} has no effect with optimizer.name = {options.name}: "
        + ("use --optimizer momentum" if plain and name == "momentum" else "leave it out")
        for name in wrong
    ]


def schedule_problems(config: Config, takes: set[str]) -> list[str]:
    """Say what is wrong with the schedule. takes: hyperparameters of the optimiser."""
    options = config.schedule
    uses = {"name", "scope", "every", *SCHEDULE_USES.get(options.name, ())}
    found = [
        f"schedule.{name} has no effect with schedule.name = {options.name}: leave it out"
        for name in changed(options)
        if name not in uses
    ]
    if options.name == "performance" and options.every != "step":
        found.append("schedule.every has no effect with performance, which moves after epochs")
    stops = options.scope == "stage" and not config.averaging.swa and not config.training.budget
    if options.name == "performance" and stops:
        needed, patience = options.patience + 2, config.training.patience
        if patience < needed:
            found.append(
                f"schedule.patience {options.patience} never acts: early stopping ends a stage "
                f"after training.patience {patience} epochs without gain; set that to {needed} or "
                "more (--patience), or lower --plateau-patience"
            )
    if options.name == "1cycle":
        momentums = {"momentum_low", "momentum_high"} & set(changed(options))
        if momentums and not takes & {"momentum", "beta1"}:
            found += [
                f"schedule.{name} has no effect: optimizer.name = {config.optimizer.name} has no "
                "momentum to cycle"
                for name in sorted(momentums)
            ]
        found += [
            f"optimizer.{name} has no effect with schedule.name = 1cycle, which moves it between "
            "schedule.momentum_low and schedule.momentum_high"
            for name in ("momentum", "beta1")
            if getattr(config.optimizer, name) is not None
        ]
        if options.momentum_low > options.momentum_high:
            found.append("schedule.momentum_low must be at most schedule.momentum_high")
    edges = options.boundaries
    if any(left >= right for left, right in itertools.pairwise(edges)):
        found.append(f"schedule.boundaries must rise, not {list(edges)}")
    if len(options.values) != len(edges) + 1:
        found.append(
            f"schedule.values must be one more than schedule.boundaries: "
            f"{len(options.values)} for {len(edges)}"
        )
    return found


def regularization_problems(config: Config) -> list[str]:
    """Say which penalties and limits have nothing to act on."""
    options, found = config.regularization, []
    if options.max_norm == 0 and options.max_norm_of != "head":
        found.append("regularization.max_norm_of has no effect without regularization.max_norm")
    if options.l2_sp and not config.backbone.pretrained:
        found.append("regularization.l2_sp needs pretrained weights to draw to (--pretrained)")
    separate = (options.backbone_weight_decay, options.head_weight_decay)
    if config.training.weight_decay is not None and None not in separate:
        found.append(
            "training.weight_decay has no effect beside regularization.backbone_weight_decay and "
            "regularization.head_weight_decay: leave it out"
        )
    if config.averaging.ema and config.averaging.swa:
        found.append("averaging.ema and averaging.swa exclude each other: choose one")
    if config.averaging.swa and config.training.patience != Training().patience:
        found.append(
            "training.patience has no effect with averaging.swa, whose stages run all their epochs"
        )
    found += interpolation_problems(config)
    if config.trains_head_alone:
        found += [
            f"regularization.{name} has no effect: every stage trains the head alone"
            for name in ("backbone_l1", "backbone_l2", "backbone_weight_decay", "l2_sp")
            if getattr(options, name)
        ]
        if config.training.batchnorm == "frozen":
            found.append(
                "training.batchnorm frozen has no effect: every stage trains the head alone, and "
                "frozen blocks keep their statistics anyway"
            )
        if config.clipping.adaptive and not config.head.layers:
            found.append(
                "clipping.adaptive has no effect: it spares the last layer, and no other trains"
            )
    return found


def shard_problems(config: Config) -> list[str]:
    """Say what needs whole weights or gradients, of which fsdp leaves each process a part."""
    if config.device.strategy != "fsdp":
        return []
    looks_at_wholes = {
        "averaging": ("ema",),
        "clipping": ("value", "adaptive"),
        "regularization": (
            *("backbone_l1", "backbone_l2", "head_l1", "head_l2", "l2_sp"),
            "max_norm",
        ),
    }
    keys = [
        f"{section}.{name}"
        for section, names in looks_at_wholes.items()
        for name in names
        if getattr(getattr(config, section), name)
    ]
    if config.optimizer.name.startswith("timm:"):
        keys.append(f"optimizer.name = {config.optimizer.name}")
    if config.device.precision == "16":
        keys.append("device.precision = 16")
    if config.device.compile != "off":
        keys.append(f"device.compile = {config.device.compile}")
    return [f"{key} does not work with device.strategy = fsdp: leave one out" for key in keys]


def interpolation_problems(config: Config) -> list[str]:
    """Say where there is nothing to interpolate between."""
    if config.averaging.wise_ft is None:
        return []
    if config.trains_head_alone:
        return ["averaging.wise_ft has no effect: every stage trains the head alone"]
    if not config.head_trains_first:
        return [
            "averaging.wise_ft needs a first stage that trains the head alone on pretrained "
            "blocks: it goes back towards the weights after that stage"
        ]
    return []


def budget_problems(config: Config) -> list[str]:
    """Say what a budget of time decides itself, or keeps no time for."""
    training, usual = config.training, Training()
    if training.budget is None:
        return []
    found = []
    try:
        parse_duration(training.budget)
    except ValueError as error:
        found.append(f"training.budget {error}")
    if config.stages:
        found.append(
            "stages have no effect with training.budget, which chooses them: leave one out"
        )
    found += [
        f"training.{name} has no effect with training.budget, which chooses it: leave one out"
        for name in ("depth", "head_epochs", "block_epochs", "full_epochs")
        if getattr(training, name) != getattr(usual, name)
    ]
    if config.averaging.wise_ft is not None:
        found.append("averaging.wise_ft would go on after the time of training.budget")
    if config.averaging.swa:
        found.append("averaging.swa must know the last epoch, which training.budget does not")
    if config.device.compile != "off":
        found.append("device.compile takes a time that training.budget cannot foresee")
    return found
