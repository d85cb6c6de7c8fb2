"""The verb `choose`: which backbone, input size and framing suit the pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

from transferkit.config import Config
from transferkit.errors import usage_error
from transferkit.evaluation.choice_plot import choice_plot
from transferkit.events import Show, Working
from transferkit.files.atomic_write import require_png, write_plot
from transferkit.finetuning.backbone_choice import Choice, choose_backbone
from transferkit.finetuning.pictures import read_index
from transferkit.stopwatch import Stopwatch
from transferkit.training.fabric import make_fabric
from transferkit.units import parse_duration


def choose(
    config: Config, names: Sequence[str], budget: str | None, output: Path | None, show: Show
) -> tuple[Choice, Path]:
    """Try backbones on the pictures, draw what came out, and return it with the plot's path.

    names: of backbones; none: those at hand. budget: such as 90s. output: a .png; None makes
    choice-<name>.png in the current folder.
    """
    source = config.data.path or config.data.manifest or Path("data")
    path = require_png(output or Path(f"choice-{source.resolve().stem}.png"))
    try:
        budget_s = parse_duration(budget) if budget else math.inf
    except ValueError as error:
        raise usage_error(f"--budget {error}") from None
    index = read_index(config, show, Stopwatch())
    choice = choose_backbone(config, index, make_fabric(config).device, show, names, budget_s)
    show(Working("drawing the plot"))
    write_plot(path, choice_plot(choice))
    return choice, path
