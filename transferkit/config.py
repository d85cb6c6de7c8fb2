"""Every option of a fine-tuning run, once: its type, range, default, flag and explanation.

The command line, recipes, `--set`, `--help` and the checks all read these dataclasses. A field is
`Annotated[type, constraints..., Option(flag, help)]`; validation by pydantic happens in
`transferkit.recipes`, so that importing this module costs nothing.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class Option:
    """How a field looks on the command line. flag: long option; help: one sentence."""

    flag: str
    help: str


class Section:
    """Marks a dataclass as a recipe table; unknown keys and NaN or infinite numbers are refused."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class Data(Section):
    """Where the pictures are and how they are read. path: the folder; DATA on the command line."""

    path: Path | None = None
    manifest: Annotated[
        Path | None,
        Option("--manifest", "CSV with columns path,label[,split] in place of folders."),
    ] = None
    val_fraction: Annotated[
        float,
        Gt(0),
        Lt(1),
        Option("--val-fraction", "Share held out for validation when DATA has no val/ folder."),
    ] = 0.2
    exclude: Annotated[
        tuple[str, ...], Option("--exclude", "Classes to leave out, separated by commas.")
    ] = ()
    strict: Annotated[
        bool, Option("--strict/--no-strict", "Stop on an unreadable file; else it is left out.")
    ] = False
    background: Annotated[
        str, Option("--background", "Colour behind transparent pictures: a name or #rrggbb.")
    ] = "white"
    max_pixels: Annotated[
        int, Ge(1), Option("--max-pixels", "Pictures with more pixels than this are not decoded.")
    ] = 100_000_000
    balance: Annotated[
        Literal["none", "sampler", "loss"],
        Option(
            "--balance", "Against class imbalance: draw rare classes more often, or weigh them."
        ),
    ] = "none"


@dataclass(frozen=True)
class BackboneOptions(Section):
    """The pretrained network under the new head."""

    name: Annotated[str, Option("--backbone", "Any timm model; see `transferkit models`.")] = (
        "tf_efficientnet_lite0"
    )
    pretrained: Annotated[
        bool, Option("--pretrained/--no-pretrained", "Start from pretrained or random weights.")
    ] = True
    weights: Annotated[
        Path | None, Option("--weights", "Weights file: .safetensors, or a torch state dict.")
    ] = None
    image_size: Annotated[
        int | None,
        Ge(16),
        Le(2048),
        Option("--image-size", "Input side in pixels; else the model's."),
    ] = None
    drop_path: Annotated[
        float, Ge(0), Lt(1), Option("--drop-path", "Stochastic depth rate in unfrozen blocks.")
    ] = 0.0


@dataclass(frozen=True)
class HeadOptions(Section):
    """The new layers on top of the backbone."""

    layers: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Option("--head-layers", "Widths of new hidden layers before the classifier, e.g. 256,64."),
    ] = ()
    activation: Annotated[
        Literal["relu", "gelu", "silu", "selu", "elu", "tanh"],
        Option("--head-activation", "Activation of the hidden layers."),
    ] = "relu"
    dropout: Annotated[
        float, Ge(0), Lt(1), Option("--dropout", "Dropout before each new layer.")
    ] = 0.2


@dataclass(frozen=True)
class Augmentation(Section):
    """How training pictures vary."""

    level: Annotated[
        Literal["none", "light", "medium", "strong"],
        Option("--augment", "How strongly training pictures are varied."),
    ] = "strong"
    flip: Annotated[
        bool, Option("--flip/--no-flip", "Mirror training pictures; not for text, digits, sides.")
    ] = True
    views: Annotated[
        int | None,
        Ge(0),
        Le(64),
        Option(
            "--views",
            "Augmented views per picture beside the clean one [cached: 3 to 8; live: new].",
        ),
    ] = None
    mixup: Annotated[
        float, Ge(0), Option("--mixup", "Beta parameter of mixup; 0 is off, 0.2 is usual.")
    ] = 0.0
    cutmix: Annotated[
        float, Ge(0), Option("--cutmix", "Beta parameter of CutMix; 0 is off, 1 is usual.")
    ] = 0.0


@dataclass(frozen=True)
class Cache(Section):
    """Activations at the frozen boundary, computed once and kept on disk."""

    enabled: Annotated[
        bool, Option("--cache/--no-cache", "Compute frozen blocks once, or in every epoch.")
    ] = True
    budget: Annotated[
        str, Option("--cache-budget", "Most disk space for the run's cache, e.g. 500MB or 8GB.")
    ] = "8GB"
    dir: Annotated[
        Path | None, Option("--cache-dir", "Where caches lie [~/.cache/transferkit].")
    ] = None
    dtype: Annotated[
        Literal["float16", "float32"], Option("--cache-dtype", "Precision of cached activations.")
    ] = "float16"


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
        float, Gt(0), Le(10), Option("--lr", "Peak learning rate of the head while alone.")
    ] = 3e-3
    unfrozen_lr: Annotated[
        float, Gt(0), Le(10), Option("--unfrozen-lr", "Peak head rate once blocks are unfrozen.")
    ] = 1e-3
    block_decay: Annotated[
        float,
        Gt(0),
        Le(1),
        Option(
            "--block-decay", "Each deeper block group learns at this fraction of the one above."
        ),
    ] = 0.5
    weight_decay: Annotated[
        float, Ge(0), Option("--weight-decay", "Decoupled weight decay; not on biases and norms.")
    ] = 0.05
    batch_size: Annotated[int, Ge(1), Option("--batch-size", "Pictures per optimisation step.")] = (
        32
    )
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
    metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "loss"],
        Option("--metric", "What early stopping and the choice of the best weights look at."),
    ] = "accuracy"
    seed: Annotated[
        int, Ge(0), Lt(2**32), Option("--seed", "Same seed, same machine: same run.")
    ] = 0


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


@dataclass(frozen=True)
class Config:
    """A whole run. `stages` replaces the default plan; a recipe file has the same shape."""

    data: Data = field(default_factory=Data)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    augment: Augmentation = field(default_factory=Augmentation)
    cache: Cache = field(default_factory=Cache)
    training: Training = field(default_factory=Training)
    device: Device = field(default_factory=Device)
    stages: tuple[Stage, ...] = ()

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True)
class OptionField:
    """A command-line option as the table of all options has it. key: e.g. `training.lr`."""

    key: str
    annotation: Any
    default: Any
    option: Option
    constraints: tuple[Any, ...] = ()


def option_fields() -> list[OptionField]:
    """List every option of `Config` that has a flag, in the order of the help page."""
    found = []
    for section_field in fields(Config):
        section = get_type_hints(Config)[section_field.name]
        if not is_dataclass(section):
            continue
        hints = get_type_hints(section, include_extras=True)
        for item in fields(section):
            if get_origin(hints[item.name]) is not Annotated:
                continue
            annotation, *extras = get_args(hints[item.name])
            option = next((e for e in extras if isinstance(e, Option)), None)
            if option is not None:
                key = f"{section_field.name}.{item.name}"
                bounds = tuple(e for e in extras if e is not option)
                found.append(OptionField(key, annotation, item.default, option, bounds))
    return found
