from typing import Any

import numpy as np
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch
from transferkit.pretraining.siamese import in_pairs, partners, same_or_different


def test_partners_are_the_same_and_strangers_are_not() -> None:
    identities = torch.tensor([0, 1, 0, 2, 1, 0])
    partner, stranger = partners(identities)
    assert partner.tolist() == [2, 4, 5, 3, 1, 0]  # the next of its own, else itself
    assert torch.equal(identities[partner], identities)
    assert (identities[stranger] != identities).all()
    _, nobody = partners(torch.zeros(3))
    assert nobody.tolist() == [-1, -1, -1]
    own, other = partners(torch.arange(3))
    assert own.tolist() == [0, 1, 2]
    assert other.tolist() == [1, 2, 0]


def test_pictures_of_one_identity_come_in_pairs() -> None:
    identities = np.random.default_rng(0).integers(0, 30, 100)
    order = np.random.default_rng(1).permutation(100)
    found = in_pairs(order, identities[order])
    assert sorted(found) == list(range(100))
    runs = identities[found]
    paired = sum(int(c // 2 * 2) for c in np.bincount(identities))
    together = [
        runs[i] == runs[i - 1] or (i + 1 < 100 and runs[i] == runs[i + 1]) for i in range(100)
    ]
    assert sum(together) >= paired


def learned(identities: bool, labels: torch.Tensor) -> tuple[Any, Any, Batch]:
    encoder = Encoder(create_backbone("mlp", pretrained=False, image_size=16))
    options = Pretraining(method="same-or-different", identities=identities)
    method = same_or_different(encoder, options, 0)
    method.networks.eval()
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2))
    batch = Batch(views, labels, 0.0)
    (move,) = method.phases[0].learn(batch)
    return move, method.networks, batch


def by_hand(networks: Any, batch: Batch, pairs: list[tuple[int, int, float]]) -> torch.Tensor:
    first, second = (networks["encoder"](view) for view in batch.views)
    losses = []
    for i, j, truth in pairs:
        embedded = [networks["head"].embed(f[None]) for f in (first[i], second[j])]
        odds = networks["head"].weigh((embedded[0] - embedded[1]).abs())[0, 0]
        chance = torch.sigmoid(odds)
        losses.append(-(truth * chance.log() + (1 - truth) * (1 - chance).log()))
    return torch.stack(losses).mean()


def test_two_views_of_one_picture_are_the_same() -> None:
    move, networks, batch = learned(False, torch.zeros(4, dtype=torch.int64))
    pairs = [(i, i, 1.0) for i in range(4)] + [(i, (i + 1) % 4, 0.0) for i in range(4)]
    torch.testing.assert_close(move.loss, by_hand(networks, batch, pairs))


def test_two_pictures_of_one_identity_are_the_same() -> None:
    move, networks, batch = learned(True, torch.tensor([0, 0, 1, 1]))
    pairs = [(0, 1, 1.0), (1, 0, 1.0), (2, 3, 1.0), (3, 2, 1.0)]
    pairs += [(0, 2, 0.0), (1, 2, 0.0), (2, 0, 0.0), (3, 0, 0.0)]
    torch.testing.assert_close(move.loss, by_hand(networks, batch, pairs))
