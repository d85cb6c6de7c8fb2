"""What more pictures would bring: solves on nested parts, and a power law through their errors."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.closed_form.judge import disagree, misses
from transferkit.closed_form.left_out import (
    PENALTIES,
    Problem,
    left_out_scores,
    solve,
    squared_errors,
)
from transferkit.closed_form.power_law import fit_power_law, law_at
from transferkit.closed_form.ridge import decompose
from transferkit.closed_form.sums import one_hot
from transferkit.closed_form.thinned import Thinned

Floats = NDArray[np.float64]

MOST_SOLVED, MOST_JUDGED = 2000, 1000
"""Training pictures that are solved on, and validation pictures."""
PARTS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
FEWEST = 4
"""Shares of the pictures that are solved on, those with so many pictures per class or more."""
THINNED = (1.0, 0.75, 0.5, 0.25)
FEWEST_THINNED, MOST_CLASSES = 8, 100
"""Shares of one class's pictures; how many it must have, and how many classes are asked."""
REPETITIONS, RESAMPLES = 4, 400
MATTERS = 0.005
"""A gain that may reach half a point is not called none."""
VALIDATION = "validation"


@dataclass(frozen=True)
class Gain:
    """By how much the accuracy would grow, 0..1; low, high: its 95 % band."""

    gain: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Say whether there is a gain: "gains", "none" or "unclear"."""
        return "gains" if self.low > 1e-4 else "none" if self.high < MATTERS else "unclear"

    @property
    def text(self) -> str:
        """Return the gain and its band in points."""
        band = f"{100 * self.low:.1f}–{100 * self.high:.1f}"
        return f"about {100 * self.gain:+.1f} points ({band})"


@dataclass(frozen=True)
class LearningCurve:
    """Error over the number of training pictures, and what twice as many would bring.

    pictures, errors: of the parts, from the fewest to all, or to `MOST_SOLVED` of `all_pictures`.
    judged_on: "all" pictures, each out of sample, or "validation" where that differs from
    leave-one-out. law: a, b, c of a n^-b + c. forecasts: (pictures, error, low, high) by the law
    with its 95 % band; all and twice as many at the end. twice: of all classes. classes: name ->
    (pictures, gain of twice as many of this class). together: of all that gain; None where none
    does, or each.
    """

    pictures: tuple[int, ...]
    errors: tuple[float, ...]
    all_pictures: int
    judged_on: str
    law: tuple[float, ...]
    forecasts: tuple[tuple[int, float, float, float], ...]
    twice: Gain
    classes: dict[str, tuple[int, Gain]]
    together: Gain | None

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as JSON has it."""
        classes = {
            name: {"pictures": number, **asdict(gain), "verdict": gain.verdict}
            for name, (number, gain) in self.classes.items()
        }
        return asdict(self) | {"classes": classes, "sentences": self.sentences()}

    def of_verdict(self, verdict: str) -> list[str]:
        """Return the classes of a verdict, the largest gain first."""
        found = [name for name, (_, gain) in self.classes.items() if gain.verdict == verdict]
        return sorted(found, key=lambda name: -self.classes[name][1].gain)

    def sentences(self) -> list[str]:
        """Say in plain words what more pictures would bring."""
        how = "on validation" if self.judged_on == VALIDATION else "on pictures it has not seen"
        found = [
            f"a solve on {self.pictures[-1]:,} training pictures has accuracy "
            f"{1 - self.errors[-1]:.1%} {how}; with {2 * self.all_pictures:,} {self.twice.text}"
        ]
        if self.together is not None:
            few = _few(self.of_verdict("gains"))
            found.append(f"with twice the pictures of {few} {self.together.text}")
        if none := self.of_verdict("none"):
            found.append(f"with twice the pictures of {_few(none)} nothing that shows")
        return found


@dataclass(frozen=True)
class Labelled:
    """Pictures to learn a curve from. features: (N, D). widths: columns of each depth.

    labels: (N,). train: (N,) bool, the others are validation. groups: (N,), None: each its own.
    """

    features: Tensor
    widths: Sequence[int]
    labels: Tensor
    train: Tensor
    groups: Tensor | None = None


