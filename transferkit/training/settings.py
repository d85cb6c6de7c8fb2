"""What the loop needs of the configuration, as objects."""

from dataclasses import asdict, dataclass, field

from transferkit.config import Config, Solve
from transferkit.training.optimizers import hyperparameters_of
from transferkit.training.regularizers import Strengths
from transferkit.training.schedules import Schedule, make_schedule
from transferkit.training.updates import Rules

WEIGHT_DECAY = 0.05
"""Without one from the configuration; but 0 where it would join the gradient (adam)."""


@dataclass(frozen=True)
class Settings:
    """What the loop needs of the configuration.

    metric: "accuracy", "balanced_accuracy", "loss". restore_best: keep the best weights of a stage,
    not its last. on_divergence: "stop" or "rewind".
    wise_ft: share of the way to interpolate, or "auto"; None for none. accumulate: parts that a
    batch is computed in. profile: record some steps. strategy: of several processes, "ddp" or
    "fsdp". compile: "on", "off" or "auto", see `Forward`. head_dropout: before the classifier.
    """

    batch_size: int
    patience: int
    min_delta: float
    metric: str
    restore_best: bool
    balance: str
    seed: int
    schedule: Schedule
    rules: Rules
    on_divergence: str = "stop"
    wise_ft: float | str | None = None
    accumulate: int = 1
    profile: bool = False
    strategy: str = "ddp"
    compile: str = "off"
    solve: Solve = field(default_factory=Solve)
    head_dropout: float = 0.0


def loop_settings(config: Config) -> Settings:
    """Pick what the loop needs from the configuration."""
    training = config.training
    takes = hyperparameters_of(config.optimizer.name)
    return Settings(
        batch_size=training.whole_batch_size,
        patience=training.patience,
        min_delta=training.min_delta,
        metric=training.metric,
        restore_best=training.restore_best,
        balance=config.data.balance,
        seed=training.seed,
        schedule=make_schedule(
            config.schedule, training.warmup, bool(takes & {"momentum", "beta1"})
        ),
        rules=update_rules(config),
        on_divergence=training.on_divergence,
        wise_ft=config.averaging.wise_ft,
        accumulate=training.accumulate if isinstance(training.accumulate, int) else 1,
        profile=training.profile,
        strategy=config.device.strategy,
        compile=config.device.compile,
        solve=config.solve,
        head_dropout=config.head.dropout[-1],
    )


def update_rules(config: Config) -> Rules:
    """Pick how a gradient becomes a step."""
    options, penalties = config.optimizer, config.regularization
    hyper = {k: v for k, v in asdict(options).items() if k != "name" and v is not None}
    clipping = next(((k, v) for k, v in asdict(config.clipping).items() if v), None)
    decay = config.training.weight_decay
    if decay is None:
        decay = 0.0 if options.name == "adam" else WEIGHT_DECAY
    separate = (penalties.backbone_weight_decay, penalties.head_weight_decay)
    backbone, head = (decay if own is None else own for own in separate)
    return Rules(
        options.name,
        hyper,
        (backbone, head),
        clipping,
        Strengths(
            penalties.backbone_l1,
            penalties.backbone_l2,
            penalties.head_l1,
            penalties.head_l2,
            penalties.l2_sp,
        ),
        (penalties.max_norm_of, penalties.max_norm) if penalties.max_norm else None,
        config.averaging.ema,
        config.averaging.swa,
    )
