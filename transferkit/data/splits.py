"""Draw a validation part: stratified, seeded, and never with the same picture on both sides."""

import hashlib
from collections import Counter
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
    copies: dict[str, Counter[str]] = {}
    for label, digest in zip(labels, digests, strict=True):
        classes_of.setdefault(digest, set()).add(label)
        copies.setdefault(label, Counter())[digest] += 1
    drawn: set[str] = set()
    too_small = []
    for label, counts in copies.items():
        total = sum(counts.values())
        unique = {digest: n for digest, n in counts.items() if len(classes_of[digest]) == 1}
        if len(counts) < 2 or not unique:
            has = f"{count(total, 'picture')}, all of which lie under other classes too"
            if len(counts) == 1:
                has = "1 picture" if total == 1 else f"{total} copies of 1 picture"
            too_small.append(f"{shown(label)}: {has}")
            continue
        shared = len(counts) > len(unique)
        drawn |= _draw_groups(unique, total, fraction, seed, may_take_all=shared)
    if too_small and not may_fail:
        _raise_too_small(too_small)
    return [digest in drawn for digest in digests]


def _draw_groups(
    groups: dict[str, int], total: int, fraction: float, seed: int, *, may_take_all: bool
) -> set[str]:
    """Return digests of groups whose sizes sum to about `total * fraction`, at least one group."""

    def rank(digest: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{digest}".encode(), digest_size=8).digest()

    ranked = sorted(groups, key=rank)
    limit = len(ranked) if may_take_all else len(ranked) - 1
    wanted = round(total * fraction)
    chosen: set[str] = set()
    taken = 0
    for digest in ranked:
        if len(chosen) < limit and taken + groups[digest] <= wanted:
            chosen.add(digest)
            taken += groups[digest]
    return chosen or {min(ranked, key=groups.__getitem__)}


def _raise_too_small(too_small: list[str]) -> None:
    names = natural_sorted(too_small)
    remedy = "add pictures, give a val folder of your own, or leave out with --exclude NAME"
    if len(names) == 1:
        name, has = names[0].rsplit(": ", 1)
        what = f"class {name} cannot be in both training and validation: it has {has}"
        raise UserError(what, remedy=remedy)
    what = f"{len(names)} classes cannot be in both training and validation"
    raise UserError(what, listed(names), remedy)
