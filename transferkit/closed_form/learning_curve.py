"""What more pictures would bring: solves on nested parts, and a power law through their errors."""

import math
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
    squared_errors,
)
from transferkit.closed_form.power_law import fit_power_law, law_at
from transferkit.closed_form.reweighted import Reweighted
from transferkit.closed_form.ridge import Spectrum, decompose, eigen, on_components
from transferkit.closed_form.sums import one_hot

Floats = NDArray[np.float64]

MOST_SOLVED, MOST_JUDGED = 2000, 1000
"""Training pictures that are solved on, and validation pictures."""
PARTS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
FEWEST = 4
"""Shares of the pictures that are solved on, those with so many pictures per class or more."""
THINNED = (0.25, 0.5, 0.75, 1.0)
FEWEST_THINNED, MOST_CLASSES = 8, 100
"""Shares of one class's pictures; how many it must have, and how many classes are asked."""
REPETITIONS, RESAMPLES = 4, 400
LAWS = ((2, False), (3, False), (4, False), (3, True), (4, True))
"""How many of the largest sizes a law is fitted to, and whether it has a floor: any may hold."""
LAWS_OF_CLASS = ((3, True), (4, True))
"""Errors of other classes stay, however many pictures of one class there are."""
FEWEST_SIZES = 4
SURELY = 3.0
"""Standard errors by which validation has to be worse than leave-one-out to judge alone."""
SHOWS, MATTERS = 0.001, 0.005
"""A gain is told from a tenth of a point on; one that may reach half a point is not called none."""
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
        return "gains" if self.low >= SHOWS else "none" if self.high < MATTERS else "unclear"

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
    leave-one-out. forecasts: (pictures, error, low, high) by power laws with their 95 % band, up to
    twice as many as there are. twice: of all classes. classes: name -> (pictures, gain of twice as
    many of this class). together: of all that gain; None where none does, or each.
    """

    pictures: tuple[int, ...]
    errors: tuple[float, ...]
    all_pictures: int
    judged_on: str
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
    resample; shares: (B, R), of the repetitions; draws: (B,), which kind of law it takes. The first
    of the B counts all alike.
    """

    labels: Tensor
    orders: Floats
    judged: NDArray[np.int64]
    votes: Floats
    shares: Floats
    draws: NDArray[np.int64]

    def missed(self, scores: Tensor) -> Floats:
        """Return which of the judged pictures (J,) scores (N + M, K) miss."""
        found: Floats = misses(scores, self.labels).numpy()[self.judged]
        return found

    def laws(
        self,
        sizes: Sequence[int],
        missed: Sequence[Sequence[Floats]],
        kinds: Sequence[tuple[int, bool]] = LAWS,
    ) -> "_Laws":
        """Return the laws of what was missed, (S, R, J), at sizes (S,)."""
        every = np.array(missed).transpose(1, 2, 0)  # (R, J, S)
        pairs = zip(self.shares.T, every, strict=True)
        means = np.asarray(sum(share[:, None] * (self.votes @ each) for share, each in pairs))
        numbers = np.array(sizes, dtype=float)
        fits = np.stack([fit_power_law(numbers[-k:], means[:, -k:], c) for k, c in kinds])
        drawn = fits[self.draws % len(kinds), np.arange(len(means))]
        return _Laws(fits[:, 0], drawn[1:], means[0])


@dataclass(frozen=True)
class _Laws:
    """Power laws (5, 3) of all pictures, one of each kind, and (B, 3) of resamples; errors (S,)."""

    of_all: Floats
    resampled: Floats
    errors: Floats

    def at(self, pictures: int, factors: Floats | float = 1.0) -> tuple[float, float, float]:
        """Return the error at a number of pictures and its band. factors: (B,), of the band."""
        return _band(law_at(self.of_all, pictures), law_at(self.resampled, pictures) * factors)

    def twice(self, pictures: int) -> Gain:
        """Return what twice so many pictures would bring."""
        gains = (
            law_at(laws, pictures) - law_at(laws, 2 * pictures)
            for laws in (self.of_all, self.resampled)
        )
        return Gain(*_band(*gains))


