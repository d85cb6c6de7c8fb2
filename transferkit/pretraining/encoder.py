"""The backbone in pretraining: pictures in, feature maps or feature vectors out."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.backbones.create import Backbone
from transferkit.data.preprocessing import Preprocessing


class Encoder(nn.Module):
    """A backbone preceded by its input normalisation.

    num_features: D. map_shape: (C, h, w) of its last feature maps. preprocessing: input size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.model
        self.num_features = backbone.num_features
        self.preprocessing: Preprocessing = backbone.preprocessing
        for name in ("mean", "std"):
            values = torch.tensor(getattr(backbone.preprocessing, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        size = (1, 3, self.preprocessing.height_px, self.preprocessing.width_px)
        with torch.no_grad():
            self.map_shape = tuple(self.eval().maps(torch.zeros(size)).shape[1:])

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise pictures (N, 3, H, W), values 0..1, for the backbone."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, D) of pictures (N, 3, H, W), values 0..1."""
        features: Tensor = self.backbone(self.normalized(images))
        return features

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature maps (N, C, h, w); (N, D, 1, 1) of a network without maps."""
        backbone: Any = self.backbone
        return as_maps(backbone, backbone.forward_features(self.normalized(images)))


def as_maps(backbone: nn.Module, features: Tensor) -> Tensor:
    """Convert the output of `forward_features` to feature maps (N, C, h, w).

    features: (N, D); maps (N, C, h, w) or (N, h, w, C); or tokens (N, L, C), whose prefix tokens
    are dropped.
    """
    channels = getattr(backbone, "num_features", None)
    if features.ndim == 2:
        return features[:, :, None, None]
    if features.ndim == 4:
        channels_last = features.shape[3] == channels != features.shape[1]
        return features.permute(0, 3, 1, 2) if channels_last else features
    tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if grid is None or grid[0] * grid[1] != tokens.shape[1]:
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens do not form a square map")
        grid = (side, side)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def first_weights(backbone: Backbone) -> np.ndarray | None:
    """Return the weights of the backbone's first layer, (out, in, h, w), if it sees pixels."""
    size = backbone.preprocessing
    for parameter in backbone.model.parameters():
        if parameter.ndim == 4:
            return parameter.detach().cpu().numpy()
        if parameter.ndim == 2 and parameter.shape[1] == 3 * size.height_px * size.width_px:
            return parameter.detach().cpu().view(-1, 3, size.height_px, size.width_px).numpy()
        if parameter.ndim > 1:
            return None
    return None
