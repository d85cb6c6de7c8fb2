"""Pictures in WebDataset shards: tar archives whose members with one key are a sample.

The headers of every shard are read once; a picture then is a file like any other, SHARD/MEMBER,
read by its offset whenever it is wanted. Unlike WebDataset's own stream this gives every picture a
place: splits, views, caches, `--resume` and the order of predictions work as with folders.

Source of the convention: https://github.com/webdataset/webdataset (the key of a member is its path
up to the first dot of its name; what follows says what it is: 0001.jpg, 0001.cls, 0001.json).
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from transferkit.data.addresses import address_of, expand
from transferkit.data.files import is_hidden
from transferkit.data.formats import picture_kind
from transferkit.data.listing import SPLIT_NAMES, Entry, Listing, name_problem
from transferkit.data.names import class_name, count, listed, shown
from transferkit.data.tar_members import SUFFIX, Member, list_members
from transferkit.errors import UserError, usage_error

LABELS = ("cls", "json")
"""What a member that tells the class is called after its key; the first one of these wins."""
JSON_KEYS = ("label", "class", "cls")
MOST_LABEL_BYTES = 1 << 20
_SHARD_SUFFIXES = (SUFFIX, ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset skips such members, too
_MIXED = "begin every shard's name with train, val or test, or none"


@dataclass(frozen=True)
class Sample:
    """A picture of a shard. member: of the picture. labels: suffix to the members that tell it."""

    member: Member
    labels: dict[str, Member]


@dataclass
class ShardFiles:
    """What is in a shard: its pictures in their order, and how many other files of each suffix."""

    samples: list[Sample] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def is_shards(source: Path | str) -> bool:
    """Whether a source names shards: *.tar, with braces or a pattern, or anything at an address."""
    if address_of(source) is not None:
        return True
    return str(source).lower().endswith(_SHARD_SUFFIXES) and not os.path.isdir(source)


def root_of(source: Path) -> Path:
    """Return the folder that the paths of a data source start from: of shards, what they share."""
    if not is_shards(source):
        return source
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in expand(source)]))


def shard_pictures(source: Path | str) -> list[Path]:
    """Return the pictures of shards as paths SHARD/MEMBER, in the order of shards and members.

    Raises UserError as `list_members` does, and where shards are missing or without a picture.
    """
    paths: list[Path] = []
    for file in _existing(source):
        samples = read_shard(file).samples
        if not samples:
            raise UserError(f"{shown(str(file))} holds no picture")
        paths += [file / sample.member.name for sample in samples]
    return paths


def read_shards(source: Path, exclude: Sequence[str] = (), *, labelled: bool = True) -> Listing:
    """List the pictures of shards with their classes, as `read_folder` does of a folder.

    A shard whose name (or whose folder's) begins with train, val or test belongs to that split, if
    there is one of train among them. exclude: class names to leave out. labelled: read classes.
    Raises UserError as `list_members` does, and that names shard and member where one has no label,
    or where a shard is missing or has no picture.
    """
    files = _existing(source)
    listing = Listing(root=root_of(source))
    splits = _splits(files)
    listing.lacks_val = "train" in splits and "val" not in splits
    without: list[str] = []
    for file, split in zip(files, splits, strict=True):
        inside = file.absolute().relative_to(listing.root).as_posix()
        shard = read_shard(file)
        if not shard.samples:
            raise UserError(f"{shown(str(file))} holds no picture", remedy="leave it out")
        drawn = split == "train" and listing.lacks_val
        labels = _labels(file, shard.samples) if labelled else [""] * len(shard.samples)
        for sample, label in zip(shard.samples, labels, strict=True):
            path = f"{inside}/{sample.member.name}"
            if labelled and not label:
                without.append(path)
            elif label in exclude:
                listing.excluded.add(label)
            else:
                problem = name_problem(sample.member.name)
                if not sample.member.is_file:
                    problem = "a link or a device, no plain file"
                listing.entries.append(Entry(path, label, "" if drawn else split, problem))
                if split in ("", "train"):
                    listing.classes[label] = ""
        listing.others["", split] += shard.others
    if without:
        raise UserError(
            f"{count(len(without), 'picture')} of {shown(str(source))} without a label",
            listed([shown(path) for path in without]),
            "put a member beside each, with its class: KEY.cls (a name or a number), or KEY.json "
            'with {"label": ...}',
        )
    return listing


def read_shard(file: Path) -> ShardFiles:
    """Group the members of a shard by their keys; samples without a picture are left out.

    Raises UserError as `list_members` does, and where a key has several pictures.
    """
    shard = ShardFiles()
    pictures: dict[str, list[Member]] = {}
    labels: dict[str, dict[str, Member]] = {}
    for member in list_members(file):
        name = os.path.basename(member.name)
        hidden = any(map(is_hidden, member.name.split("/")))
        if member.is_folder or hidden or _META.match(member.name):
            continue
        key, suffix = split_key(member.name)
        if picture_kind(name) is not None:
            pictures.setdefault(key, []).append(member)
        elif suffix in LABELS:
            labels.setdefault(key, {})[suffix] = member
        else:
            shard.others[os.path.splitext(name)[1].lower()] += 1
    for key, members in pictures.items():
        # Of 1.jpg and 1.mask.png the first is the picture.
        plain = [member for member in members if "." not in split_key(member.name)[1]] or members
        if len(plain) > 1:
            names = " and ".join(shown(member.name) for member in plain[:2])
            raise UserError(
                f"{shown(str(file))} has {len(plain)} pictures of the key {shown(key)}: {names}",
                "a key is a name up to its first dot",
                "give every picture a key of its own",
            )
        shard.samples.append(Sample(plain[0], labels.get(key, {})))
    return shard


def split_key(name: str) -> tuple[str, str]:
    """Return key and suffix (lower case, without its dot) of a member: "a/1", "mask.png"."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix.lower()


def _existing(source: Path | str) -> list[Path]:
    """Return the shards that a name stands for. Raises a usage error for all that are missing."""
    files = expand(source)
    missing = [file for file in files if not file.is_file()]
    if missing:
        what = f"{count(len(missing), 'shard')} of {len(files)} not found"
        raise usage_error(what, listed([shown(str(file)) for file in missing]))
    return files


def _splits(files: Sequence[Path]) -> list[str]:
    """Return the split of every shard, "" for all where none is called train."""
    by_name = {name: split for split, names in SPLIT_NAMES.items() for name in names}

    def split_of(file: Path) -> str:
        first = re.match("[a-z]*", file.name.lower())
        return by_name.get(first[0] if first else "") or by_name.get(file.parent.name.lower(), "")

    splits = [split_of(file) for file in files]
    if "train" not in splits:
        return [""] * len(files)
    if "" in splits:
        file = files[splits.index("")]
        raise UserError(f"{shown(str(file))} belongs to no split, others do", "", _MIXED)
    return splits


def _labels(file: Path, samples: Sequence[Sample]) -> list[str]:
    """Return the classes of a shard's samples. Raises UserError as `_label` does."""
    with open(file, "rb") as opened:
        return [_label(file, opened, sample) for sample in samples]


def _label(file: Path, opened: BinaryIO, sample: Sample) -> str:
    """Return the class of a sample, "" where it has none. Raises UserError for one that is none."""
    suffix = next((suffix for suffix in LABELS if suffix in sample.labels), None)
    if suffix is None:
        return ""
    member = sample.labels[suffix]
    place = shown(f"{file}/{member.name}")
    if not member.is_file or member.size > MOST_LABEL_BYTES:
        problem = "too large" if member.is_file else "no plain file"
        raise UserError(f"{place} is no label: {problem}")
    try:
        opened.seek(member.offset)
        text = opened.read(member.size).decode("utf-8-sig")
        value = _in_json(text) if suffix == "json" else text
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place} is no label: {error}") from None
    label = class_name(value)
    if not label.isprintable():
        raise UserError(f"{place} is no label: it has several lines or odd characters")
    return label


def _in_json(text: str) -> str:
    """Return the class in a JSON object, "" where none of `JSON_KEYS` has a text or a number."""
    content = json.loads(text)
    values = (content.get(key) for key in JSON_KEYS) if isinstance(content, dict) else ()
    fits = (v for v in values if isinstance(v, str | int) and not isinstance(v, bool))
    return next(map(str, fits), "")
