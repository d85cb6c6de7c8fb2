"""The plan of a run: which block groups train in which stage, and at which rates.

One table says it all: a row per stage, a column per block group from the stem to the top and one
for the head, each entry a learning-rate multiplier, 0 for frozen. Nothing else knows of freezing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from transferkit.backbones.norm_statistics import has_statistics
from transferkit.config import Config, Stage
from transferkit.errors import usage_error

BLOCK_DECAY = 0.5
"""Rate of a pretrained block group over that of the one above; random ones have all to learn."""

FULL_EPOCHS = 2
"""With everything unfrozen, where a time limit leaves room for them."""


@dataclass(frozen=True)
class PlannedStage:
    """One row of the plan.

    multipliers: (G + 1,), one per block group from the stem and last the head; 0 is frozen.
    lr: peak learning rate at multiplier 1, which is the head's.
    kept_statistics: how many groups from the stem keep their batch-norm statistics, trained or not.
    boundary: groups below it are frozen, 0..G; G means that the head alone trains.
    solves: in closed form, on the backbone as it is, without a gradient step. side_px: input size
    of a solve, None for the run's.
    """

    name: str
    epochs: int
    lr: float
    multipliers: tuple[float, ...]
    if_improving: bool = False
    kept_statistics: int = 0
    solves: bool = False
    side_px: int | None = None

    @property
    def boundary(self) -> int:
        """The number of frozen groups counted from the stem."""
        return next(i for i, multiplier in enumerate(self.multipliers) if multiplier > 0)


@dataclass(frozen=True)
class StagePlan:
    """Stages in the order they run, over the named block groups (G,) of one backbone."""

    stages: tuple[PlannedStage, ...]
    groups: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the groups and of the head, (G + 1,): the columns of what is logged for each."""
        return (*self.groups, "head")


