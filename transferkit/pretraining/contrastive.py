"""Self-supervised methods that compare views of pictures; losses and heads are lightly's."""

from collections.abc import Iterator

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase


def simclr(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Tell the other view of a picture from the views of all others in the batch.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020.
    """
    width = encoder.num_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SimCLRProjectionHead(width, width, options.projection)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})
    compare = NTXentLoss(options.temperature or 0.5)

    def learn(batch: Batch) -> Iterator[Move]:
        count = len(batch.labels)
        projected = head(encoder(torch.cat(batch.views)))
        yield Move(compare(projected[:count], projected[count:]))

    return Method(networks, (Phase("contrast", {"network": networks}, learn),))
