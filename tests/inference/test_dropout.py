import numpy as np
import pytest
import torch
from torch import nn

import transferkit.timm_import  # noqa: F401  # before timm
from transferkit.errors import UserError
from transferkit.inference.dropout import (
    SeededMasks,
    active_dropout,
    count_draws,
    draw_masks,
    head_samples,
    kept_on,
    network_samples,
    require_dropout,
    set_dropout_,
)

from timm.layers import DropPath  # isort: skip

KEYS = [11, 22, 2**63 + 5]


def head(kind=nn.Dropout, rate=0.4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(12, 16), nn.BatchNorm1d(16), nn.SELU(), kind(rate), nn.Linear(16, 4)]
    layers[1].running_mean.uniform_()
    return nn.Sequential(kind(0.0), *layers).eval()


@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_the_head_alone_equals_full_passes_with_the_same_masks(kind) -> None:
    net, features = head(kind), torch.randn(3, 12)
    fast = head_samples(net, features, KEYS, 7, seed=5)
    slow = network_samples(net, features, KEYS, 7, seed=5)
    assert fast.shape == (3, 7, 4)
    assert torch.allclose(fast, slow, atol=1e-6)
    assert fast.std(dim=1).min() > 0
    assert not any(layer.training for layer in net.modules())


def test_numbers_depend_on_picture_and_seed_alone() -> None:
    net, features = head(), torch.randn(3, 12)
    together = head_samples(net, features, KEYS, 6, seed=1)
    alone = head_samples(net, features[1:2], KEYS[1:2], 6, seed=1)
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert torch.allclose(together[:, :3], head_samples(net, features, KEYS, 3, seed=1), atol=1e-6)
    assert not torch.allclose(together, head_samples(net, features, KEYS, 6, seed=2), atol=1e-2)
    same = head_samples(net, features[:1].expand(2, -1), [1, 2], 6, seed=1)
    assert not torch.allclose(same[0], same[1], atol=1e-2)  # other pixels, other masks


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.3), (2, 50, 8, 8)),
        (nn.Dropout1d(0.3), (2, 3200, 2)),
        (nn.Dropout2d(0.3), (2, 3200, 2, 2)),
        (nn.AlphaDropout(0.3), (2, 3200)),
        (nn.FeatureAlphaDropout(0.3), (2, 3200, 2)),
        (DropPath(0.3), (6000, 2)),
    ],
)
def test_every_kind_drops_at_its_rate_and_keeps_the_mean(layer, shape) -> None:
    inputs = torch.ones(shape)
    keys = range(shape[0])
    with torch.no_grad(), kept_on([layer]), SeededMasks(0, keys, (0,)) as masks:
        outputs = layer(inputs)
    assert masks.draws == 1
    values = outputs.unique()
    assert len(values) == 2
    assert (outputs == outputs.min()).float().mean() == pytest.approx(0.3, abs=0.03)
    if "Alpha" not in type(layer).__name__:
        assert outputs.mean() == pytest.approx(1, abs=0.04)


def test_masks_of_a_sample_do_not_depend_on_the_others() -> None:
    all_of_them = draw_masks([1, 2, 0], range(5), 10, 0.5)
    assert (all_of_them[3] == draw_masks([1, 2, 0], (3,), 10, 0.5)[0]).all()
    assert (all_of_them[3] != all_of_them[2]).any()
    assert draw_masks([0, 0, 0], (0,), 200_000, 0.8).mean() == pytest.approx(0.8, abs=0.005)


def test_batch_norm_stays_in_evaluation() -> None:
    net = head()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    network_samples(net, torch.randn(3, 12), KEYS, 4, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_would_not_vary_is_refused() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    whole = nn.Sequential(plain, nn.Linear(2, 2))
    inputs = torch.ones(1, 2)
    with pytest.raises(UserError, match="without dropout"):
        require_dropout(whole, plain, "head", inputs)
    with pytest.raises(UserError, match="--mc-scope all"):
        require_dropout(whole, plain, "all", inputs)
    assert set_dropout_(plain, 0.2) == 1
    assert active_dropout(whole) == [plain[1]]
    assert count_draws(whole, inputs) == 1
    require_dropout(whole, plain, "all", inputs)


def test_monte_carlo_mean_of_a_linear_head_is_its_deterministic_output() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    features = torch.randn(1, 8)
    mean = head_samples(net, features, [3], 20_000, seed=0).mean(dim=1)
    assert np.allclose(mean, net(features).detach(), atol=0.03)
