"""The split in tables of other systems: columns of other names, and columns of yes and no."""

import re
from collections.abc import Callable, Mapping, Sequence

from transferkit.data.listing import SPLIT_NAMES
from transferkit.data.names import listed, natural_sorted, shown

TABLE_SPLITS = {
    **{name: split for split, names in SPLIT_NAMES.items() for name in names},
    **dict.fromkeys(("tr", "trn", "trainset", "train_set", "is_train"), "train"),
    **dict.fromkeys(("dev", "development", "eval", "evaluation", "holdout", "publictest"), "val"),
    **dict.fromkeys(("privatetest", "testset", "test_set"), "test"),
}
"""What a cell may say, in lower case."""
_YES = {"true", "t", "yes", "y", "1", "1.0", "x", "wahr", "vrai"}
_NO = {"false", "f", "no", "n", "0", "0.0", "", "falsch", "faux"}
_FLAG = re.compile(
    "(?:is|in|for|use|used)?_?(train|valid|val|test|dev|eval|holdout)(?:ation|uation|ing)?"
    "_?(?:set|split|image|img|sample|flag)?"
)
_SPLIT_LIKE = re.compile(
    "(data)?_?(set|sub_?set|splits?|partitions?|part|k?_?folds?|usage|phase|mode)"
)

_MOST_VALUES = 20
"""More different ones are no split."""

Row = Mapping[str, str]


def split_reader(
    columns: Sequence[str], rows: Sequence[Row]
) -> tuple[Callable[[Row], str], list[str]]:
    """Return what gives a row's split ("" for none), and what to tell about it.

    columns: lower case. The column split is read as it is. Without one, the only other column that
    says train, val or test in every row is read, or columns of yes and no (is_valid, is_test).
    Columns that look like a split and are not read are named.
    """
    others = [c for c in dict.fromkeys(columns) if c not in ("path", "label", "split", "")]
    values = {c: {row.get(c, "").strip().casefold() for row in rows} for c in others}
    worded = [c for c in others if _says_splits(values[c])]
    flags = {c: TABLE_SPLITS[flag[1]] for c in others if (flag := _FLAG.fullmatch(_plain(c)))}
    flags = {c: split for c, split in flags.items() if c not in worded}
    usable = [c for c in flags if values[c] <= _YES | _NO and values[c] & _YES]
    like = [c for c in others if c in worded or c in flags or _SPLIT_LIKE.fullmatch(_plain(c))]
    if "split" in columns:
        read, reader = ["split"], lambda row: row.get("split", "").strip()
    elif len(worded) == 1:
        read, reader = worded, lambda row: row.get(worded[0], "").strip()
    elif usable and not worded:
        read, reader = usable, lambda row: _flagged(row, {c: flags[c] for c in usable})
    else:
        read, reader = [], lambda row: ""
    notes = []
    if read and read != ["split"]:
        plural = "columns" if len(read) > 1 else "column"
        notes.append(f"the split is read from the {plural} {', '.join(map(shown, read))}")
    notes += [
        f"the column {shown(c)} looks like a split and is not read ({_few(values[c])}): "
        + (
            "the column split is"
            if "split" in columns
            else "to use it, call it split, with train, val and test in it"
        )
        for c in like
        if c not in read and len(values[c]) <= _MOST_VALUES
    ]
    return reader, notes


def _plain(column: str) -> str:
    return re.sub(r"[\s_.-]+", "_", column.strip())


def _says_splits(values: set[str]) -> bool:
    return bool(values) and values <= TABLE_SPLITS.keys() and len(values) > 1


def _flagged(row: Row, flags: Mapping[str, str]) -> str:
    """Return the split that columns of yes and no give a row."""
    yes = {split for c, split in flags.items() if row.get(c, "").strip().casefold() in _YES}
    for split in ("test", "val", "train"):
        if split in yes:
            return split
    return "val" if set(flags.values()) == {"train"} else "train"


def _few(values: set[str]) -> str:
    names = [shown(value[:20]) or "empty" for value in natural_sorted(values)]
    return listed(names, 4).replace("\n", ", ")
