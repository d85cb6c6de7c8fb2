"""Batches on their way to where the network computes."""

import torch
from torch import Tensor


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """Move a batch; pictures and activation maps (N, C, H, W) become channels last.

    On its way to a GPU it goes through page-locked memory: the copy does not wait for what the GPU
    still computes, nor the program for the copy.
    """
    if batch.ndim == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)
