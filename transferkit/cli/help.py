"""What --help prints: the usual options of a command, one section of them, or all.

`--help` shows a command's own options and those marked `usual` where they are defined;
`--help-all` shows every option under the heading of its section, `--help SECTION` one section.
"""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from transferkit.config import OptionField, option_fields

GROUPS = {
    "Start": ("inspect", "labels", "choose", "models", "recipes"),
    "Train": ("finetune", "pretrain", "plan", "find-lr", "extend", "merge"),
    "Use": ("predict", "embed", "view"),
    "Understand": ("evaluate", "compare", "explain", "lab"),
    "Share": ("report", "export"),
}
"""The commands by what one wants, in the order of the page."""

PANELS = {
    "data": "Pictures",
    "backbone": "Backbone",
    "head": "Head",
    "augment": "Augmentation",
    "cache": "Activation cache",
    "training": "Training",
    "solve": "Closed-form stage",
    "optimizer": "Optimiser",
    "schedule": "Learning-rate schedule",
    "clipping": "Gradient clipping",
    "regularization": "Regularisation",
    "averaging": "Weight averaging",
    "device": "Device",
    "predict": "Prediction and uncertainty",
    "pretraining": "Pretraining",
}
"""Section of the configuration -> its heading."""

ALL = "--help-all"
EVERYWHERE = ("json", "debug", "help")
"""Parameters of every command; last on the page."""
WIDEST_FLAG = 26  # longer flags have a line to themselves
ASKED = __name__  # where a context keeps which section was asked for


class Command(TyperCommand):
    """A command that shows its usual options first, and all of them when asked."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options that were asked for."""
        asked = ctx.meta.get(ASKED, "")
        table = {item.key.replace(".", "__"): item for item in option_fields()}
        sections: dict[str, list[Any]] = {"": []}
        for parameter in self.get_params(ctx):
            named = parameter.name in table
            section = parameter.name.partition("__")[0] if named else ""
            sections.setdefault(section, []).append(parameter)
        own = [p for p in sections.pop("") if p.param_type_name == "option"]
        if asked in sections:
            _write(formatter, PANELS[asked], _rows(sections[asked], ctx, table, keys=True))
            return
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        _write(formatter, "Arguments", _rows(arguments, ctx, {}, keys=False))
        if asked != ALL:
            every = [p for options in sections.values() for p in options]
            own += [p for p in every if table[p.name].option.usual]
        own.sort(key=lambda p: p.name in EVERYWHERE)
        _write(formatter, "Options", _rows(own, ctx, table, keys=False))
        if asked == ALL:
            for section, options in sections.items():
                _write(formatter, PANELS[section], _rows(options, ctx, table, keys=True))
        elif sections:
            _write_rest(formatter, ctx.command_path, len(own), sections)


class Group(TyperGroup):
    """The program itself: shows its commands by what one wants."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help that is asked for before typer reads, and loads, anything else."""
        typed = args[: args.index("--")] if "--" in args else args
        command = self.get_command(ctx, typed[0]) if typed else None
        if not ctx.resilient_parsing and command and {"--help", ALL} & {*typed}:
            following = typed[typed.index("--help") + 1 :] if "--help" in typed else ()
            ctx.meta[ASKED] = ALL if ALL in typed else next(iter(following), "")
            inner = typer.Context(command, parent=ctx, info_name=typed[0])
            typer.echo(command.get_help(inner))
            raise typer.Exit
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, group by group, then the options."""
        for heading, names in GROUPS.items():
            commands = [self.get_command(ctx, name) for name in names]
            lines = [str(found.help).partition("\n")[0] for found in commands if found]
            rows = [(f"{name:<8}", line) for name, line in zip(names, lines, strict=True)]
            _write(formatter, heading, rows)
        _write(formatter, "Options", _rows(self.get_params(ctx), ctx, {}, keys=False))


def _rows(
    options: Iterable[Any], ctx: Any, table: dict[str, OptionField], keys: bool
) -> Iterator[tuple[str, str]]:
    """Yield flag and help of options; those of the table with key, if wanted, and default."""
    for option in options:
        if record := option.get_help_record(ctx):
            flag, text = record
            if getattr(option, "secondary_opts", None):
                flag = "--[no-]" + option.opts[0].removeprefix("--")
            yield flag, text + (_note(table[option.name], keys) if option.name in table else "")


def _note(item: OptionField, key: bool) -> str:
    facts = [item.key] if key else []
    facts += [f"default: {item.shown_default}"] if item.shown_default else []
    return f" [{'; '.join(facts)}]" if facts else ""


def _write(formatter: Any, heading: str, rows: Iterable[tuple[str, str]]) -> None:
    """Write a heading and two columns below it, none wider than the page."""
    rows = list(rows)
    if not rows:
        return
    formatter.write(f"\n{_bold(heading)}\n")
    column = min(WIDEST_FLAG, max(len(flag) for flag, _ in rows))
    margin = " " * (column + 4)
    for flag, text in rows:
        lines = textwrap.wrap(
            text, formatter.width, initial_indent=margin, subsequent_indent=margin
        )
        if len(flag) <= column:
            lines[:1] = [f"  {flag:<{column}}  {lines[0].lstrip()}"] if lines else [f"  {flag}"]
        else:
            lines[:0] = _flag_lines(flag, formatter.width)
        formatter.write("\n".join(lines) + "\n")


def _flag_lines(flag: str, width: int) -> list[str]:
    """Break a flag with many choices between two of them."""
    indent = " " * (2 + flag.find("<") + 1)
    lines = ["  "]
    for part in re.findall(r"[^|]+\|?", flag):
        if len(lines[-1]) + len(part) > width:
            lines.append(indent)
        lines[-1] += part
    return lines


def _write_rest(formatter: Any, command: str, shown: int, sections: dict[str, list[Any]]) -> None:
    count = sum(map(len, sections.values()))
    text = f"{command} {ALL} lists all {count} options under headings; --help SECTION those of one "
    text += f"section: {', '.join(sections)}."
    formatter.write("\n" + textwrap.fill(text, formatter.width) + "\n")


def _bold(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\x1b[1m{text}\x1b[0m"
