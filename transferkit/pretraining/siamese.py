"""Siamese network: one network embeds two pictures and predicts whether they show the same thing.

Source: Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition",
ICML deep learning workshop 2015; Bromley et al., "Signature Verification using a Siamese Time Delay
Neural Network", NeurIPS 1993.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase

WIDE = 128


class Comparison(nn.Module):
    """Maps features (N, D) of two pictures each to logits (N,) that they show the same."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(num_features, WIDE), nn.BatchNorm1d(WIDE))
        self.weigh = nn.Linear(WIDE, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return a weighted sum of the absolute differences between the embeddings."""
        count = len(first)
        embedded = self.embed(torch.cat([first, second]))
        logits: Tensor = self.weigh((embedded[:count] - embedded[count:]).abs()).squeeze(1)
        return logits


def partners(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Choose for each picture the next one of its identity (N,) and the next of a different one.

    Returns positions (N,), (N,), searched cyclically; a picture whose identity has no other is its
    own partner, and -1 means that there is no different one.
    """
    count = len(identities)
    turn = (torch.arange(count)[:, None] + torch.arange(1, count + 1)[None]) % count  # itself last
    same = identities.cpu()[turn] == identities.cpu()[:, None]
    partner = turn.gather(1, same.int().argmax(dim=1, keepdim=True)).squeeze(1)
    stranger = turn.gather(1, (~same).int().argmax(dim=1, keepdim=True)).squeeze(1)
    return partner, torch.where(same.all(dim=1), -1, stranger)


def in_pairs(order: NDArray[np.int64], identities: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reorder pictures so that pairs of one identity are adjacent, as far as there are pairs.

    order: (N,) positions in random order. identities: (N,) of the pictures in that order.
    """
    waiting: dict[int, list[int]] = {}
    pairs: list[list[int]] = []
    for position, identity in zip(order.tolist(), identities.tolist(), strict=True):
        if identity in waiting:
            waiting.pop(identity).append(position)
        else:
            pairs.append([position])
            waiting[identity] = pairs[-1]
    return np.array(list(itertools.chain(*pairs)), dtype=np.int64)


def same_or_different(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict whether two pictures show the same thing, on as many positive as negative pairs.

    Positive: two views of one picture, or with --identities two pictures of one folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Comparison(encoder.num_features)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Objective]:
        count = len(batch.labels)
        positions = torch.arange(count)
        partner, stranger = partners(batch.labels if options.identities else positions)
        features = encoder(torch.cat(batch.views))  # (2 N, D)
        first, second = features[:count], features[count:]
        negative = stranger >= 0
        left = torch.cat([first, first[negative]])
        right = torch.cat([second[partner], second[stranger[negative]]])
        truth = torch.cat([torch.ones(count), torch.zeros(int(negative.sum()))]).to(left.device)
        logits = head(left, right)
        accuracy = float(((logits.detach() > 0) == (truth > 0)).float().mean())
        loss = functional.binary_cross_entropy_with_logits(logits, truth)
        yield Objective(loss, figures={"accuracy": accuracy})

    return Method(
        networks,
        (Phase("compare", {"network": networks}, learn),),
        arrange=in_pairs if options.identities else None,
    )
