"""Options of the training: the stages, the optimisation, the device."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.option import Option, Section

USUAL_LR = 3e-3
"""Of the head alone; also what is planned with while `auto` is not resolved yet."""

USUAL_BATCH = 32


@dataclass(frozen=True)
class Stage(Section):
    """One row of the plan: how far to unfreeze, for how long, at which rates.

    unfreeze: "head", a number of block groups from the top, or "all".
    epochs: the most epochs; early stopping may end it before.
    lr: the head's peak learning rate; None takes the training section's.
    decay: each deeper block group learns at the rate above it times this.
    if_improving: run only when the stage before improved validation by `training.min_delta`.
    """

    unfreeze: Annotated[int, Ge(1)] | Literal["head", "all"]
    epochs: Annotated[int, Ge(1), Le(10_000)]
    lr: Annotated[float, Gt(0)] | None = None
    decay: Annotated[float, Gt(0), Le(1)] | None = None
    if_improving: bool = False


@dataclass(frozen=True)
class Training(Section):
    """The optimisation: rates, regularisation, when to stop."""

    lr: Annotated[
        Annotated[float, Gt(0), Le(10)] | Literal["auto"],
        Option("--lr", "Peak learning rate of the head while alone; auto: see find-lr."),
    ] = USUAL_LR
    unfrozen_lr: Annotated[
        float, Gt(0), Le(10), Option("--unfrozen-lr", "Peak head rate once blocks are unfrozen.")
    ] = 1e-3
    block_decay: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Option(
            "--block-decay",
            "Each deeper block group learns at this fraction of the one above [0.5; random: 1].",
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        Ge(0),
        Option("--weight-decay", "Decoupled; not on biases and norms [0.05; with adam L2, 0]."),
    ] = None
    batch_size: Annotated[
        Annotated[int, Ge(1)] | Literal["auto"],
        Option("--batch-size", "Pictures per optimisation step; auto: by how many there are."),
    ] = USUAL_BATCH
    accumulate: Annotated[
        Annotated[int, Ge(1)] | Literal["auto"] | None,
        Option(
            "--accumulate",
            "Parts that a batch is computed in, to save memory; auto: as needed [1].",
        ),
    ] = None
    checkpoint_activations: Annotated[
        bool,
        Option(
            "--checkpoint-activations/--no-checkpoint-activations",
            "Compute unfrozen blocks twice instead of keeping their activations: less memory.",
        ),
    ] = False
    warmup: Annotated[
        float, Ge(0), Lt(1), Option("--warmup", "Share of a stage's steps with a rising rate.")
    ] = 0.1
    label_smoothing: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--label-smoothing", "Share of the target spread over all classes."),
    ] = 0.1
    head_epochs: Annotated[
        int, Ge(1), Option("--head-epochs", "Default plan: epochs with the head alone.")
    ] = 30
    block_epochs: Annotated[
        int, Ge(1), Option("--block-epochs", "Default plan: epochs at each unfreezing step.")
    ] = 12
    full_epochs: Annotated[
        int,
        Ge(0),
        Option("--full-epochs", "Default plan: epochs with all unfrozen; 0 leaves it out."),
    ] = 2
    depth: Annotated[
        int, Ge(0), Option("--depth", "Default plan: how many unfreezing steps after the head.")
    ] = 2
    patience: Annotated[
        int, Ge(1), Option("--patience", "Epochs of a stage without a better value before it ends.")
    ] = 8
    min_delta: Annotated[
        float, Ge(0), Option("--min-delta", "Smallest gain in the metric that counts as better.")
    ] = 0.0
    restore_best: Annotated[
        bool,
        Option(
            "--restore-best/--no-restore-best", "Keep a stage's best weights, or its last ones."
        ),
    ] = True
    metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "loss"],
        Option("--metric", "What early stopping and the choice of the best weights look at."),
    ] = "accuracy"
    on_divergence: Annotated[
        Literal["stop", "rewind"],
        Option(
            "--on-divergence",
            "When the loss is NaN or infinite: stop, or go back and halve the learning rate.",
        ),
    ] = "stop"
    batchnorm: Annotated[
        Literal["train", "frozen", "recalibrate"],
        Option(
            "--batchnorm",
            "The backbone's batch-norm statistics: of each batch, kept, or measured anew.",
        ),
    ] = "train"
    budget: Annotated[
        str | None,
        Option("--budget", "Time of the whole command, e.g. 90s, 10m, 1h30m; sets the stages."),
    ] = None
    profile: Annotated[
        bool, Option("--profile", "Record a few training steps of each stage for a trace viewer.")
    ] = False
    seed: Annotated[
        int, Ge(0), Lt(2**32), Option("--seed", "Same seed, same machine: same run.")
    ] = 0

    @property
    def whole_batch_size(self) -> int:
        """Pictures per step; with `auto` the usual number, until the pictures are counted."""
        return USUAL_BATCH if self.batch_size == "auto" else self.batch_size

    @property
    def head_lr(self) -> float:
        """The peak rate of the head alone; with `auto` the usual one, until a test has found it."""
        return USUAL_LR if self.lr == "auto" else self.lr


@dataclass(frozen=True)
class Device(Section):
    """What the run computes on."""

    accelerator: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Option("--device", "Where to train.")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "32", "bf16", "16"],
        Option("--precision", "Arithmetic of training: auto is 32 on CPU, mixed bf16 on GPU."),
    ] = "auto"
    engine: Annotated[
        Literal["auto", "torch", "onnx"],
        Option("--engine", "What runs the frozen trunk: auto is ONNX Runtime on CPU, else torch."),
    ] = "auto"
    strategy: Annotated[
        Literal["ddp", "fsdp"],
        Option(
            "--strategy",
            "Of several processes: each learns all weights, or holds a part of what learns.",
        ),
    ] = "ddp"
    compile: Annotated[
        Literal["off", "on", "auto"],
        Option(
            "--compile",
            "Train through torch.compile: auto where a stage is long, and where it is then faster.",
        ),
    ] = "off"
