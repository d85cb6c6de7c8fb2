"""Options of the training: the stages, the optimisation, the device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.methods import METHODS, MethodName
from transferkit.config.option import Option, Section

USUAL_LR = 3e-3
"""Of the head alone; also what is planned with while `auto` is not resolved yet."""

USUAL_BATCH = 32


@dataclass(frozen=True)
class Stage(Section):
    """One row of the plan: how far to unfreeze, for how long, at which rates.

    unfreeze: "head", a number of block groups from the top, "all", or "solve": no gradient steps,
    but one closed-form solve of a linear head over several depths.
    epochs: the most epochs; early stopping may end it before. A solve has 1.
    lr: the head's peak learning rate; None takes the training section's.
    decay: each deeper block group learns at the rate above it times this.
    if_improving: run only when the stage before improved validation by `training.min_delta`.
    image_size: of a solve, the input side in pixels; None is the run's.
    The first stage may be a method of pretraining; budget: its time in place of epochs, e.g. 20m.
    """

    unfreeze: Annotated[int, Ge(1)] | Literal["head", "all", "solve"] | MethodName
    epochs: Annotated[int, Ge(1), Le(10_000)]
    lr: Annotated[float, Gt(0)] | None = None
    decay: Annotated[float, Gt(0), Le(1)] | None = None
    if_improving: bool = False
    image_size: Annotated[int, Ge(16), Le(2048)] | None = None
    budget: str | None = None

    @property
    def pretrains(self) -> bool:
        """Whether the stage learns from pictures without their labels."""
        return self.unfreeze in METHODS

    @property
    def solves(self) -> bool:
        """Whether the stage is a closed-form solve."""
        return self.unfreeze == "solve"

    @property
    def text(self) -> str:
        """The stage as `--stages` takes it."""
        if self.solves:
            return "solve" if self.image_size is None else f"solve@{self.image_size}"
        if self.pretrains:
            return f"{self.unfreeze}:{self.budget or self.epochs}"
        rate = "" if self.lr is None else f"@{self.lr:g}"
        decay = "" if self.decay is None else f"~{self.decay:g}"
        return f"{self.unfreeze}:{self.epochs}{rate}{decay}{'?' * self.if_improving}"


@dataclass(frozen=True)
class Solve(Section):
    """The closed-form stages: ridge regression on features of several depths."""

    depths: Annotated[
        Annotated[int, Ge(1)] | Literal["auto", "last"],
        Option("--depths", "Depths of the backbone to solve on; auto: leave-one-out chooses."),
    ] = "auto"
    penalty: Annotated[
        Annotated[float, Gt(0), Le(1e6)] | Literal["auto"],
        Option("--penalty", "Ridge penalty of a solve; auto: leave-one-out chooses."),
    ] = "auto"
    mirror: Annotated[
        Literal["auto", "on", "off"],
        Option("--mirror", "Average features with the mirror image's; auto: where that helps."),
    ] = "off"
    extends: Annotated[
        tuple[Path, ...],
        Option("--extends", "Runs whose solve is extended, as the commands extend and merge do."),
    ] = ()

    @property
    def mirrors(self) -> bool:
        """Whether features are averaged with the mirror image's."""
        return self.mirror == "on"


