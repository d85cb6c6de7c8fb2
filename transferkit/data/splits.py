"""Draw a validation part or folds: stratified, seeded, no picture or group on both sides."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

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


def draw_grouped(
    labels: Sequence[str], groups: np.ndarray, fraction: float, seed: int
) -> list[bool]:
    """Return, for each picture, whether it goes to the validation part, with its whole group.

    As `draw_validation` otherwise. groups: (N,). A class keeps at least one group in training.
    Raises UserError where there are pictures, but of one group alone.
    """
    if not len(groups):
        return []
    if len(np.unique(groups)) < 2:
        what = "all pictures to train on are in one group: nothing would be left to validate on"
        raise UserError(what, remedy="give a val folder of your own, or group by something else")
    names, codes = np.unique(labels, return_inverse=True)
    numbers = range(2, min(10, len(np.unique(groups))) + 1)
    taken = {n: min(n - 1, max(1, round(n * fraction))) for n in numbers}
    number = min(numbers, key=lambda n: (abs(taken[n] / n - fraction), n))
    drawn = folds_of(codes, groups, number, seed) < taken[number]
    for code in range(len(names)):
        if drawn[codes == code].all():
            drawn[np.isin(groups, groups[codes == code][:1])] = False
    return drawn.tolist()


def folds_of(labels: np.ndarray, groups: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return the fold (N,) of each picture, from 0, stratified by labels as far as groups allow.

    labels, groups: (N,); the pictures of one group are in one fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    lone = len(np.unique(groups)) == len(groups)
    kind = StratifiedKFold if lone else StratifiedGroupKFold
    _, labels = np.unique(labels, return_inverse=True)
    rare = np.bincount(labels)[labels] < number  # counted as one class: they are spread at random
    split = kind(number, shuffle=True, random_state=seed).split
    fold = np.zeros(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer pictures than folds
        for n, (_, inside) in enumerate(split(labels, np.where(rare, -1, labels), groups)):
            fold[inside] = n
    return fold


def _raise_too_small(too_small: list[str]) -> None:
    names = natural_sorted(too_small)
    remedy = "add pictures, give a val folder of your own, or leave out with --exclude NAME"
    if len(names) == 1:
        name, has = names[0].rsplit(": ", 1)
        what = f"class {name} cannot be in both training and validation: it has {has}"
        raise UserError(what, remedy=remedy)
    what = f"{len(names)} classes cannot be in both training and validation"
    raise UserError(what, listed(names), remedy)
