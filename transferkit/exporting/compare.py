"""An exported model compared with the original, on the same pictures."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    better of `ROUNDS` alternating rounds; latency_*: ms of one picture, likewise. sparsity: share
    of zeros among the pruned weights. folded: number of batch norms; unfolded: the others -> why.
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
    latency_before: float
    latency_after: float
    sparsity: float = 0.0
    folded: int = 0
    unfolded: dict[str, str] = field(default_factory=dict)

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
    batch = images[:BATCH]
    times, latencies = (fastest((before, after), part) for part in (batch, images[:1]))
    return Comparison(
        pictures=0 if labels is None else len(images),
        agreement=(expected.argmax(1) == exported.argmax(1)).double().mean().item(),
        largest_difference=difference.item(),
        relative_difference=(difference / expected.abs().max().clamp_min(1e-12)).item(),
        accuracy_before=accuracy(expected, labels),
        accuracy_after=accuracy(exported, labels),
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        speed_before=len(batch) / times[0],
        speed_after=len(batch) / times[1],
        latency_before=1000 * latencies[0],
        latency_after=1000 * latencies[1],
    )


def fastest(runs: Sequence[Callable[[Tensor], Tensor]], images: Tensor) -> list[float]:
    """Return the seconds that each takes for the images, the best of alternating rounds."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, seconds in zip(runs, times, strict=True):
            started = time.perf_counter()
            run(images)
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in times]


def accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    """Return the share of logits (N, K) that are largest at the label (N,), 0..1."""
    return None if labels is None else (logits.argmax(1) == labels).double().mean().item()


def run_all(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the float32 logits (N, K) of images (N, 3, H, W), batch by batch."""
    return torch.cat([run(part).float() for part in images.split(BATCH)])
