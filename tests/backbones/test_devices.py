from typing import Any, cast

import pytest
import torch

from transferkit.backbones.devices import to_device

CPU = torch.device("cpu")


class Batch:
    """Stands for a tensor in the computer's memory, and notes what is asked of it."""

    ndim = 2
    device = CPU

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def pin_memory(self) -> "Batch":
        self.asked.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        self.asked.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "asked"), [("cpu", [("cpu", False)]), ("cuda", ["pinned", ("cuda", True)])]
)
def test_a_batch_goes_to_a_gpu_through_page_locked_memory(device: str, asked: list[Any]) -> None:
    batch = Batch()
    to_device(cast(Any, batch), torch.device(device))
    assert batch.asked == asked


def test_pictures_become_channels_last_and_keep_their_values() -> None:
    images = torch.arange(24.0).view(2, 3, 2, 2)
    moved = to_device(images, CPU)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, images)
    assert to_device(moved, CPU) is moved
    features = torch.randn(2, 3)
    assert to_device(features, CPU) is features
