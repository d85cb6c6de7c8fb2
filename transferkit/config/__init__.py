"""Every option of a run, once: its type, range, default, flag and explanation.

The command line, recipes, `--set`, `--help` and the checks all read these dataclasses. A field is
`Annotated[type, constraints..., Option(flag, help)]`; validation by pydantic happens in
`transferkit.recipes.reading`, so that importing this module costs nothing.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from transferkit.config.data import Augmentation, Cache, Data
from transferkit.config.network import BackboneOptions, HeadOptions
from transferkit.config.optimization import Clipping, OptimizerOptions, ScheduleOptions
from transferkit.config.option import Option, Section
from transferkit.config.predict import Predict
from transferkit.config.pretraining import Pretraining
from transferkit.config.regularization import Averaging, Regularization
from transferkit.config.training import Device, Solve, Stage, Training

__all__ = [
    "Augmentation",
    "Averaging",
    "BackboneOptions",
    "Cache",
    "Clipping",
    "Config",
    "Data",
    "Device",
    "HeadOptions",
    "OptimizerOptions",
    "Option",
    "OptionField",
    "Predict",
    "Pretraining",
    "Regularization",
    "ScheduleOptions",
    "Section",
    "Solve",
    "Stage",
    "Training",
    "option_fields",
    "words_beside_a_number",
]


@dataclass(frozen=True)
class Config:
    """A whole run. `stages` replaces the default plan; a recipe file has the same shape."""

    data: Data = field(default_factory=Data)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    augment: Augmentation = field(default_factory=Augmentation)
    cache: Cache = field(default_factory=Cache)
    training: Training = field(default_factory=Training)
    solve: Solve = field(default_factory=Solve)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    clipping: Clipping = field(default_factory=Clipping)
    regularization: Regularization = field(default_factory=Regularization)
    averaging: Averaging = field(default_factory=Averaging)
    device: Device = field(default_factory=Device)
    predict: Predict = field(default_factory=Predict)
    pretraining: Pretraining = field(default_factory=Pretraining)
    stages: tuple[Stage, ...] = ()

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @property
    def pretrains(self) -> bool:
        """Whether the plan begins with pretraining."""
        return bool(self.stages) and self.stages[0].pretrains

    @property
    def after_pretraining(self) -> "Config":
        """What follows pretraining, on a backbone whose weights are known only then."""
        if not self.pretrains:
            return self
        weights = self.backbone.weights or Path("pretraining")
        backbone = replace(self.backbone, weights=weights, pretrained=True)
        return replace(self, backbone=backbone, stages=self.stages[1:])

    @property
    def solves(self) -> bool:
        """Whether any stage is a closed-form solve: by default where it can be the best answer.

        Features of random blocks say nothing, a solved head has no hidden layer, and a time limit
        plans gradient steps.
        """
        if self.stages:
            return any(stage.solves for stage in self.stages)
        usual = not self.backbone.has_random_blocks and not self.head.layers
        return usual and self.training.budget is None

    @property
    def only_solves(self) -> bool:
        """Whether no stage takes gradient steps."""
        return bool(self.stages) and all(stage.solves for stage in self.stages)

    @property
    def head_trains_first(self) -> bool:
        """Whether the first stage of gradient steps trains the head alone."""
        if self.stages:
            return next((s.unfreeze for s in self.stages if not s.solves), "") == "head"
        return not self.backbone.has_random_blocks

    @property
    def trains_head_alone(self) -> bool:
        """Whether no stage unfreezes any block."""
        if self.stages:
            return all(stage.unfreeze in ("head", "solve") for stage in self.stages)
        return self.head_trains_first and self.training.depth == self.training.full_epochs == 0


@dataclass(frozen=True)
class OptionField:
    """A command-line option as the table of all options has it. key: e.g. `training.lr`."""

    key: str
    annotation: Any
    default: Any
    option: Option
    constraints: tuple[Any, ...] = ()

    @property
    def shown_default(self) -> str:
        """The default as a person reads it; "" where there is nothing to say."""
        if self.option.default:
            return self.option.default
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return "" if self.default is None else str(self.default)


def words_beside_a_number(annotation: Any) -> tuple[str, ...]:
    """Return the words that an option takes in place of a number, such as auto; () for none."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    numbers = [kind for kind in kinds if (get_args(kind) or (kind,))[0] in (int, float)]
    if get_origin(annotation) not in (Union, UnionType) or not numbers:
        return ()
    return tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))


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
                kinds = [k for k in get_args(annotation) if get_origin(k) is not Literal]
                inner = [a for kind in kinds for a in get_args(kind)[1:]]
                beside = inner if words_beside_a_number(annotation) else []
                bounds = tuple(e for e in (*extras, *beside) if e is not option)
                found.append(OptionField(key, annotation, item.default, option, bounds))
    return found
