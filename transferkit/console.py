"""Terminal output: the live view of events, tables, errors. The only module that imports rich.

rich is imported when something is shown, so that importing this module costs nothing. Text is
shown verbatim: no markup, no emoji codes; control characters are escaped.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from transferkit.errors import UserError
from transferkit.events import (
    NOT_FIGURES,
    EpochEnded,
    Event,
    Notice,
    PretrainingEpoch,
    Progress,
    StageEnded,
    StageStarted,
    Working,
)
from transferkit.files.strict_json import strict_json
from transferkit.redaction import redacted
from transferkit.units import count_text, duration_text, rate_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_PROGRESS_EVERY_S = 10.0
PLAIN_WIDTH = 200  # of tables in a file or a pipe, where nothing wraps
# a file name may hold an escape sequence, which a terminal would execute
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

EPOCH_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("train loss", "train_loss", lambda loss: f"{loss:.4f}" if loss < 1e4 else f"{loss:.3g}"),
    ("val loss", "val_loss", lambda loss: f"{loss:.4f}" if loss < 1e4 else f"{loss:.3g}"),
    ("train acc", "train_accuracy", "{:.1%}".format),
    ("val acc", "val_accuracy", "{:.1%}".format),
    ("seconds", "seconds", "{:.1f}".format),
)


class LiveView:
    """Shows events as they happen: progress bars for running work, a permanent line for the rest.

    Without a terminal, plain lines are written instead of bars: progress at most every 10 seconds,
    and the start of each task only if standard error is a terminal. as_json: reserve standard
    output for the one JSON object and write to standard error. num_stages: numbers the stage lines
    2/4; may be set later. muted: show nothing.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        num_stages: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        muted: bool = False,
    ) -> None:
        self.num_stages = num_stages
        self._muted = muted
        self._console = _console(sys.stderr if as_json else sys.stdout)
        self._clock = clock
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_plain_progress = clock()

    def __enter__(self) -> "LiveView":
        """Start the bars, if the output is a terminal."""
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        if terminal and not self._muted:
            self._bars = _bars(self._console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bars and restore the terminal."""
        self.clear()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def show(self, event: Event) -> None:
        """Show one event."""
        if self._muted:
            return
        match event:
            case Progress():
                self._progress(event)
            case Working(what):
                self._work(what)
            case Notice(text, warning):
                self._line("warning: " if warning else "", text, "yellow" if warning else "")
            case StageStarted():
                self.clear()
                self._line("", "")
                self._line("", self._stage_line(event), "bold")
                names = "".join(f"{name:>12}" for name, _, _ in EPOCH_COLUMNS)
                self._line("", f"{'epoch':>7}{names}", "dim")
            case EpochEnded():
                self.clear()
                self._line("", epoch_line(event), "green" if event.is_best else "")
            case PretrainingEpoch():
                self.clear()
                self._line("", pretraining_line(event))
            case StageEnded():
                self.clear()
                self._line("", self._stage_end(event), "dim")

    def _work(self, what: str) -> None:
        """Announce work of unknown length: an indeterminate bar, or a line on standard error."""
        self.clear()
        if self._bars is not None:
            self._tasks[what] = self._bars.add_task(_clean(what), total=None, count="")
        elif sys.stderr is not None and sys.stderr.isatty():
            _print_line(_console(sys.stderr), "", f"{what} ...")

    def _progress(self, event: Progress) -> None:
        if self._bars is None:
            now = self._clock()
            if now - self._last_plain_progress >= PLAIN_PROGRESS_EVERY_S:
                self._last_plain_progress = now
                self._line("", f"{event.what}: {event.done:,} of {event.total:,}")
            return
        if event.what not in self._tasks:
            self.clear()
            self._tasks[event.what] = self._bars.add_task(_clean(event.what), count="")
        task, count = self._tasks[event.what], f"{event.done}/{event.total}"
        self._bars.update(task, completed=event.done, total=event.total, count=count)
        if event.done >= event.total:
            self._bars.remove_task(self._tasks.pop(event.what))
            self._bars.refresh()

    def clear(self) -> None:
        """Remove the bars of work that ended before its total or has none."""
        if self._bars is None or not self._tasks:
            return
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._bars.refresh()

    def _line(self, prefix: str, text: str, style: str = "") -> None:
        _print_line(self._console, prefix, text, style)

    def _stage_line(self, event: StageStarted) -> str:
        if not event.trainable_parameters:
            return f"{self._stage_number(event.stage)} · {event.name} · in closed form"
        trains = count_text(event.trainable_parameters)
        total = count_text(event.total_parameters)
        parts = (
            self._stage_number(event.stage),
            event.name,
            f"{trains} of {total} parameters train",
            f"lr {rate_text(event.lr)}",
            "cached" if event.cached else "live",
        )
        return " · ".join(parts)

    def _stage_number(self, stage: int) -> str:
        return f"stage {stage + 1}" + (f"/{self.num_stages}" if self.num_stages else "")

    def _stage_end(self, event: StageEnded) -> str:
        if event.reason.startswith("skipped"):
            return f"{self._stage_number(event.stage)} · {event.name} · {event.reason}"
        epochs = f"{event.epochs_run} epoch" + ("s" if event.epochs_run != 1 else "")
        value = event.best_value  # a rate in 0..1, or the negative loss
        best = f", best {value:.1%}" if value >= 0 else f", best loss {-value:.4f}"
        if value == -float("inf"):
            best = ""
        return f"  {event.reason} after {epochs}, {duration_text(event.seconds)}{best}"


def epoch_line(event: EpochEnded) -> str:
    """Return an epoch's metrics below the stage's headings; a star marks the best epoch so far."""
    cells = [
        f"{form(event.metrics[key]) if key in event.metrics else '-':>12}"
        for _, key, form in EPOCH_COLUMNS
    ]
    return f"{event.epoch:>7}{''.join(cells)}{'  ★' if event.is_best else ''}"


def pretraining_line(event: PretrainingEpoch) -> str:
    """Return an epoch of pretraining with all of its figures by name."""
    figures = [
        f"{name} {value:.4g}" for name, value in event.figures.items() if name not in NOT_FIGURES
    ]
    duration = duration_text(event.figures["seconds"])
    number = f"{event.epoch:>{len(str(event.epochs))}}/{event.epochs}"
    return " · ".join([f"  {number} {event.phase}", *figures, duration])


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output."""
    console = _console(sys.stdout)
    for line in lines:
        _print_line(console, "", line)


def print_json(value: Any) -> None:
    """Print `value` to standard output as one line of strict JSON (NaN becomes null)."""
    _tolerant(sys.stdout).write(f"{redacted(strict_json(value))}\n")
    sys.stdout.flush()


def print_error(error: UserError, as_json: bool = False) -> None:
    """Print what is wrong, where, and the remedy, to standard error.

    as_json: print one JSON object {"error": {...}} to standard output instead.
    """
    if as_json:
        names = ("what", "where", "remedy", "exit_code")
        print_json({"error": {name: getattr(error, name) for name in names}})
        return
    _print_line(_console(sys.stderr), "error: ", str(error), "bold red")


def print_styled(text: str, style: str, prefix: str = "") -> None:
    """Print a line to standard output; the style applies to the prefix, or to all without one."""
    _print_line(_console(sys.stdout), prefix, text, style)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any] | None]) -> None:
    """Print a table to standard output; columns of numbers are aligned to the right.

    rows: cells are text or numbers; floats are shown with four digits, None as an empty cell; a
    row that is None is drawn as a separator.
    """
    _print_table(_console(sys.stdout), title, columns, list(rows))