@dataclass(frozen=True)
class Training(Section):
    """The optimisation: rates, regularisation, when to stop."""

    lr: Annotated[
        Annotated[float, Gt(0), Le(10)] | Literal["auto"],
        Option("--lr", "Peak learning rate while only the head trains; auto: find-lr.", usual=True),
    ] = USUAL_LR
    unfrozen_lr: Annotated[
        float,
        Gt(0),
        Le(10),
        Option("--unfrozen-lr", "Peak learning rate of the head once blocks are unfrozen."),
    ] = 1e-3
    block_decay: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Option(
            "--block-decay", "Each block group's rate relative to the one above.", "0.5; random 1"
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        Ge(0),
        Option(
            "--weight-decay", "Decoupled weight decay, except on biases and norms.", "0.05; adam 0"
        ),
    ] = None
    batch_size: Annotated[
        Annotated[int, Ge(1)] | Literal["auto"],
        Option("--batch-size", "Pictures per step; auto: by the size of the data set.", usual=True),
    ] = USUAL_BATCH
    accumulate: Annotated[
        Annotated[int, Ge(1)] | Literal["auto"] | None,
        Option("--accumulate", "Micro-batches per batch; auto: as many as needed.", "1"),
    ] = None
    checkpoint_activations: Annotated[
        bool,
        Option(
            "--checkpoint-activations/--no-checkpoint-activations",
            "Recompute activations to save memory.",
        ),
    ] = False
    warmup: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--warmup", "Share of a stage's steps in which the rate warms up.", "0.1; 1cycle 0"),
    ] = None
    label_smoothing: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--label-smoothing", "Share of each target that is spread over all classes."),
    ] = 0.1
    head_epochs: Annotated[
        int,
        Ge(1),
        Option("--head-epochs", "Default plan: epochs of the stage that trains only the head."),
    ] = 30
    block_epochs: Annotated[
        int, Ge(1), Option("--block-epochs", "Default plan: epochs of each unfreezing stage.")
    ] = 12
    full_epochs: Annotated[
        int,
        Ge(0),
        Option("--full-epochs", "Default plan: epochs with everything unfrozen; 0: none."),
    ] = 0
    depth: Annotated[
        int, Ge(0), Option("--depth", "Default plan: number of unfreezing stages after the head.")
    ] = 2
    patience: Annotated[
        int,
        Ge(1),
        Option("--patience", "Early stopping: epochs without improvement before a stage ends."),
    ] = 8
    min_delta: Annotated[
        float, Ge(0), Option("--min-delta", "Early stopping: smallest gain that is an improvement.")
    ] = 0.0
    restore_best: Annotated[
        bool,
        Option("--restore-best/--no-restore-best", "Keep each stage's best weights, not its last."),
    ] = True
    metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "loss"],
        Option("--metric", "Metric for early stopping and for choosing the best weights."),
    ] = "accuracy"
    on_divergence: Annotated[
        Literal["stop", "rewind"],
        Option("--on-divergence", "If the loss is NaN: stop, or go back and halve the rate."),
    ] = "stop"
    batchnorm: Annotated[
        Literal["train", "frozen", "recalibrate"],
        Option("--batchnorm", "Backbone's statistics: updated, frozen, or measured first."),
    ] = "train"
    budget: Annotated[
        str | None,
        Option(
            "--budget",
            "Time limit for the whole command, e.g. 10m; chooses the stages.",
            usual=True,
        ),
    ] = None
    profile: Annotated[
        bool, Option("--profile", "Profile a few training steps of each stage, for a trace viewer.")
    ] = False
    seed: Annotated[
        int,
        Ge(0),
        Lt(2**32),
        Option("--seed", "Random seed; the same seed repeats a run exactly.", usual=True),
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
        Literal["auto", "cpu", "cuda", "mps"],
        Option("--device", "Device to train on; auto: a GPU if there is one.", usual=True),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "32", "bf16", "16"],
        Option("--precision", "auto: bf16 mixed precision on a GPU, else 32-bit."),
    ] = "auto"
    engine: Annotated[
        Literal["auto", "torch", "onnx"],
        Option("--engine", "Engine for frozen blocks; auto: ONNX Runtime on a CPU, else PyTorch."),
    ] = "auto"
    strategy: Annotated[
        Literal["ddp", "fsdp"],
        Option("--strategy", "Replicate the trained weights on every process, or shard them."),
    ] = "ddp"
    compile: Annotated[
        Literal["off", "on", "auto"],
        Option("--compile", "torch.compile; auto: in long stages, if measured to be faster."),
    ] = "off"