def _band(of_all: Floats, resampled: Floats) -> tuple[float, float, float]:
    """Return the mean over the kinds of law, and the 95 % band of the resamples."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    mean = float(of_all.mean())
    return mean, float(min(low, mean)), float(max(high, mean))


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
    if len(shares) < FEWEST_SIZES:
        return None
    groups = None if pictures.groups is None else pictures.groups[own]
    targets = one_hot(labels, len(classes))
    outer = decompose(pictures.features[own], targets, pictures.widths)
    spectrum, asked = outer.on_components(), outer.components(pictures.features[others])
    problem = Problem(outer.components(pictures.features[own]), targets, None, groups)
    penalty = _penalty(spectrum, problem)
    left_out = left_out_scores(spectrum, problem, penalty)
    whole = torch.cat([left_out, spectrum.predict(asked, penalty)])
    bench, judged_on = _bench(pictures, torch.cat([own, others]), whole, len(own), rng)
    every = torch.cat([problem.features, asked])
    gram, sizes, missed = every @ every.T, [], []
    for share in shares[:-1]:
        parts = [torch.from_numpy(np.flatnonzero(order < share)) for order in bench.orders]
        sizes.append(round(sum(map(len, parts)) / len(parts)))
        scores = (_scores(problem, gram, part) for part in parts)
        missed.append([bench.missed(each) for each in scores])
    missed.append([bench.missed(whole)] * len(bench.orders))
    sizes.append(len(own))
    laws = bench.laws(sizes, missed)
    there = int(pictures.train.sum())
    ends = [*(n for n in sizes if n > len(own) // 2), there, round(math.sqrt(2) * there), 2 * there]
    factors = np.exp(_redrawn(shares, missed) * rng.standard_normal(RESAMPLES))
    solved = Reweighted(spectrum, problem, penalty, asked)
    each, together = _of_classes(solved, bench, labels, classes)
    return LearningCurve(
        pictures=tuple(sizes),
        errors=tuple(laws.errors.tolist()),
        all_pictures=there,
        judged_on=judged_on,
        forecasts=tuple((n, *laws.at(n, factors)) for n in dict.fromkeys(ends)),
        twice=laws.twice(there),
        classes=each,
        together=together,
    )


def _redrawn(shares: Sequence[float], missed: Sequence[Sequence[Floats]]) -> float:
    """Return by which share the error would change had other training pictures been drawn.

    From what it changes between repetitions; parts of the same pictures differ less, by 1 - share.
    """
    errors = np.array([[each.mean() for each in of_size] for of_size in missed[-5:-1]])
    mean = np.maximum(errors.mean(1), 1e-9)
    within = np.array([1 - share for share in shares[-5:-1]])
    return float(np.sqrt((errors.var(1, ddof=1) / mean**2 / within).mean()))


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
    among = None if pictures.groups is None else pictures.groups[rows]
    groups, others = (None, None) if among is None else (among[:own], among[own:])
    worse = own < len(rows) and bool(wrong[own:].mean() > wrong[:own].mean())
    differs = worse and disagree(wrong[:own], wrong[own:], (groups, others), SURELY)
    judged = np.arange(own if differs else 0, len(rows))
    orders = np.stack([nested_order(labels[:own], groups, rng) for _ in range(REPETITIONS)])
    of = judged if among is None else among.numpy()[judged]
    _, unit = np.unique(of, return_inverse=True)
    units = int(unit.max()) + 1
    drawn = rng.multinomial(units, np.full(units, 1 / units), RESAMPLES)
    votes = np.concatenate([np.ones((1, units)), drawn])[:, unit]
    votes /= votes.sum(1, keepdims=True)
    repeated = rng.multinomial(REPETITIONS, np.full(REPETITIONS, 1 / REPETITIONS), RESAMPLES)
    shares = np.concatenate([np.ones((1, REPETITIONS)), repeated]) / REPETITIONS
    draws = rng.permutation(RESAMPLES + 1)
    bench = _Bench(labels, orders, judged, votes, shares, draws)
    return bench, VALIDATION if differs else "all"


def _scores(problem: Problem, gram: Tensor, part: Tensor) -> Tensor:
    """Return scores (N + M, K) by a solve on a part (n,) of a problem of N pictures.

    gram: (N + M, N + M), products of all pictures' components.
    """
    inner = gram[part][:, part]
    mean = inner.mean(0)
    values, left = eigen(inner - mean - mean[:, None] + mean.mean())
    components = (gram[:, part] - mean) @ (left / values.sqrt())
    targets = problem.targets[part].double()
    crossed = values.sqrt()[:, None] * (left.T @ targets)
    spectrum = on_components(values, crossed, targets.mean(0), len(part))
    groups = None if problem.groups is None else problem.groups[part]
    own = Problem(components[part], targets, None, groups)
    penalty = _penalty(spectrum, own)
    scores = spectrum.predict(components, penalty)
    scores[part] = left_out_scores(spectrum, own, penalty)
    return scores


def _penalty(spectrum: Spectrum, problem: Problem) -> float:
    """Return the penalty of the lowest leave-one-out error."""
    errors = squared_errors(spectrum, problem, PENALTIES)
    return PENALTIES[errors.index(min(errors))]


def _of_classes(
    solved: Reweighted, bench: _Bench, labels: Tensor, classes: Sequence[str]
) -> tuple[dict[str, tuple[int, Gain]], Gain | None]:
    """Return the gain of twice the pictures of each class, and of all that gain together."""
    counts = labels.bincount(minlength=len(classes)).tolist()
    asked = [k for k, count in enumerate(counts) if count >= FEWEST_THINNED][:MOST_CLASSES]

    def gain(ours: Sequence[int]) -> Gain:
        """Return the gain of twice the pictures of these classes."""
        among = torch.isin(labels, torch.tensor(ours))
        sizes, missed = [], []
        for share in THINNED:
            weights = [_thinned(labels, among, torch.from_numpy(o < share)) for o in bench.orders]
            sizes.append(round(sum(int((among & (w > 0)).sum()) for w in weights) / len(weights)))
            changed = ((w != 1).nonzero().flatten() for w in weights)
            scores = (solved.scores(r, w[r]) for r, w in zip(changed, weights, strict=True))
            missed.append([bench.missed(each) for each in scores])
        return bench.laws(sizes, missed, LAWS_OF_CLASS).twice(int(among.sum()))

    found = {classes[k]: (counts[k], gain([k])) for k in asked}
    gaining = [k for k in asked if found[classes[k]][1].verdict == "gains"]
    return found, gain(gaining) if 0 < len(gaining) < len(asked) else None


def _thinned(labels: Tensor, among: Tensor, part: Tensor) -> Tensor:
    """Return weights (N,): 0 of pictures `among` some that are in no part, (N,) each.

    Those that stay weigh more: together as all pictures of their class, so that a class with fewer
    pictures is known less and not expected less often.
    """
    kept, size = part | ~among, int(labels.max()) + 1
    ratio = labels.bincount(minlength=size) / labels[kept].bincount(minlength=size).clamp_min(1)
    return torch.where(kept, ratio[labels], 0.0)


def _few(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
