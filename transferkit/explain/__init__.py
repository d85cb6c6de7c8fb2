"""Pages that explain one family of options each: what, when, how, which options, from where.

A page is a TOML file beside this module. It names options by their key and families by their
table; defaults, ranges, help and the names in a table are read from there, never written twice.

    title = "Early stopping: ..."                  # one line, for the list of topics
    aliases = ["stopping", ...]                    # other words for it; may be left out
    overview = true                                # its options have pages of their own
    what, when, formula = text                     # formula may be left out
    options = ["training.patience", ...]           # keys of the configuration
    source = ["Author, "Title", where, year", ...]
    lab = "activations"                            # the experiment that shows it; may be left out
    [[table]]                                      # any number, or none
    of = "training.metric"                         # an option with choices, or "module:TABLE"
    headings = ["metric", "what it looks at"]      # the first one is of the names
    rows.accuracy = "..."                          # a cell, or a list of cells, per name; without
                                                   # one: the first line of its docstring
    columns = ["summary", "speed"]                 # or: the cells are these fields of each member
"""

import difflib
import importlib
import inspect
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from transferkit.config import OptionField, option_fields, words_beside_a_number
from transferkit.errors import usage_error

FOLDER = Path(__file__).parent
BOUNDS = (("gt", "> "), ("ge", "≥ "), ("lt", "< "), ("le", "≤ "))


@dataclass(frozen=True)
class ExplainedOption:
    """An option as the configuration has it. allowed: choices or range, "" for anything."""

    key: str
    flag: str
    default: str
    allowed: str
    help: str


@dataclass(frozen=True)
class ExplainedTable:
    """The members of a family. of: see the module. rows: name first, one cell per heading."""

    of: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Page:
    """One topic, with everything read from the tables in place. lab: its experiment, or ""."""

    topic: str
    title: str
    what: str
    when: str
    formula: str
    options: tuple[ExplainedOption, ...]
    tables: tuple[ExplainedTable, ...]
    source: tuple[str, ...]
    lab: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the page as JSON has it."""
        return asdict(self)


def topics() -> dict[str, str]:
    """Return every topic with its title."""
    return {path.stem: _read(path)["title"] for path in _files()}


def read_page(topic: str) -> Page:
    """Read the page of a topic that exists; imports the families that it shows."""
    raw = _read(FOLDER / f"{topic}.toml")
    known = {item.key: item for item in option_fields()}
    return Page(
        topic=topic,
        title=raw["title"],
        what=raw["what"].strip(),
        when=raw["when"].strip(),
        formula=raw.get("formula", "").strip("\n").rstrip(),
        options=tuple(_explain(known[key]) for key in raw["options"]),
        tables=tuple(_table(spec, known) for spec in raw.get("table", ())),
        source=tuple(raw["source"]),
        lab=raw.get("lab", ""),
    )


def find_topic(text: str) -> str:
    """Return the topic that `text` names, or whose page has an option or a row of that name.

    Raises a usage error that names the nearest topics, or those that it may mean.
    """
    name = text.strip().lower().lstrip("-").replace(" ", "-").replace("_", "-")
    every = topics()
    if name in every:
        return name
    found: dict[str, list[str]] = {}
    for topic in every:
        raw = _read(FOLDER / f"{topic}.toml")
        if name in (aliases := raw.get("aliases", ())):
            return topic
        for word in (*aliases, *(() if raw.get("overview") else _words(topic))):
            found.setdefault(word, []).append(topic)
    meant = list(dict.fromkeys(found.get(name, ())))
    flagged = [topic for topic in meant if name in _flags(read_page(topic))]
    if len(meant) == 1 or len(flagged) == 1:
        return (flagged or meant)[0]  # --patience before the last part of another key
    if meant:
        remedy = "choose one: " + ", ".join(f"transferkit explain {topic}" for topic in meant)
        raise usage_error(f"{len(meant)} pages speak of {text!r}", "", remedy)
    close = difflib.get_close_matches(name, {*every, *found}, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise usage_error(
        f"no page explains {text!r}",
        f"there are pages on: {', '.join(every)}",
        f"{hint}`transferkit explain` lists them with what they are about",
    )


def _files() -> list[Path]:
    return sorted(FOLDER.glob("*.toml"))


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _words(topic: str) -> Iterator[str]:
    """Yield what else leads to a page: keys, their last part, flags, names of rows."""
    page = read_page(topic)
    names = [name for table in page.tables for name, *_ in table.rows]
    names += _flags(page)
    for option in page.options:
        names += [option.key, option.key.split(".")[-1]]
    for name in dict.fromkeys(names):
        yield name.lower().replace("_", "-")


def _flags(page: Page) -> list[str]:
    """Return the flags of a page's options without their dashes."""
    return [flag.lstrip("-") for option in page.options for flag in option.flag.split("/")]


def _explain(item: OptionField) -> ExplainedOption:
    return ExplainedOption(
        item.key, item.option.flag, item.shown_default, allowed(item), item.option.help
    )


def allowed(item: OptionField) -> str:
    """Say which values an option takes: `a | b | c`, or a range such as `≥ 0, < 1`."""
    words = words_beside_a_number(item.annotation)
    if not words and (names := choices(item)):
        return " | ".join(names)
    ranges = ", ".join(
        f"{sign}{getattr(bound, name):,g}"
        for bound in item.constraints
        for name, sign in BOUNDS
        if hasattr(bound, name)
    )
    return ranges + "".join(f"; or {word}" for word in words)


def choices(item: OptionField) -> tuple[str, ...]:
    """Return the words that an option takes; () when it takes something else."""
    for kind in (item.annotation, *get_args(item.annotation)):
        if get_origin(kind) is Literal:
            return tuple(map(str, get_args(kind)))
    return ()


def _table(spec: Mapping[str, Any], known: Mapping[str, OptionField]) -> ExplainedTable:
    members = family(spec["of"], known)
    written = spec.get("rows", {})
    if strangers := written.keys() - members.keys():
        raise ValueError(f"{spec['of']} has no {', '.join(sorted(strangers))}")
    rows = []
    for name, member in members.items():
        own = [getattr(member, column) for column in spec.get("columns", ())]
        cells = own or written.get(name) or first_line(member)
        rows.append((name, *((cells,) if isinstance(cells, str) else map(str, cells))))
    return ExplainedTable(spec["of"], tuple(spec["headings"]), tuple(rows))


def family(of: str, known: Mapping[str, OptionField]) -> dict[str, Any]:
    """Return the members of a family: those of a table, or the choices of an option."""
    module, colon, name = of.partition(":")
    if colon:
        return dict(getattr(importlib.import_module(module), name))
    return dict.fromkeys(choices(known[of]))


def first_line(member: Any) -> str:
    """Return the first line of a docstring without its source; "" when there is none."""
    text = inspect.getdoc(member) or "" if callable(member) else ""
    return text.partition("\n")[0].partition(" Source:")[0]
