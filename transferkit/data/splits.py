"""Draw a validation part: stratified, seeded, and never with the same picture on both sides."""

import hashlib
from collections.abc import Sequence

from transferkit.data.names import count, listed, natural_sorted, shown
from transferkit.errors import UserError


def draw_validation(
    labels: Sequence[str],
    digests: Sequence[str],
    fraction: float,
    seed: int,
    *,
    may_fail: bool = False,
) -> list[bool]:
    """Return, for each picture, whether it goes to the validation part.

    labels, digests: class name and content digest of each picture.
    fraction: of each class's pictures, > 0 and < 1; every class keeps one on each side.
    A picture's rank is a hash of its content and the seed, so the draw depends neither on names
    nor on order, and pictures added later leave most others where they were. Copies of one file
    stay together; a file that lies under several classes goes to training, so that no
    contradictory picture is validated on.
    may_fail: a class with too few distinct pictures for both sides stays on the training side.
    Raises UserError that names every such class otherwise.
    """
    classes_of: dict[str, set[str]] = {}
    copies: dict[str, dict[str, int]] = {}
    for label, digest in zip(labels, digests, strict=True):
        classes_of.setdefault(digest, set()).add(label)
        counts = copies.setdefault(label, {})
        counts[digest] = counts.get(digest, 0) + 1
    drawn: set[str] = set()
    too_small = []
    for label, counts in copies.items():
        own = {digest: number for digest, number in counts.items() if len(classes_of[digest]) == 1}
        if len(counts) < 2 or not own:
            too_small.append(f"{shown(label)}: {_what_it_has(counts, own)}")
            continue
        shared = len(counts) > len(own)
        drawn |= _draw_groups(own, sum(counts.values()), fraction, seed, may_take_all=shared)
    if too_small and not may_fail:
        _raise_too_small(too_small)
    return [digest in drawn for digest in digests]


def _draw_groups(
    groups: dict[str, int], total: int, fraction: float, seed: int, *, may_take_all: bool
) -> set[str]:
    """Return digests of groups whose sizes sum to about `total * fraction`, at least one group."""
    ranked = sorted(groups, key=lambda digest: _rank(digest, seed))
    limit = len(ranked) if may_take_all else len(ranked) - 1
    wanted = round(total * fraction)
    chosen: set[str] = set()
    taken = 0
    for digest in ranked:
        if len(chosen) < limit and taken + groups[digest] <= wanted:
            chosen.add(digest)
            taken += groups[digest]
    return chosen or {min(ranked, key=groups.__getitem__)}


def _rank(digest: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{digest}".encode(), digest_size=8).digest()


def _what_it_has(counts: dict[str, int], own: dict[str, int]) -> str:
    files = sum(counts.values())
    if files == 1:
        return "1 picture"
    if len(counts) == 1:
        return f"{files} copies of 1 picture"
    assert not own
    return f"{count(files, 'picture')}, all of which lie under other classes too"


def _raise_too_small(too_small: list[str]) -> None:
    names = natural_sorted(too_small)
    remedy = "add pictures, give a val folder of your own, or leave out with --exclude NAME"
    if len(names) == 1:
        name, has = names[0].rsplit(": ", 1)
        what = f"class {name} cannot be in both training and validation: it has {has}"
        raise UserError(what, remedy=remedy)
    what = f"{len(names)} classes cannot be in both training and validation"
    raise UserError(what, listed(names), remedy)
