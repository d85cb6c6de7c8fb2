"""Monte Carlo dropout: active while predicting, with masks that depend only on picture and seed.

Every mask is a function of (seed, key of the picture, number of the sample, number of the draw
within the forward pass). So the results are the same for any batch size and order, and one pass
over all samples equals one pass for each.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from transferkit.errors import usage_error

RATE_NAMES = ("p", "drop_prob")  # of torch's dropout layers, of timm's stochastic depth
LEVELS = 2**16  # masks compare 16 random bits with the rate: it is met to 1.5e-5


def is_dropout(module: nn.Module) -> bool:
    """Whether a layer is a dropout of torch (alpha, per channel ...), DropPath or DropBlock."""
    return isinstance(module, _DropoutNd) or type(module).__name__ in ("DropPath", "DropBlock2d")


def dropout_rate(module: nn.Module) -> float:
    """Return the rate of a dropout layer."""
    return float(next((getattr(module, n) for n in RATE_NAMES if hasattr(module, n)), 0.0) or 0.0)


def active_dropout(module: nn.Module) -> list[nn.Module]:
    """Return the dropout layers of a module with a rate above 0."""
    return [m for m in module.modules() if is_dropout(m) and dropout_rate(m) > 0]


def set_dropout_(module: nn.Module, rate: float) -> int:
    """Set the rate of every dropout layer in a module, in place; return their number."""
    layers = [m for m in module.modules() if is_dropout(m)]
    for layer in layers:
        setattr(layer, next(n for n in RATE_NAMES if hasattr(layer, n)), rate)
    return len(layers)


def picture_key(pixels: np.ndarray) -> int:
    """Return a 64-bit hash of a picture's pixels."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest())


class SeededMasks(TorchDispatchMode):
    """Inside, every `bernoulli_` draws the masks of its pictures and samples.

    The first axis consists of N * S blocks of equal size: block n * S + s is sample s of picture n,
    of one row or several (windows of attention).
    All dropout layers of torch and timm call `bernoulli_` when gradients are off.
    """

    def __init__(self, seed: int, keys: Sequence[int], samples: Sequence[int]) -> None:
        super().__init__()
        self.seed, self.keys, self.samples = seed, keys, samples
        self.draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the draws; pass on everything else."""
        if func is not torch.ops.aten.bernoulli_.float:
            return func(*args, **(kwargs or {}))
        tensor = args[0]
        keep = float(args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5))  # its default
        rows = len(self.keys) * len(self.samples)
        if not rows or tensor.numel() % rows or tensor.shape[0] % rows:
            raise RuntimeError(f"a mask {tuple(tensor.shape)} does not fit {rows} samples")
        size = tensor.numel() // rows
        masks = [
            draw_masks((self.seed, key, self.draws), self.samples, size, keep) for key in self.keys
        ]
        self.draws += 1
        return tensor.copy_(torch.from_numpy(np.concatenate(masks)).view(tensor.shape))


def draw_masks(seeds: Sequence[int], samples: Sequence[int], size: int, keep: float) -> np.ndarray:
    """Return masks (S, size) of the consecutive samples, each from a separate stretch of bits.

    keep: probability of True.
    """
    words = -(-size // 4)  # of 64 bits, four draws in each
    generator = np.random.PCG64DXSM(list(seeds))
    generator.advance(samples[0] * words)
    raw = generator.random_raw(len(samples) * words).view(np.uint16)
    kept: np.ndarray = raw.reshape(len(samples), 4 * words)[:, :size] < round(keep * LEVELS)
    return kept


@contextmanager
def kept_on(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Activate dropout layers; everything else, batch norm above all, stays in evaluation mode."""
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False


def head_samples(
    head: nn.Module, features: Tensor, keys: Sequence[int], count: int, seed: int
) -> Tensor:
    """Return logits (N, S, K) of S samples of a head in evaluation mode, all in one pass.

    features: (N, D). What comes before the first active dropout runs once.
    """
    assert isinstance(head, nn.Sequential)
    layers = active_dropout(head)
    first = next(i for i, part in enumerate(head) if active_dropout(part))
    with torch.no_grad():
        shared = head[:first](features)  # (N, ...)
        repeated = shared.repeat_interleave(count, dim=0)  # (N * S, ...)
        with kept_on(layers), SeededMasks(seed, keys, range(count)):
            logits = head[first:](repeated)
    return logits.view(len(features), count, -1).float()


def network_samples(
    network: nn.Module, images: Tensor, keys: Sequence[int], count: int, seed: int
) -> Tensor:
    """Return logits (N, S, K) of S full passes of a network in evaluation mode.

    images: (N, ...).
    """
    layers = active_dropout(network)
    with torch.no_grad(), kept_on(layers):
        passes = []
        for sample in range(count):
            with SeededMasks(seed, keys, (sample,)):
                passes.append(network(images))
    return torch.stack(passes, dim=1).float()


def count_draws(network: nn.Module, inputs: Tensor) -> int:
    """Return how many masks one pass draws; it may not reach every layer."""
    layers = active_dropout(network)
    with torch.no_grad(), kept_on(layers), SeededMasks(0, range(len(inputs)), (0,)) as masks:
        network(inputs)
    return masks.draws


def require_dropout(network: nn.Module, backbone: nn.Module, scope: str, example: Tensor) -> None:
    """Raise a usage error when nothing in `scope` would vary.

    example: an input (N, ...) of the backbone.
    """
    inside, everywhere = len(active_dropout(backbone)), len(active_dropout(network))
    if scope == "all" and not (inside and count_draws(backbone, example)):
        raise usage_error(
            "--mc-scope all: the backbone has no dropout and no drop path to sample",
            "it was trained with --drop-path 0, or its blocks have no shortcut to drop",
            "use --mc-scope head, or try --enable-dropout 0.1",
        )
    if scope == "head" and everywhere == inside:
        what = "--mc-dropout: the model was trained without dropout, so all samples would be equal"
        raise usage_error(what, remedy="add --enable-dropout 0.2, or train with --dropout 0.2")