@dataclass(frozen=True)
class _Bench:
    """What all curves share: who is judged, and the resamples of their bands.

    labels: (N + M,) of training pictures, then validation. orders: (R, N), where each training
    picture stands in a repetition, 0..1. judged: (J,) rows. votes: (B, J), weights of these in each
    resample; shares: (B, R), of the repetitions. The first of the B counts all alike.
    """

    labels: Tensor
    orders: Floats
    judged: NDArray[np.int64]
    votes: Floats
    shares: Floats

    def missed(self, scores: Tensor) -> Floats:
        """Return which of the judged pictures (J,) scores (N + M, K) miss."""
        found: Floats = misses(scores, self.labels).numpy()[self.judged]
        return found

    def laws(self, sizes: Sequence[int], missed: Sequence[Sequence[Floats]]) -> tuple[Floats, ...]:
        """Return mean errors (B, S) of what was missed, (S, R, J), and the laws (B, 3)."""
        every = np.array(missed).transpose(1, 2, 0)  # (R, J, S)
        means = sum(
            s[:, None] * (self.votes @ m) for s, m in zip(self.shares.T, every, strict=True)
        )
        return np.asarray(means), fit_power_law(np.array(sizes, dtype=float), np.asarray(means))


def learning_curve(
    pictures: Labelled, classes: Sequence[str], seed: int = 0
) -> LearningCurve | None:
    """Solve on nested, stratified parts of the training pictures; None for too few pictures.

    Every picture is judged at every size: those of a part by leave-one-out (of groups), all others
    by the part's solve, so that sizes differ in what was learned and not in who is asked. The band
    is from resampling pictures (or groups) and repetitions: it holds their error, and that of the
    law. Raises UserError where all training pictures are one group.
    """
    rng = np.random.default_rng(seed)
    own, others = _taken(pictures, rng)
    labels = pictures.labels[own]
    least = FEWEST * int((labels.bincount() > 0).sum())
    shares = [share for share in PARTS if share * len(own) >= least][::-1]
    if len(shares) < 3:
        return None
    groups = None if pictures.groups is None else pictures.groups[own]
    targets = one_hot(labels, len(classes))
    outer = decompose(pictures.features[own], targets, pictures.widths)
    spectrum, asked = outer.on_components(), outer.components(pictures.features[others])
    problem = Problem(outer.components(pictures.features[own]), targets, None, groups)
    errors = squared_errors(spectrum, problem, PENALTIES)
    penalty = PENALTIES[errors.index(min(errors))]
    left_out = left_out_scores(spectrum, problem, penalty)
    whole = torch.cat([left_out, spectrum.predict(asked, penalty)])
    bench, judged_on = _bench(pictures, torch.cat([own, others]), whole, len(own), rng)
    sizes, missed = [], []
    for share in shares[:-1]:
        parts = [torch.from_numpy(order < share) for order in bench.orders]
        sizes.append(round(sum(int(part.sum()) for part in parts) / len(parts)))
        scores = (_scores(problem, asked, part) for part in parts)
        missed.append([bench.missed(each) for each in scores])
    missed.append([bench.missed(whole)] * len(bench.orders))
    means, laws = bench.laws([*sizes, len(own)], missed)
    every = int(pictures.train.sum())
    ends = [*sizes, *dict.fromkeys((len(own), every, 2 * every))]
    by_class, together = _of_classes(
        Thinned(spectrum, problem, penalty, asked), bench, labels, classes
    )
    return LearningCurve(
        pictures=(*sizes, len(own)),
        errors=tuple(means[0].tolist()),
        all_pictures=every,
        judged_on=judged_on,
        law=tuple(laws[0].tolist()),
        forecasts=tuple((n, *_band(law_at(laws, n))) for n in ends),
        twice=_gain(laws, every),
        classes=by_class,
        together=together,
    )


def nested_order(labels: Tensor, groups: Tensor | None, rng: np.random.Generator) -> Floats:
    """Return where pictures (N,) stand in a random order, 0..1: those below f are a share f.

    Of each class as near to that share as whole groups allow; a group counts for its largest class.
    """
    of = np.arange(len(labels)) if groups is None else groups.numpy()
    _, group = np.unique(of, return_inverse=True)
    counts = np.zeros((group.max() + 1, int(labels.max()) + 1))
    np.add.at(counts, (group, labels.numpy()), 1)
    place = np.zeros(len(counts))
    shuffled, largest, sizes = rng.permutation(len(counts)), counts.argmax(1), counts.sum(1)
    for k in np.unique(largest):
        ours = shuffled[largest[shuffled] == k]
        ends = np.cumsum(sizes[ours])
        place[ours] = (ends - rng.uniform() * sizes[ours]) / ends[-1]
    return place[group]


