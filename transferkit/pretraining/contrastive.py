"""Self-supervised methods that compare views of pictures; losses and heads are lightly's.

Those whose second network is a slow copy of the first are in `transferkit.pretraining.teachers`.
"""

from collections.abc import Callable, Iterator

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from torch import Tensor, nn

from transferkit.backbones.synchronized import gathered
from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase

LR = 2e-3
"""Peak rate where the user names none; small networks with batch norm take more, e.g. 5e-3."""

Compare = Callable[[Tensor, Tensor], Tensor]
"""Two views' outputs (N, P) each -> loss []."""


def simclr(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Tell the other view of a picture from the views of all others in the batch.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020.
    """
    width = encoder.num_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SimCLRProjectionHead(width, width, options.projection or 128)
    return joint_embedding(encoder, head, NTXentLoss(options.temperature or 0.2), "contrast")


def barlow(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Make the correlations between the outputs of two views the identity matrix.

    Source: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    ICML 2021.
    """
    wide = options.projection or 1024
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = BarlowTwinsProjectionHead(encoder.num_features, wide, wide)
    return joint_embedding(encoder, head, BarlowTwinsLoss(), "decorrelate")


def vicreg(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Keep every output's variance above one and its covariances low, and the views' outputs near.

    Its head is built like Barlow Twins'.
    Source: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning", ICLR 2022.
    """
    wide = options.projection or 1024
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = BarlowTwinsProjectionHead(encoder.num_features, wide, wide)
    return joint_embedding(encoder, head, VICRegLoss(), "regularize")


def joint_embedding(encoder: Encoder, head: nn.Module, compare: Compare, name: str) -> Method:
    """Compare the head's outputs of two views of the same pictures, both trained.

    Several processes compare the outputs of all of them.
    """
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Move]:
        count = len(batch.labels)
        projected = head(encoder(torch.cat(batch.views)))  # (2 N, P)
        yield Move(compare(gathered(projected[:count]), gathered(projected[count:])))

    return Method(networks, (Phase(name, {"network": networks}, learn),), lr=LR)


def simsiam(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict the projection of the other view, which is held still while it is a target.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
    """
    width, wide = encoder.num_features, options.projection or 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SimSiamProjectionHead(width, wide, wide)
        predictor = SimSiamPredictionHead(wide, max(2, wide // 4), wide)
    networks = nn.ModuleDict({"encoder": encoder, "head": head, "predictor": predictor})
    compare = NegativeCosineSimilarity()

    def learn(batch: Batch) -> Iterator[Move]:
        projected = head(encoder(torch.cat(batch.views)))  # (2 N, P)
        targets = projected.detach().roll(len(batch.labels), 0)  # of the other views
        yield Move(compare(predictor(projected), targets))

    return Method(networks, (Phase("predict", {"network": networks}, learn),), lr=LR)
