import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from transferkit.training.supervised import Objective, balanced_class_weights

LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def loss_of(objective: Objective, inputs: Tensor, network: nn.Module, seed: int = 0) -> Tensor:
    return objective.loss(network, inputs, LABELS, np.random.default_rng(seed))[0]


def test_plain_loss_equals_torch() -> None:
    network, inputs = nn.Linear(5, 4), torch.randn(6, 5)
    loss, logits = Objective().loss(network, inputs, LABELS, np.random.default_rng(0))
    assert torch.equal(logits, network(inputs))
    assert torch.equal(loss, nn.CrossEntropyLoss()(network(inputs), LABELS))


def test_label_smoothing_closed_form() -> None:
    network, inputs, smoothing = nn.Linear(5, 4), torch.randn(6, 5), 0.3
    logs = network(inputs).log_softmax(dim=1)
    own = logs[torch.arange(6), LABELS]
    expected = -((1 - smoothing) * own + smoothing * logs.mean(dim=1)).mean()
    assert loss_of(Objective(smoothing), inputs, network).item() == pytest.approx(expected.item())


def test_class_weights_closed_form() -> None:
    network, inputs = nn.Linear(5, 4), torch.randn(6, 5)
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0])
    each = -network(inputs).log_softmax(dim=1)[torch.arange(6), LABELS]
    expected = (each * weights[LABELS]).sum() / weights[LABELS].sum()
    loss = loss_of(Objective(class_weights=weights), inputs, network)
    assert loss.item() == pytest.approx(expected.item())


def test_balanced_class_weights_equal_sklearn() -> None:
    labels = np.repeat([2, 0, 1, 3], [50, 3, 20, 1])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = balanced_class_weights(labels, 4)
    assert weights.numpy() == pytest.approx(expected)
    assert weights[labels].mean().item() == pytest.approx(1)


def test_mixup_mixes_pictures_and_loss_alike() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    inputs = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8)
    objective = Objective(0.1, mixup=0.4)
    mixed, order, share = objective.mix(inputs, np.random.default_rng(5))
    assert 0 < share < 1
    expected = share * inputs.double() + (1 - share) * inputs[order].double()
    assert torch.allclose(mixed.double(), expected, atol=1e-4)
    logits = network(mixed)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    mean = share * smooth(logits, LABELS) + (1 - share) * smooth(logits, LABELS[order])
    loss, ours = objective.loss(network, inputs, LABELS, np.random.default_rng(5))
    assert torch.equal(ours, logits)
    assert loss.item() == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_cutmix_shares_are_exactly_the_pixel_areas(beta: float) -> None:
    inputs = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 13, 17)
    shares = []
    for seed in range(100):
        mixed, order, share = Objective(cutmix=beta).mix(inputs, np.random.default_rng(seed))
        own = (mixed == inputs).float().mean(dim=(1, 2, 3))
        moved = order != torch.arange(6)
        assert torch.equal(own[~moved], torch.ones(int((~moved).sum())))
        assert own[moved].numpy() == pytest.approx(np.full(int(moved.sum()), share))
        there = (mixed == inputs[order]).float().mean(dim=(1, 2, 3))[moved]
        assert there.numpy() == pytest.approx(np.full(int(moved.sum()), 1 - share))
        shares.append(share)
    assert abs(np.mean(shares) - 0.5) < 4 * 0.45 / 10  # a Beta(b, b) has mean 1/2


def test_cutmix_loss_has_the_shares_of_the_areas() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    inputs = torch.randn(6, 3, 8, 8)
    objective = Objective(cutmix=1.0)
    mixed, order, share = objective.mix(inputs, np.random.default_rng(2))
    logs = network(mixed).log_softmax(dim=1)
    targets = share * nn.functional.one_hot(LABELS, 4).double()
    targets += (1 - share) * nn.functional.one_hot(LABELS[order], 4)
    assert loss_of(objective, inputs, network, 2).item() == pytest.approx(
        -(targets * logs).sum(dim=1).mean().item(), rel=1e-6
    )


def test_activations_without_area_take_mixup() -> None:
    for inputs in (torch.randn(6, 5), torch.randn(6, 7, 5)):
        mixed, order, share = Objective(cutmix=1.0).mix(inputs, np.random.default_rng(1))
        assert torch.allclose(mixed, share * inputs + (1 - share) * inputs[order])


def test_with_both_each_batch_takes_one_of_them() -> None:
    inputs = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 16)
    objective = Objective(mixup=1.0, cutmix=1.0)
    mixed = [objective.mix(inputs, np.random.default_rng(seed))[0] for seed in range(100)]
    whole = sum(bool((m == m.round()).all()) for m in mixed)
    assert 30 < whole < 70  # 50 +- 4 standard deviations


@pytest.mark.parametrize("balanced", [True, False])
def test_means_of_shares_by_weight_are_the_mean_of_all(balanced: bool) -> None:
    labels = np.array([0, 0, 0, 1, 2, 2, 0])
    weights = balanced_class_weights(labels, 3) if balanced else None
    objective = Objective(label_smoothing=0.1, class_weights=weights)
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    whole = objective.cross_entropy(logits, torch.from_numpy(labels))
    shares = [slice(0, 3), slice(3, 7)]
    means = [objective.cross_entropy(logits[s], torch.from_numpy(labels[s])) for s in shares]
    parts = [objective.weight(labels[s]) / objective.weight(labels) for s in shares]
    torch.testing.assert_close(parts[0] * means[0] + parts[1] * means[1], whole)