def _taken(pictures: Labelled, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the rows of the training and of the validation pictures that are used."""
    own, others = (rows.nonzero().flatten() for rows in (pictures.train, ~pictures.train))
    if len(own) > MOST_SOLVED:
        groups = None if pictures.groups is None else pictures.groups[own]
        order = nested_order(pictures.labels[own], groups, rng)
        own = own[torch.from_numpy(order < MOST_SOLVED / len(own))]
    return own, others[rng.permutation(len(others))[:MOST_JUDGED]]


def _bench(
    pictures: Labelled, rows: Tensor, scores: Tensor, own: int, rng: np.random.Generator
) -> tuple[_Bench, str]:
    """Choose who is judged, and draw orders and resamples.

    rows, scores: of the pictures, the first `own` of them training ones, out of sample.
    """
    labels = pictures.labels[rows]
    wrong = misses(scores, labels)
    differs = own < len(rows) and disagree(wrong[:own], wrong[own:])
    judged = np.arange(own if differs else 0, len(rows))
    groups = None if pictures.groups is None else pictures.groups[rows[:own]]
    orders = np.stack([nested_order(labels[:own], groups, rng) for _ in range(REPETITIONS)])
    of = judged if pictures.groups is None else pictures.groups[rows].numpy()[judged]
    _, unit = np.unique(of, return_inverse=True)
    units = int(unit.max()) + 1
    drawn = rng.multinomial(units, np.full(units, 1 / units), RESAMPLES)
    votes = np.concatenate([np.ones((1, units)), drawn])[:, unit]
    votes /= votes.sum(1, keepdims=True)
    repeated = rng.multinomial(REPETITIONS, np.full(REPETITIONS, 1 / REPETITIONS), RESAMPLES)
    shares = np.concatenate([np.ones((1, REPETITIONS)), repeated]) / REPETITIONS
    return _Bench(labels, orders, judged, votes, shares), VALIDATION if differs else "all"


def _scores(problem: Problem, others: Tensor, part: Tensor) -> Tensor:
    """Return scores (N + M, K) by a solve on a part (N,) of a problem in components."""
    groups = None if problem.groups is None else problem.groups[part]
    own = Problem(problem.features[part], problem.targets[part], None, groups)
    solution = solve(own, ())
    spectrum, penalty = solution.spectrum, solution.penalty
    scores = torch.empty(problem.targets.shape, dtype=torch.float64)
    scores[part] = left_out_scores(spectrum, own, penalty)
    scores[~part] = spectrum.predict(problem.features[~part], penalty)
    return torch.cat([scores, spectrum.predict(others, penalty)])


def _of_classes(
    solved: Thinned, bench: _Bench, labels: Tensor, classes: Sequence[str]
) -> tuple[dict[str, tuple[int, Gain]], Gain | None]:
    """Return the gain of twice the pictures of each class, and of all that gain together."""
    counts = labels.bincount(minlength=len(classes)).tolist()
    asked = [k for k, count in enumerate(counts) if count >= FEWEST_THINNED][:MOST_CLASSES]

    def gain(ours: Sequence[int]) -> Gain:
        """Return the gain of twice the pictures of these classes."""
        among = torch.isin(labels, torch.tensor(ours)).numpy()
        sizes, missed = [], []
        for share in THINNED:
            gone = [np.flatnonzero(among & (order >= share)) for order in bench.orders]
            sizes.append(round(among.sum() - float(np.mean([len(rows) for rows in gone]))))
            scores = (solved.scores(torch.from_numpy(rows)) for rows in gone)
            missed.append([bench.missed(each) for each in scores])
        _, laws = bench.laws(sizes, missed)
        return _gain(laws, int(among.sum()))

    found = {classes[k]: (counts[k], gain([k])) for k in asked}
    gaining = [k for k in asked if found[classes[k]][1].verdict == "gains"]
    return found, gain(gaining) if 0 < len(gaining) < len(asked) else None


def _gain(laws: Floats, pictures: int) -> Gain:
    """Return what laws (B, 3) say of twice so many pictures."""
    return Gain(*_band(law_at(laws, pictures) - law_at(laws, 2 * pictures)))


def _band(values: Floats) -> tuple[float, float, float]:
    """Return the first of values (B,), and the 95 % band of all."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(values[0]), float(min(low, values[0])), float(max(high, values[0]))


def _few(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
