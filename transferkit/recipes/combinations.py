"""Options that contradict each other, or would have no effect together."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

from transferkit.config import Config, Solve
from transferkit.config.predict import predict_problems
from transferkit.config.pretraining import pretraining_problems
from transferkit.files.foreign_files import path_problem
from transferkit.recipes.network_checks import batchnorm_problems, network_problems
from transferkit.recipes.optimization_checks import budget_problems, optimization_problems
from transferkit.recipes.problems import shortened
from transferkit.units import parse_bytes, parse_colour


def combination_problems(config: Config) -> list[str]:
    """Find options that contradict each other or would have no effect."""
    found = []
    if any(stage.pretrains for stage in config.stages[1:]):
        found.append("stages: pretraining comes first, and once")
    if any(stage.budget and not stage.pretrains for stage in config.stages):
        found.append("stages: a time belongs to pretraining, as in simclr:20m; others have epochs")
    if config.data.unlabeled is not None and not config.pretrains:
        found.append(
            'data.unlabeled has no effect without pretraining: --stages "simclr:20, solve"'
        )
    if config.pretrains and config.training.budget is not None:
        found.append("--budget has no effect on pretraining: give it a time, as in simclr:20m")
    config = config.after_pretraining
    if config.backbone.weights is not None and not config.backbone.pretrained:
        found.append("--weights and --no-pretrained contradict each other: leave one out")
    if config.backbone.starts_random and config.head_trains_first:
        found.append(
            "stages: the first one trains only the head on random frozen blocks (--no-pretrained "
            'or from scratch); start with unfreeze = "all"'
        )
    if config.data.allow_outside and config.data.manifest is None:
        found.append("data.allow_outside has no effect without data.manifest: leave it out")
    scale = config.data.depth_range
    if scale and (len(scale) != 2 or scale[0] >= scale[1]):
        found.append("data.depth_range must be two numbers, the smaller one first: 0,4095")
    if len(config.data.bands) not in (0, 1, 3):
        found.append("data.bands must name three bands, or one, counted from 1: 3,2,1")
    if config.augment.level == "none" and config.augment.views:
        found.append("augment.views has no effect with augment.level = none: leave one out")
    if config.stages and config.stages[0].if_improving:
        found.append("stages: the first stage cannot depend on the one before (if_improving)")
    if config.solve.extends and not config.only_solves:
        found.append("solve.extends adds pictures to a solve: it needs stages = solve alone")
    if any(stage.image_size and not stage.solves for stage in config.stages):
        found.append("stages: image_size belongs to a solve, as in solve@288")
    if config.solve != Solve() and not config.solves:
        found.append('solve.depths, penalty and mirror have no effect without a stage "solve"')
    found += network_problems(config.backbone, config.head, config.training.whole_batch_size)
    found += memory_problems(config) + path_problems(config)
    found += batchnorm_problems(config.backbone, config.training.batchnorm)
    found += optimization_problems(config) + budget_problems(config)
    for key, check in (
        ("cache.budget", lambda: parse_bytes(config.cache.budget)),
        ("data.background", lambda: parse_colour(config.data.background)),
    ):
        try:
            check()
        except ValueError as error:
            found.append(f"{key} {error}")
    return found + predict_problems(config.predict) + pretraining_problems(config.pretraining)


def path_problems(config: Config) -> list[str]:
    """Find paths that no system call takes; braces of shards stand for many, each of them short."""
    paths = {
        f"{section}.{name}": str(value)
        for section in get_type_hints(Config)
        if is_dataclass(getattr(config, section))
        for name, value in vars(getattr(config, section)).items()
        if isinstance(value, Path) and "{" not in str(value)
    }
    return [f"{key} {why}: {shortened(p)}" for key, p in paths.items() if (why := path_problem(p))]


def memory_problems(config: Config) -> list[str]:
    """Find options that save memory where there is none to save."""
    training, found = config.training, []
    parts = training.accumulate if isinstance(training.accumulate, int) else 1
    if parts > 1 and 2 * parts > training.whole_batch_size:
        found.append(
            f"training.accumulate = {parts} needs a batch of {2 * parts} or more, two pictures for "
            f"each part; training.batch_size is {training.batch_size}"
        )
    if training.checkpoint_activations and config.trains_head_alone:
        found.append("training.checkpoint_activations has no effect: only the head trains")
    return found