def unfreezing_step(num_groups: int) -> int:
    """Return how many groups one default step unfreezes: a sixth of the depth, at least one."""
    return max(1, num_groups // 6)


def default_stages(config: Config, num_groups: int) -> tuple[Stage, ...]:
    """Head alone, then the top groups step by step, between two solves.

    Source: gradual unfreezing, Howard and Ruder, "Universal Language Model Fine-tuning", ACL 2018;
    probe first, Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022.
    """
    training = config.training
    solve = (Stage("solve", 1),) if config.solves else ()
    if config.backbone.starts_random:
        epochs = training.head_epochs + training.block_epochs * training.depth
        return (Stage("all", epochs + training.full_epochs, training.unfrozen_lr, 1.0),)
    step, fresh = unfreezing_step(num_groups), num_fresh(config, num_groups)
    depths = [fresh + step * i for i in range(1, training.depth + 1)]
    depths = [depth for depth in depths if depth < num_groups]
    stages = [Stage("head", training.head_epochs, training.head_lr)]
    if fresh:  # features of random blocks say nothing: they learn together with the head
        stages = [Stage(fresh, training.head_epochs, training.unfrozen_lr)]
    stages += [Stage(depth, training.block_epochs, training.unfrozen_lr) for depth in depths]
    improving = bool(depths) and training.budget is None  # which says itself what runs
    full_epochs = training.full_epochs if training.budget is None else FULL_EPOCHS
    if full_epochs:
        stages.append(Stage("all", full_epochs, training.unfrozen_lr, None, improving))
    closing = solve if len(stages) > 1 else ()  # else the backbone is as it was
    return (*solve, *stages, *closing)


def num_fresh(config: Config, num_groups: int) -> int:
    """Return how many groups at the top were re-initialised, and have all to learn."""
    kept = config.backbone.reuse_blocks
    return 0 if kept is None else num_groups - kept


def make_plan(config: Config, groups: Sequence[str]) -> StagePlan:
    """Resolve the configuration's stages, or the default ones, over a backbone's block groups.

    Raises a usage error when a stage unfreezes more groups than there are, when no group is left
    to re-initialise, or when re-initialised ones would stay as they are in the first stage.
    """
    fresh = num_fresh(config, len(groups))
    if config.backbone.reuse_blocks is not None and fresh < 1:
        raise usage_error(
            f"--reuse-blocks {config.backbone.reuse_blocks} leaves no block group of the "
            f"{len(groups)} to re-initialise",
            f"from the stem to the top: {', '.join(groups)}",
            f"use a number up to {len(groups) - 1}, or leave it out",
        )
    stages = config.stages or default_stages(config, len(groups))
    plan = StagePlan(tuple(plan_stage(s, config, groups) for s in stages), tuple(groups))
    if len(groups) - plan.stages[0].boundary < fresh:
        raise usage_error(
            f"stages: the first one trains {plan.stages[0].name}, on random frozen blocks",
            f"--reuse-blocks re-initialises {fresh} block groups: {', '.join(groups[-fresh:])}",
            f"let it unfreeze {fresh} or more",
        )
    return plan


def plan_stage(stage: Stage, config: Config, groups: Sequence[str]) -> PlannedStage:
    """Turn one stage's depth, rate and decay into multipliers over the groups."""
    count = len(groups)
    depth = {"head": 0, "solve": 0, "all": count}.get(str(stage.unfreeze), stage.unfreeze)
    depth = int(depth)
    if depth > count:
        raise usage_error(
            f"a stage unfreezes {depth} block groups, but the backbone has {count}",
            f"from the stem to the top: {', '.join(groups)}",
            f"use a number up to {count}, or all",
        )
    training = config.training
    usual = 1.0 if config.backbone.starts_random else BLOCK_DECAY
    given = [value for value in (stage.decay, training.block_decay) if value is not None]
    decay = given[0] if given else usual
    lr = stage.lr or (training.head_lr if depth == 0 else training.unfrozen_lr)
    fresh = num_fresh(config, count)
    powers = (max(0, depth - i - fresh) for i in range(depth))  # counted below the random groups
    multipliers = [0.0] * (count - depth) + [decay**power for power in powers] + [1.0]
    name = stage.text if stage.solves else {0: "head", count: "all"}.get(depth, f"top {depth}")
    kept = count - fresh if training.batchnorm == "frozen" else 0
    improving = stage.if_improving
    planned = PlannedStage(name, stage.epochs, lr, tuple(multipliers), improving, kept)
    return replace(planned, solves=stage.solves, side_px=stage.image_size)


def apply_stage(model: nn.Module, column_of: Callable[[str], int], stage: PlannedStage) -> None:
    """Set what trains: gradients on or off, and training or evaluation mode, group by group.

    column_of: parameter or module name -> column of the plan, -1 for a container of several groups.
    A frozen group is in evaluation mode, so that its batch-norm statistics do not move either; so
    are containers, which hold nothing of their own, and batch norms whose statistics are kept.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.multipliers[column_of(name)] > 0)
    for name, module in model.named_modules():
        set_mode(module, trains_module(stage, column_of(name), module))


def trains_module(stage: PlannedStage, column: int, module: nn.Module) -> bool:
    """Whether a module in a column of the plan is in training mode in a stage."""
    keeps = column < stage.kept_statistics and has_statistics(module)
    return column >= 0 and stage.multipliers[column] > 0 and not keeps


def set_mode(module: nn.Module, training: bool) -> None:
    """Set one module's mode, not its children's.

    Some attention layers override `train` to drop what they cached for evaluation: theirs is
    called, and the children get modes of their own right after, as they follow in the order.
    """
    if type(module).train is not nn.Module.train:
        module.train(training)
    module.training = training


def column_finder(groups: Sequence[Sequence[str]]) -> Callable[[str], int]:
    """Return a function from the name of a classifier's parameter or module to its plan column.

    groups: the module paths inside the backbone of every block group, from the stem to the top.
    Names below `head.` are in the last column; a backbone name belongs to the group of its longest
    listed prefix, to no group (-1) if it contains listed modules, and else to the stem.
    """
    column_of = {f"backbone.{path}": i for i, paths in enumerate(groups) for path in paths}

    def find(name: str) -> int:
        if name == "head" or name.startswith("head."):
            return len(groups)
        parts = name.split(".")
        for end in range(len(parts), 1, -1):
            if (prefix := ".".join(parts[:end])) in column_of:
                return column_of[prefix]
        above = name in ("", "backbone") or any(p.startswith(name + ".") for p in column_of)
        return -1 if above else 0

    return find
