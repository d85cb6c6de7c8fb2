"""The verb `find-lr`: the range test of a plan's first stage; and `--lr auto`, which uses it."""

from dataclasses import replace
from pathlib import Path

from transferkit.config import Config
from transferkit.errors import usage_error
from transferkit.evaluation.rate_plot import rate_range
from transferkit.events import Notice, Show, Working, drain
from transferkit.files.atomic_write import disk_error, png_of, write_atomically
from transferkit.finetuning.session import Session, make_run, prepare, recalibrate
from transferkit.runs.folder import RunFolder
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
    path = output or Path(f"learning-rate-{source.resolve().stem}.png")
    if path.suffix.lower() != ".png":
        raise usage_error(f"--output {path}: the name must end in .png")
    session = prepare(config, show)
    try:
        found = measure(session, RunFolder(path.parent), tried, show)
    finally:
        session.sources.close()
    show(Working("drawing the plot"))
    try:
        write_atomically(path, png_of(rate_range(found)))
    except OSError as error:
        raise disk_error(path.parent, error) from error
    return found, path


def measure(session: Session, folder: RunFolder, tried: Range, show: Show) -> RangeTest:
    """Run the range test of a session's first stage. folder: not written to."""
    recalibrate(session, show)  # as before the run itself
    for notice in session.sources.choose_base(session.used_plan):
        show(notice)
    return drain(range_test(make_run(session, folder), session.plan.stages[0], tried), show)


def resolve_rate(session: Session, folder: RunFolder, show: Show) -> None:
    """Put the rate that the range test suggests in the place of `auto`: configuration and plan."""
    found = measure(session, folder, Range(), show)
    session.config = with_rate(session.config, found)
    session.plan = make_plan(session.config, session.plan.groups)
    text = (
        f"learning rate {rate_text(found.suggestion)} for stage {found.stage}, by a range test "
        f"(lowest loss at {rate_text(found.lowest)})"
    )
    folder.log(text)
    show(Notice(text))


def with_rate(config: Config, found: RangeTest) -> Config:
    """Return the configuration with the found rate: `lr`, and where it is of blocks the other too.

    A first stage that unfreezes blocks takes `unfrozen_lr`.
    """
    training = replace(config.training, lr=found.suggestion)
    if found.stage != "head":
        training = replace(training, unfrozen_lr=found.suggestion)
    return replace(config, training=training)
