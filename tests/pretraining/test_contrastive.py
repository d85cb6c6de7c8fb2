import math

import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.pretraining.contrastive import simclr
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch


def test_simclr_compares_each_view_with_all_others() -> None:
    encoder = Encoder(create_backbone("mlp", pretrained=False, image_size=16))
    method = simclr(encoder, Pretraining(temperature=0.2, projection=8), seed=0)
    method.networks.eval()
    views = tuple(torch.rand(4, 3, 16, 16) for _ in range(2))
    (move,) = method.phases[0].learn(Batch(views, torch.zeros(4, dtype=torch.int64), 0.0))
    head = method.networks["head"]  # type: ignore[index]
    outputs = torch.nn.functional.normalize(head(encoder(torch.cat(views))), dim=1).detach()
    losses = []
    for i in range(8):
        partner = (i + 4) % 8
        sims = outputs @ outputs[i] / 0.2
        others = [math.exp(float(sims[j])) for j in range(8) if j != i]
        losses.append(-math.log(math.exp(float(sims[partner])) / sum(others)))
    torch.testing.assert_close(move.loss.detach(), torch.tensor(sum(losses) / 8))
