"""Self-supervised methods that compare views of pictures; losses and heads are lightly's.

Those with a momentum copy of the network are in `transferkit.pretraining.teachers`.
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
from transferkit.pretraining.method import Batch, Method, Objective, Phase

LR = 2e-3
"""Default peak learning rate; small networks with batch norm tolerate more, e.g. 5e-3."""

Compare = Callable[[Tensor, Tensor], Tensor]
"""(outputs (N, P) of one view, of the other) -> loss []."""


def simclr(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Identify the other view of a picture among the views of all others in the batch.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020.
    """
    width = encoder.num_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SimCLRProjectionHead(width, width, options.projection or 128)
    return joint_embedding(encoder, head, NTXentLoss(options.temperature or 0.2), "contrast")


def barlow(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Make the cross-correlation matrix of two views' outputs the identity.

    Source: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    ICML 2021.
    """
    wide = options.projection or 1024
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = BarlowTwinsProjectionHead(encoder.num_features, wide, wide)
    return joint_embedding(encoder, head, BarlowTwinsLoss(), "decorrelate")


def vicreg(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Keep each output's variance above 1, covariances low, and the two views' outputs close.

    The head is that of Barlow Twins.
    Source: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning", ICLR 2022.
    """
    wide = options.projection or 1024
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = BarlowTwinsProjectionHead(encoder.num_features, wide, wide)
    return joint_embedding(encoder, head, VICRegLoss(), "regularize")


def joint_embedding(encoder: Encoder, head: nn.Module, compare: Compare, name: str) -> Method:
    """Compare the head's outputs for two views, with gradients through both.

    Distributed processes compare the gathered outputs of all of them.
    """
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Objective]:
        count = len(batch.labels)
        projected = head(encoder(torch.cat(batch.views)))  # (2 N, P)
        yield Objective(compare(gathered(projected[:count]), gathered(projected[count:])))

    return Method(networks, (Phase(name, {"network": networks}, learn),), lr=LR)


def simsiam(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict the projection of the other view, which is a target without gradient.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
    """
    width, wide = encoder.num_features, options.projection or 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SimSiamProjectionHead(width, wide, wide)
        predictor = SimSiamPredictionHead(wide, max(2, wide // 4), wide)
    networks = nn.ModuleDict({"encoder": encoder, "head": head, "predictor": predictor})
    compare = NegativeCosineSimilarity()

    def learn(batch: Batch) -> Iterator[Objective]:
        projected = head(encoder(torch.cat(batch.views)))  # (2 N, P)
        targets = projected.detach().roll(len(batch.labels), 0)  # of the other views
        yield Objective(compare(predictor(projected), targets))

    return Method(networks, (Phase("predict", {"network": networks}, learn),), lr=LR)
