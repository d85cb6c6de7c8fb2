"""The network of an exported model, and the key of its metadata."""

from typing import Any

import torch
from torch import Tensor, nn

METADATA = "transferkit"
"""The key of an exported model's metadata: a JSON text with all that is needed to use it."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Deployed(nn.Module):
    """A classifier for other programs: bytes (N, 3, H, W) in, float32 logits (N, K) out."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.classifier = classifier.to(dtype)
        self.register_buffer("mean", classifier.mean.float())
        self.register_buffer("std", classifier.std.float())
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Normalise in float32, since 16 bits would round 255 shades; run the rest in `dtype`."""
        inputs = ((images.float() / 255 - self.mean) / self.std).to(self.dtype)
        return self.classifier.head(self.classifier.read(inputs)).float()
