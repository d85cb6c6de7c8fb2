import math
from collections.abc import Callable
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import lightly.loss
import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.pretraining.contrastive import barlow, simclr, simsiam, vicreg
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method

Make = Callable[[Encoder, Pretraining, int], Method]
N, P = 6, 24


def made(make: Make, **options: Any) -> tuple[Method, Any]:
    """A method on a small network, in evaluation mode, and its networks."""
    encoder = Encoder(create_backbone("mlp", pretrained=False, image_size=16))
    method = make(encoder, Pretraining(projection=P, **options), 0)
    return method, method.networks.eval()


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(N, 3, 16, 16, generator=generator)
    return first, (first + 0.3 * torch.rand(N, 3, 16, 16, generator=generator)).clamp(0, 1)


def loss_of(method: Method, *pictures: Tensor) -> Tensor:
    (move,) = method.phases[0].learn(Batch(pictures, torch.zeros(N, dtype=torch.int64), 0.0))
    return move.loss


def outputs(networks: Any) -> tuple[Tensor, Tensor]:
    """The projections (N, P) of both views, one view at a time."""
    with torch.no_grad():
        first, second = (networks["head"](networks["encoder"](view)) for view in views())
    return first, second


def test_simclr_compares_each_view_with_all_others() -> None:
    method, networks = made(simclr, temperature=0.2)
    unit = nn.functional.normalize(torch.cat(outputs(networks)), dim=1)
    losses = []
    for i in range(2 * N):
        partner = (i + N) % (2 * N)
        sims = unit @ unit[i] / 0.2
        others = [math.exp(float(sims[j])) for j in range(2 * N) if j != i]
        losses.append(-math.log(math.exp(float(sims[partner])) / sum(others)))
    expected = torch.tensor(sum(losses) / (2 * N))
    torch.testing.assert_close(loss_of(method, *views()).detach(), expected)


def test_simsiam_predicts_the_other_view() -> None:
    method, networks = made(simsiam)
    first, second = outputs(networks)
    predict = networks["predictor"]

    def cosine(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(1).div(x.norm(dim=1) * y.norm(dim=1)).mean()

    expected = -(cosine(predict(first), second) + cosine(predict(second), first)) / 2
    torch.testing.assert_close(loss_of(method, *views()), expected)


def test_no_gradient_reaches_the_targets_of_simsiam() -> None:
    """With a predictor that is held constant, nothing of the loss reaches the backbone."""
    method, networks = made(simsiam)
    last = networks["predictor"].layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    loss_of(method, *views()).backward()
    gradients = [p.grad for p in networks["encoder"].parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    assert last.weight.grad.any()


def test_barlow_makes_the_correlations_the_identity() -> None:
    method, networks = made(barlow)
    first, second = (
        (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in outputs(networks)
    )
    correlations = first.T @ second / N
    apart = correlations - torch.diag(correlations.diag())
    expected = (1 - correlations.diag()).square().sum() + 5e-3 * apart.square().sum()
    torch.testing.assert_close(loss_of(method, *views()).detach(), expected)


def test_vicreg_weighs_nearness_variance_and_covariance() -> None:
    method, networks = made(vicreg)
    variance = covariance = torch.zeros(())
    first, second = outputs(networks)
    near = (first - second).square().mean()
    for z in (first, second):
        variance = variance + (1 - (z.var(0) + 1e-4).sqrt()).clamp(min=0).mean() / 2
        matrix = z.T.cov()
        covariance = covariance + (matrix - torch.diag(matrix.diag())).square().sum() / P
    expected = 25 * near + 25 * variance + covariance
    torch.testing.assert_close(loss_of(method, *views()).detach(), expected)


@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (simclr, lightly.loss.NTXentLoss(0.2)),
        (barlow, lightly.loss.BarlowTwinsLoss()),
        (vicreg, lightly.loss.VICRegLoss()),
    ],
)
def test_the_loss_is_the_librarys(make: Make, theirs: nn.Module) -> None:
    method, networks = made(make)
    torch.testing.assert_close(loss_of(method, *views()).detach(), theirs(*outputs(networks)))


@pytest.mark.parametrize("make", [simclr, simsiam, barlow, vicreg])
def test_views_that_agree_cost_less_than_views_of_other_pictures(make: Make) -> None:
    method, _ = made(make)
    first, second = views()
    assert loss_of(method, first, second) < loss_of(method, first, second.roll(1, 0))
