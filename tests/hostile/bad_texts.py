"""Bad manifests, recipes and run folders, made from a seed."""

import json
import os
import random
from pathlib import Path

CELLS = (
    "",
    " ",
    "a.png",
    "b.png",
    "../a.png",
    "/etc/passwd",
    "../../etc/passwd",
    "=1+1",
    "+1",
    "-1",
    "@a",
    "a\0b",
    "a\nb",
    '"',
    "🦆",
    "e\u0301",
    "\ufeff",
    "x" * 200_000,
    "./a.png",
    "a.png/",
    "..",
    ".",
    "~",
    "C:\\a.png",
    "\\\\host\\a",
    "train",
    "val",
    "test",
    "nowhere",
    "disc",
    "square",
    "fifo.png",
    "loop.png",
    "file:///etc/passwd",
    "http://127.0.0.1/a.png",
    "nan",
    "1e999",
)
HEADERS = (
    "path,label",
    "path,label,split",
    "label,path",
    "path",
    "path;label",
    "path\tlabel",
    "",
    "path,path,label",
    "PATH,LABEL",
    "path,label,split,split",
    '"path","label"',
)
VALUES = (
    "1",
    "-1",
    "0",
    "1e999",
    "nan",
    "inf",
    "true",
    '""',
    '"x"',
    "[]",
    "[[[[]]]]",
    "{}",
    "9" * 5000,
    "2020-01-01",
    "'''\n'''",
    '"\\u0000"',
    "[1,2,3]",
    '"../../x"',
    "1_000",
    "0x10",
    "-0.0",
    '["a"]',
    "[" * 3000 + "]" * 3000,
    "{a=" * 500 + "1" + "}" * 500,
    '"' + "x" * 100_000 + '"',
)
KEYS = (
    "training.lr",
    "training.epochs",
    "training",
    "data",
    "data.path",
    "data.background",
    "stages",
    "backbone.name",
    "backbone.weights",
    "backbone.from_run",
    "head.layers",
    "head.dropout",
    "x",
    "",
    "training.seed",
    "data.max_pixels",
    "augment.level",
    "cache.budget",
    "predict.tta",
    "'a b'.c",
    "training.lr.x",
    "pretraining.method",
    "device.accelerator",
    "cache.dir",
    "a" * 10_000,
    ".".join(["a"] * 50_000),
    "training.budget",
    "training.batch_size",
    "stages.lr",
    "predict.top_k",
)
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp037")


def encoded(rng: random.Random, text: str) -> bytes:
    """Write a text in one of several encodings; cut it or flip bits of it now and then."""
    data = bytearray(text.encode(rng.choice(ENCODINGS), errors="replace"))
    if data and rng.random() < 0.2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


def bad_manifest(rng: random.Random) -> bytes:
    header = rng.choice(HEADERS) if rng.random() < 0.5 else "path,label,split"
    separator = rng.choice(",,,;\t|")
    lines = [header]
    for _ in range(rng.choice((0, 1, 3, 30))):
        cells = [rng.choice(CELLS) for _ in range(rng.choice((1, 2, 3, 3, 3, 4)))]
        if rng.random() < 0.5:
            cells = [f'"{cell}"' if rng.random() < 0.9 else f'"{cell}' for cell in cells]
        lines.append(separator.join(cells))
    return encoded(rng, rng.choice(("\n", "\r\n", "\r")).join(lines))


def bad_recipe(rng: random.Random) -> bytes:
    lines = []
    for _ in range(rng.choice((0, 1, 2, 5, 200))):
        form = rng.random()
        key, value = rng.choice(KEYS), rng.choice(VALUES)
        if form < 0.7:
            lines.append(f"{key} = {value}")
        elif form < 0.8:
            lines.append(f"[{key}]")
        elif form < 0.9:
            lines.append(f"[[{key}]]")
        else:
            lines.append(rng.choice(("#", "=", "[", "]", '"', "\0", key, value)))
    return encoded(rng, "\n".join(lines))


def leaves(tree: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Return the paths of everything inside nested dicts and lists."""
    inside: list[tuple[object, object]] = []
    if isinstance(tree, dict):
        inside = list(tree.items())
    elif isinstance(tree, list):
        inside = list(enumerate(tree))
    return [p for key, value in inside for p in ((*path, key), *leaves(value, (*path, key)))]


ODD_VALUES = (
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    [],
    {},
    [[]],
    [1],
    ["a"],
    {"a": 1},
    "x" * 100_000,
    "\0",
    "\ud800",
    [0] * 1000,
    "hf-hub:a/b",
    "os.system",
)


def spoil_json(rng: random.Random, path: Path) -> None:
    """Put an odd value somewhere into a JSON file, or take one out."""
    tree = json.loads(path.read_text())
    where = leaves(tree)
    for _ in range(rng.choice((1, 1, 2, 5))):
        *way, last = rng.choice(where)
        place = tree
        try:
            for key in way:
                place = place[key]
            if rng.random() < 0.2:
                del place[last]
            else:
                place[last] = rng.choice(ODD_VALUES)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    path.write_text(json.dumps(tree))


def spoil_bytes(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    kind = rng.random()
    if kind < 0.4:
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(min(len(data), rng.choice((64, 10**9))))] ^= 1 << rng.randrange(8)
    elif kind < 0.7:
        data = data[: rng.randrange(len(data))]
    elif kind < 0.8:
        data = bytearray(rng.choice((b"", b"\0" * 100, b"[" * 50_000, b'{"a":' * 50_000, b"null")))
    else:
        at = rng.randrange(len(data))
        data[at:at] = rng.choice(
            (b"\0", b'"', b"\n", b",", b"9" * 5000, b"\xff\xfe", b"a" * 200_000)
        )
    path.write_bytes(data)


def spoil_kind(rng: random.Random, path: Path) -> None:
    """Put something else than a file there."""
    path.unlink()
    kind = rng.choice(("nothing", "pipe", "folder", "loop", "endless", "broken"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "endless", "broken"):
        path.symlink_to({"loop": path.name, "endless": "/dev/zero", "broken": "nowhere"}[kind])


def spoil_run(rng: random.Random, run: Path) -> str:
    """Spoil one file of a run folder; return its name."""
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.suffix not in (".png", ".html"))
    path = rng.choice(files)
    form = rng.random()
    if form < 0.15:
        spoil_kind(rng, path)
    elif form < 0.7 and path.suffix == ".json":
        spoil_json(rng, path)
    else:
        spoil_bytes(rng, path)
    return str(path.relative_to(run))
