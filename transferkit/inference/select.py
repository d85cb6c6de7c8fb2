"""Active learning: select uncertain and diverse pictures without duplicates to label next."""

import heapq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from transferkit.closed_form.label_gain import LabelGain
from transferkit.closed_form.sums import one_hot
from transferkit.data.decode import DecodeError, probe
from transferkit.data.duplicates import exact_groups, near_groups
from transferkit.errors import UserError
from transferkit.files.foreign_files import understood
from transferkit.inference.members import Member
from transferkit.inference.ood import normalized
from transferkit.inference.uncertainty import Uncertainty

Floats = NDArray[np.float64]

POOL_PER_PICK = 4  # by a score: diverse ones are picked from the 4 N highest
LARGEST_POOL = 20_000  # by diversity, or by what a solve says: random sample of more pictures
MOST_ASKED = 2000  # of these, by what a label would change of what a solve says of them
SAMPLED = ("diverse", "solve")


def score_by(criterion: str, uncertainty: Uncertainty) -> Floats:
    """Return the acquisition scores (N,), higher is labelled first; 0 for "diverse"."""
    if criterion == "bald":
        return uncertainty.mutual_information
    if criterion == "margin":
        return 1 - uncertainty.margin
    if criterion == "diverse":
        return np.zeros(len(uncertainty.margin))
    return uncertainty.predictive_entropy


def label_gain(member: Member) -> LabelGain:
    """Return a solve on the labelled pictures that a run keeps, which says what a label is worth.

    Raises UserError for a run that keeps none.
    """
    reference = member.folder.load_reference() if member.folder else None
    if reference is None:
        what = f"--by solve: {member.path} holds no features of its training pictures"
        raise UserError(what, "", "train it again with this release, or take --by entropy")
    with understood(member.path):
        features = reference["features"].float()
        depths = getattr(member.loaded.classifier, "depths", ())
        widths = [depth.columns for depth in depths] or [features.shape[1]]
        targets = one_hot(reference["labels"], len(member.loaded.classes))
        return LabelGain(features, targets, widths)


@dataclass
class Pool:
    """The best candidates so far, in bounded memory; by `SAMPLED`, a random sample of all.

    gain: of "solve"; the scores of candidates are their surprise then.
    """

    wanted: int
    criterion: str
    seed: int = 0
    gain: LabelGain | None = None
    seen: int = 0
    _heap: list[tuple[float, int, Path, float, np.ndarray]] = field(default_factory=list)

    def add(self, file: Path, score: float, features: np.ndarray) -> None:
        """Add a candidate. features: (D,)."""
        rank = score
        if self.criterion in SAMPLED:
            rank = float(np.random.default_rng([self.seed, self.seen]).random())
        entry = (rank, -self.seen, file, score, features.astype(np.float32))
        self.seen += 1
        if len(self._heap) < self.limit:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def limit(self) -> int:
        """The largest number of candidates; copies of one picture must not crowd out others."""
        return max(LARGEST_POOL, self.wanted) if self.criterion in SAMPLED else self._enough

    @property
    def _enough(self) -> int:
        return max(4 * POOL_PER_PICK * self.wanted, 200)

    def choose(self, labelled: np.ndarray | None) -> list[tuple[Path, float]]:
        """Return the picks in order, with their scores.

        labelled: features (M, D) of labelled pictures, which "diverse" picks avoid, too; or None.
        """
        ranked = sorted(self._worth(), key=lambda entry: (-entry[3], -entry[1]))
        ranked = ranked[: self._enough] if self.criterion == "solve" else ranked
        kept = without_copies([entry[2] for entry in ranked])
        if self.criterion != "diverse":
            kept = kept[: POOL_PER_PICK * self.wanted]
        if not kept:
            return []
        features = np.stack([ranked[k][4] for k in kept])
        avoided = labelled if self.criterion == "diverse" else None
        picks = farthest_first(features, min(self.wanted, len(kept)), avoided)
        return [(ranked[kept[p]][2], ranked[kept[p]][3]) for p in picks]

    def _worth(self) -> list[tuple[float, int, Path, float, np.ndarray]]:
        """Return the candidates with their final scores."""
        if self.gain is None or not self._heap:
            return self._heap
        drawn = sorted(self._heap, key=lambda entry: (entry[0], entry[1]))
        features = torch.from_numpy(np.stack([entry[4] for entry in drawn]))
        change = self.gain.change(features, features[:MOST_ASKED]).tolist()
        pairs = zip(drawn, change, strict=True)
        return [(*entry[:3], entry[3] * each, entry[4]) for entry, each in pairs]


def without_copies(files: list[Path]) -> list[int]:
    """Return the positions of the first of every group of duplicates or near duplicates."""
    positions, digests, hashes = [], [], []
    for position, file in enumerate(files):
        try:
            probed = probe(file)
        except DecodeError:
            continue
        positions.append(position)
        digests.append(probed.digest)
        hashes.append(probed.dhash)
    near, _ = near_groups([files[p] for p in positions], digests, np.array(hashes, dtype=np.uint64))
    extra = {other for group in (*exact_groups(digests), *near) for other in group[1:]}
    return [p for number, p in enumerate(positions) if number not in extra]


def farthest_first(
    features: np.ndarray, count: int, avoided: np.ndarray | None = None
) -> list[int]:
    """Pick points one by one, each the farthest from all picked and avoided ones.

    features: (N, D), compared by direction; the first pick is point 0 where nothing is avoided.
    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", ICLR 2018 (greedy k-center).
    """
    points = normalized(features)
    nearest = np.full(len(points), np.inf)
    if avoided is not None and len(avoided):
        centres = normalized(avoided)
        for start in range(0, len(points), 1024):
            nearest[start : start + 1024] = 1 - (points[start : start + 1024] @ centres.T).max(1)
    picks: list[int] = []
    for _ in range(count):
        pick = int(np.argmax(nearest))
        picks.append(pick)
        nearest = np.minimum(nearest, 1 - points @ points[pick])
        nearest[picks] = -np.inf
    return picks
