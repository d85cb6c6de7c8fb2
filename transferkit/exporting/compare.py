"""An exported model compared with the original, on the same pictures."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH = 32
ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Both models on N pictures.

    agreement: share with the same first class. largest_difference: of any logit.
    relative_difference: the same over the largest logit. accuracy_*: 0..1, None for noise instead
    of pictures (`pictures` is 0). speed_*: pictures/s of the network alone, in batches of 32, the
    better of `ROUNDS` alternating rounds. sparsity: share of zeros among the pruned weights.
    """

    pictures: int
    agreement: float
    largest_difference: float
    relative_difference: float
    accuracy_before: float | None
    accuracy_after: float | None
    bytes_before: int
    bytes_after: int
    speed_before: float
    speed_after: float
    sparsity: float = 0.0

    @property
    def accuracy_drop(self) -> float | None:
        """Accuracy before minus after."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return None
        return self.accuracy_before - self.accuracy_after


def compare(
    before: Callable[[Tensor], Tensor],
    after: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor | None,
    sizes: tuple[int, int],
) -> Comparison:
    """Run both on images (N, 3, H, W) with labels (N,), None for noise, and compare.

    sizes: bytes of both, before and after.
    """
    expected, exported = run_all(before, images), run_all(after, images)
    difference = (expected - exported).abs().max()
    times: tuple[list[float], list[float]] = ([], [])
    batch = images[:BATCH]
    for _ in range(ROUNDS):
        for run, seconds in zip((before, after), times, strict=True):
            started = time.perf_counter()
            run(batch)
            seconds.append(time.perf_counter() - started)
    return Comparison(
        pictures=0 if labels is None else len(images),
        agreement=(expected.argmax(1) == exported.argmax(1)).double().mean().item(),
        largest_difference=difference.item(),
        relative_difference=(difference / expected.abs().max().clamp_min(1e-12)).item(),
        accuracy_before=accuracy(expected, labels),
        accuracy_after=accuracy(exported, labels),
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        speed_before=len(batch) / min(times[0]),
        speed_after=len(batch) / min(times[1]),
    )


def accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the share of logits (N, K) that are largest at the label (N,), 0..1."""
    return None if labels is None else (logits.argmax(1) == labels).double().mean().item()


def run_all(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the float32 logits (N, K) of images (N, 3, H, W), batch by batch."""
    return torch.cat([run(part).float() for part in images.split(BATCH)])