def _clean(text: str) -> str:
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", redacted(text))


def _tolerant(stream: TextIO) -> TextIO:
    """Make a stream escape characters that its encoding lacks, and undecodable file names."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    terminal = stream.isatty()
    return Console(
        file=_tolerant(stream),
        force_terminal=terminal,  # no control codes in a pipe, whatever the environment says
        width=None if terminal else PLAIN_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _bars(console: "Console") -> "Bars":
    from rich import progress

    return progress.Progress(
        progress.TextColumn("  {task.description}", markup=False),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[count]}", "progress.download", markup=False),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=5,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _print_line(console: "Console", prefix: str, text: str, style: str = "") -> None:
    """Print a line that never wraps; the style applies to the prefix, or to all without one."""
    from rich.text import Text

    line = Text.assemble((prefix, style), (_clean(text), "" if prefix else style))
    console.print(line, soft_wrap=True)


def _print_table(
    console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[Any] | None]
) -> None:
    """Print a table; a row that is None is a separator."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
        show_edge=False,
    )
    cells = [row for row in rows if row is not None]
    for position, name in enumerate(columns):
        column = [row[position] for row in cells if row[position] not in (None, "")]
        right = bool(column) and all(_is_figure(cell) for cell in column)
        table.add_column(Text(_clean(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(Text(_clean(_cell(cell))) for cell in row))
    _print_line(console, "", "")
    _print_line(console, "", title, "bold")
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")  # rich pads lines, which only a terminal needs


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_figure(cell: Any) -> bool:
    """Whether a cell counts as a number: text that starts with a digit, or stands for a number."""
    text = str(cell)
    return isinstance(cell, int | float) or text in ("frozen", "live", "–") or text[0].isdigit()
