"""What to try against an ill network: what is not in force yet, the strongest evidence first."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from transferkit.backbones.scratch import DEFAULTS
from transferkit.config import Config
from transferkit.config.initializers import misfit, paired_initializer

SATURATING = ("logistic", "tanh")
SLOWER = 10
"""A rate that was too high is divided by this."""
Cure = tuple[str, str]
"""Flags of the command line, and what they are."""


def cures(ill: str, config: Config, stage: str, clip_norm: float | None) -> list[Cure]:
    """Return what a configuration has not tried yet, in the order in which to try it.

    ill: "vanishing", "exploding", "dead", "too fast". stage: name of the one it was seen in.
    clip_norm: a limit that 95 % of its steps keep; None where none was measured.
    """
    found = list(of_design(ill, config)) if config.backbone.from_scratch else []
    backbone = config.backbone
    if ill == "dead" and not backbone.from_scratch and backbone.replace_activations is None:
        found.append(("--replace-activations leaky_relu", "an activation with a slope"))
    if ill != "vanishing":
        found.append((lower_rate(config, stage), "a lower rate"))
    if ill in ("exploding", "too fast"):
        if not any(vars(config.clipping).values()) and clip_norm:
            found.append((f"--clip-norm {clip_norm:.2g}", "clipping of the gradient"))
        if config.training.warmup is None and config.schedule.name != "1cycle":
            found.append(("--warmup 0.3", "a longer warm-up"))
    return found


def of_design(ill: str, config: Config) -> Iterator[Cure]:
    """Yield what helps a network from scratch: the cures of the chapter, in its order."""
    backbone = config.backbone
    usual = DEFAULTS[backbone.name]
    activation = backbone.activation or usual.activation
    start = backbone.initializer or paired_initializer(activation)
    fan = (backbone.width or usual.width) * (9 if backbone.name == "cnn" else 1)
    paired = paired_initializer(activation)
    if ill == "dead" and activation == "relu":
        yield "--activation elu", "an activation with a slope below zero"
    if misfit(start, activation, fan, fan):
        yield f"--initializer {paired}", f"the initialiser that goes with {activation}"
    if ill not in ("vanishing", "exploding"):
        return
    if activation in SATURATING and ill == "vanishing":
        initializer = " --initializer he_normal" if backbone.initializer else ""
        yield f"--activation relu{initializer}", "an activation that does not saturate"
    if activation == "selu":  # which neither sums nor batch norm leave as they are
        return
    if not backbone.skip and (backbone.depth or usual.depth) > 2:
        yield "--backbone-skip", "skip connections"
    if not {"before", "after"} & set(backbone.batchnorm):
        places = ",".join([*backbone.batchnorm, "before"])
        yield f"--backbone-batchnorm {places}", "batch norm"


def lower_rate(config: Config, stage: str) -> str:
    """Return the flag that lowers the rate of a stage."""
    training = config.training
    if any(each.lr is not None for each in config.stages):
        slower = [replace(s, lr=s.lr / SLOWER) if s.lr else s for s in config.stages]
        return f"--stages {shlex.quote(','.join(each.text for each in slower))}"
    if stage == "head":
        return f"--lr {training.head_lr / SLOWER:g}"
    return f"--unfrozen-lr {training.unfrozen_lr / SLOWER:g}"


def next_command(run: Path, config: Config, firsts: Iterable[Cure]) -> str:
    """Return the command that repeats a run with the first cure of each illness."""
    flags = " ".join(dict.fromkeys(flags for flags, _ in firsts))
    data = [str(config.data.path)] if config.data.path else []
    data += ["--manifest", str(config.data.manifest)] if config.data.manifest else []
    return f"{shlex.join(['transferkit', 'finetune', *data, '--recipe', str(run)])} {flags}"
