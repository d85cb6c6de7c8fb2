"""Autoencoders: the backbone encodes, a decoder of transposed convolutions draws the picture."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase

WIDEST, NARROWEST = 256, 16
"""Channels of a decoder: they halve with every doubling of the map, within these."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
}


class Decoder(nn.Module):
    """Feature maps (N, C, h, w) to pictures (N, 3, H, W), values 0..1.

    A 1 x 1 convolution, then a transposed convolution for each doubling, batch norm and ReLU after
    each; what is left to the picture's size is interpolated before the last convolution.
    Source: Radford et al., "Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks", ICLR 2016, section 3.
    """

    def __init__(self, map_shape: tuple[int, ...], height_px: int, width_px: int) -> None:
        super().__init__()
        channels, height, width = map_shape
        doublings = max(0, round(math.log2(min(height_px / height, width_px / width))))
        now = min(WIDEST, channels)
        layers: list[nn.Module] = [nn.Conv2d(channels, now, 1), nn.BatchNorm2d(now), nn.ReLU()]
        for _ in range(doublings):
            new = max(NARROWEST, now // 2)
            layers += [nn.ConvTranspose2d(now, new, 4, 2, 1), nn.BatchNorm2d(new), nn.ReLU()]
            now = new
        self.layers = nn.Sequential(*layers)
        self.size_px = (height_px, width_px)
        self.last = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return pictures (N, 3, H, W) of maps (N, C, h, w)."""
        drawn = self.layers(maps)
        if drawn.shape[2:] != self.size_px:
            drawn = functional.interpolate(drawn, self.size_px, mode="bilinear")
        return torch.sigmoid(self.last(drawn))


def make_decoder(encoder: Encoder, seed: int) -> Decoder:
    """Build a decoder for an encoder's maps, its random weights from `seed`."""
    size = encoder.preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(encoder.map_shape, size.height_px, size.width_px)


def autoencoder(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw the picture again from the backbone's last maps.

    Source: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks",
    Science 2006; denoising: Vincent et al., "Extracting and Composing Robust Features with
    Denoising Autoencoders", ICML 2008.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        seen = images
        if options.variant == "denoising":
            seen = images + options.noise * torch.randn_like(images)
        yield Move(compare(decoder(encoder.maps(seen)), images))

    def show(images: Tensor) -> Mapping[str, Tensor]:
        return {"reconstructions": torch.stack([images, decoder(encoder.maps(images))])}

    return Method(networks, (Phase("reconstruct", {"network": networks}, learn),), show=show)
