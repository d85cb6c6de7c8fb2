"""Recalibrated batch-norm statistics against torch's own, and what stays untouched."""

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from transferkit.backbones.create import create_backbone
from transferkit.backbones.norm_statistics import has_statistics, recalibrate


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [2 * torch.randn(n, 3, 32, 32, generator=generator) + 1 for n in (5, 4)]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_recalibrated_statistics_equal_those_of_torch(name: str) -> None:
    ours, reference = (
        create_backbone(name, pretrained=False, image_size=32).model for _ in range(2)
    )
    before = {n: t.clone() for n, t in ours.state_dict().items()}
    assert list(recalibrate(ours, batches())) == [5, 9]
    update_bn(batches(), reference)
    for tensor_name, expected in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[tensor_name], expected), tensor_name
    moved = {n for n, t in ours.state_dict().items() if not torch.equal(t, before[n])}
    ends = ("running_mean", "running_var", "num_batches_tracked")
    assert moved
    assert all(n.endswith(ends) for n in moved)
    assert not any(module.training for module in ours.modules())
    assert {m.momentum for m in ours.modules() if has_statistics(m)} == {0.1}


def test_drop_path_is_off_meanwhile() -> None:
    plain, dropping = (
        create_backbone("test_resnet", pretrained=False, image_size=32, drop_path=rate).model
        for rate in (0.0, 0.9)
    )
    for model in (plain, dropping):
        list(recalibrate(model, batches()))
    same = [torch.equal(t, dropping.state_dict()[n]) for n, t in plain.state_dict().items()]
    assert all(same)
