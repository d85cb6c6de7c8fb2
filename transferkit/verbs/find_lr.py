"""The verb `find-lr`: the range test of a plan's first stage; and `--lr auto`, which uses it."""

from dataclasses import replace
from pathlib import Path

from transferkit.config import Config
from transferkit.errors import usage_error
from transferkit.evaluation.rate_plot import rate_range
from transferkit.events import Notice, Show, Working, drain
from transferkit.files.atomic_write import require_png, write_plot
from transferkit.finetuning.preparation import prepare, recalibrate
from transferkit.training.budget import Budget, used_stages
from transferkit.training.cache_choice import choose_base
from transferkit.training.parts import Parts
from transferkit.training.rate_range import Range, RangeTest, range_test
from transferkit.training.stages import make_plan
from transferkit.units import rate_text


def find_lr(
    config: Config, output: Path | None, tried: Range, show: Show
) -> tuple[RangeTest, Path]:
    """Run the range test of the first stage, draw it, and return it with the picture's path.

    output: a .png; None makes learning-rate-<name>.png in the current folder.
    Raises UserError where there is nothing to suggest; then nothing is drawn.
    """
    if tried.lowest >= tried.highest:
        raise usage_error(
            "--from-lr must be below --to-lr", f"{tried.lowest:g} against {tried.highest:g}"
        )
    source = config.data.path or config.data.manifest or Path("data")
    path = require_png(output or Path(f"learning-rate-{source.resolve().stem}.png"))
    parts = prepare(config, show)
    try:
        result = measure(parts, tried, show)
    finally:
        parts.handles.close()
    show(Working("drawing the plot"))
    write_plot(path, rate_range(result))
    return result, path


def measure(parts: Parts, tried: Range, show: Show, budget: Budget | None = None) -> RangeTest:
    """Run the range test of a plan's first stage."""
    recalibrate(parts, show)  # as before the run itself
    base, notices = choose_base(parts, used_stages(parts.plan.stages, budget))
    for notice in notices:
        show(notice)
    return drain(range_test(parts, base, tried), show)


def with_found_rate(parts: Parts, budget: Budget | None, show: Show) -> Parts:
    """Return the parts with the rate that the range test suggests in the place of `auto`."""
    if parts.config.training.lr != "auto":
        return parts
    with parts.watch.on("range test"):
        result = measure(parts, Range(), show, budget)
    text = (
        f"learning rate {rate_text(result.suggestion)} for stage {result.stage}, by a range test "
        f"(lowest loss at {rate_text(result.lowest)})"
    )
    show(Notice(text))
    config = with_rate(parts.config, result)
    return replace(parts, config=config, plan=make_plan(config, parts.plan.groups))


def with_rate(config: Config, found: RangeTest) -> Config:
    """Return the configuration with the found rate: `lr`, and where it is of blocks the other too.

    A first stage that unfreezes blocks takes `unfrozen_lr`.
    """
    training = replace(config.training, lr=found.suggestion)
    if found.stage != "head":
        training = replace(training, unfrozen_lr=found.suggestion)
    return replace(config, training=training)
