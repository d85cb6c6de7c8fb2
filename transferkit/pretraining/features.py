"""Frozen features: extraction, k-NN and linear probes, signs of collapse."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.data.index import DatasetIndex
from transferkit.data.loader import ahead
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.views import PretrainingViews

Floats = NDArray[np.float64]
ROWS = 128
"""Batch size of the feature extraction."""
NEIGHBOURS = 20
COLLAPSED_SPREAD, COLLAPSED_RANK = 0.01, 1.5


def clean_images(
    index: DatasetIndex, positions: NDArray[np.int64], views: PretrainingViews
) -> Iterator[Tensor]:
    """Yield the clean views of pictures in batches (N, 3, H, W), values 0..1."""
    maker = views.clean()

    def make(position: int) -> np.ndarray:
        return maker.make(index.file(position), position, 0)[0].pixels

    pixels = ahead(make, map(int, positions))
    for start in range(0, len(positions), ROWS):
        count = min(ROWS, len(positions) - start)
        yield torch.from_numpy(np.stack([next(pixels) for _ in range(count)])).float() / 255


@torch.no_grad()
def features_of(encoder: Encoder, images: Iterator[Tensor], device: torch.device) -> Floats:
    """Return the features (N, D) of batches of pictures, in evaluation mode."""
    encoder.eval()
    features = [encoder(batch.to(device)).float().cpu() for batch in images]
    return torch.cat(features).double().numpy()


def probe(
    encoder: Encoder, index: DatasetIndex, views: PretrainingViews, device: torch.device, seed: int
) -> dict[str, float]:
    """Return the validation accuracy of two classifiers on frozen features of labelled pictures.

    probe_knn: the 20 nearest training pictures by cosine distance, weighted by its inverse.
    probe_linear: logistic regression on standardised features.
    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018; Alain and Bengio, "Understanding intermediate layers using linear classifier
    probes", 2016; scikit-learn's implementations.
    """
    splits = [index.of_split(split) for split in ("train", "val")]
    train, val = (features_of(encoder, clean_images(index, s, views), device) for s in splits)
    labels, truth = (index.labels[split] for split in splits)
    return {
        "probe_knn": knn_accuracy(train, labels, val, truth),
        "probe_linear": linear_accuracy(train, labels, val, truth, seed),
    }


def knn_accuracy(
    train: Floats, labels: NDArray[np.int64], val: Floats, truth: NDArray[np.int64]
) -> float:
    """Return the k-NN accuracy on val (M, D) with the neighbours from train (N, D)."""
    from sklearn.neighbors import KNeighborsClassifier

    count = min(NEIGHBOURS, len(train))
    model = KNeighborsClassifier(count, metric="cosine", weights="distance")
    return float(model.fit(train, labels).score(val, truth))


def linear_accuracy(
    train: Floats, labels: NDArray[np.int64], val: Floats, truth: NDArray[np.int64], seed: int
) -> float:
    """Return the accuracy on val (M, D) of a logistic regression fitted to train (N, D)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=300, tol=1e-3, random_state=seed)
    )
    return float(model.fit(train, labels).score(val, truth))


def feature_spread(features: Floats) -> float:
    """Return how much the directions of features (N, D) vary: 0 when collapsed, at most 1.

    The mean standard deviation of the D entries of the L2-normalised features, times the root of D.
    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, 1e-12)
    return float(directions.std(axis=0).mean() * np.sqrt(features.shape[1]))


def effective_rank(features: Floats) -> float:
    """Return the effective rank of centred features (N, D): from 1 to the smaller of N - 1 and D.

    exp of the entropy of the normalised singular values; 0 for constant features.
    Source: Roy and Vetterli, "The Effective Rank", EUSIPCO 2007.
    """
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    if values.sum() < 1e-12 * max(1.0, float(np.abs(features).max())):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def collapse_warning(spread: float, rank: float) -> str:
    """Return a warning about features that hardly differ between pictures any more, or ""."""
    if spread >= COLLAPSED_SPREAD and rank >= COLLAPSED_RANK:
        return ""
    return (
        f"the features are collapsing: spread {spread:.4f} of 1, effective rank {rank:.1f}; "
        "lower --lr, raise --batch-size, or take another --method"
    )
