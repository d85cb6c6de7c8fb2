from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from transferkit.backbones.create import create_backbone
from transferkit.errors import UserError
from transferkit.training.stage_checks import refuse_lone_pictures, refuse_unfilled
from transferkit.training.stages import PlannedStage, column_finder

GROUPS = (("conv1", "bn1"), ("layer1",), ("layer2", "layer3", "layer4"))
HEAD = PlannedStage("head", 1, 1e-3, (0.0, 0.0, 0.0, 1.0))
TOP = PlannedStage("top 1", 1, 1e-3, (0.0, 0.0, 1.0, 1.0))
ALL = PlannedStage("all", 1, 1e-3, (1.0, 1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("lacks", "stages", "refused"),
    [
        ("conv1.0.weight", (HEAD,), True),
        ("conv1.0.weight", (HEAD, TOP), True),
        ("conv1.0.weight", (HEAD, ALL), False),
        ("layer4.0.bn1.running_mean", (HEAD,), True),
        ("layer4.0.bn1.running_mean", (HEAD, TOP), False),
        ("taken.off.weight", (HEAD,), False),
    ],
)
def test_frozen_tensors_that_no_file_fills_are_refused(
    lacks: str, stages: tuple[PlannedStage, ...], refused: bool
) -> None:
    backbone = replace(
        create_backbone("test_resnet", pretrained=False), unfilled=(lacks,), notices=["why"]
    )
    weights, column_of = Path("some.pth"), column_finder(GROUPS)
    if not refused:
        refuse_unfilled(backbone, stages, column_of, weights)
        return
    with pytest.raises(UserError, match="frozen layers would stay random") as caught:
        refuse_unfilled(backbone, stages, column_of, weights)
    assert caught.value.where.splitlines() == [f"without values: {lacks}", "why"]
    assert "--stages all" in caught.value.remedy


class OnePixel(nn.Module):
    """A batch norm on maps of four pixels, and one on maps of one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten()
        )
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.backbone(images))
        return found


@pytest.mark.parametrize(
    ("multipliers", "kept", "refused"),
    [((0.0, 1.0), 0, False), ((1.0, 1.0), 0, True), ((1.0, 1.0), 1, False)],
)
def test_one_value_of_a_channel_is_no_batch(
    multipliers: tuple[float, float], kept: int, refused: bool
) -> None:
    model, image = OnePixel(), torch.ones(1, 3, 2, 2)
    stage = PlannedStage("s", 1, 1e-3, multipliers, kept_statistics=kept)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if refused:
        with pytest.raises(UserError, match=r"stage s trains backbone\.2, a batch norm") as caught:
            refuse_lone_pictures(model, [stage], column_finder([("0", "2")]), image)
        assert caught.value.exit_code == 2
        assert "--batch-size 2" in caught.value.remedy
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(image)  # what it stands for
    else:
        refuse_lone_pictures(model, [stage], column_finder([("0", "2")]), image)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[n]) for n, value in before.items()) or refused
