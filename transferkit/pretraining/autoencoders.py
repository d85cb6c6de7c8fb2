"""Autoencoders: the backbone encodes; a decoder of transposed convolutions reconstructs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import transferkit.timm_import  # noqa: F401  # isort: skip
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase
from transferkit.pretraining.stacked import stacked_autoencoder

WIDEST, NARROWEST = 256, 16
"""Limits on a decoder's channels, which halve whenever the feature map doubles in size."""

SHOWN_ROWS, SHOWN_COLUMNS = 4, 8
SSIM_WINDOW_PX = 11
SPARSITY_WEIGHT = 0.01
"""Default weight of the sparsity penalty; of the order of a pixel's squared error."""


def dissimilarity(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return 1 - SSIM [] (structural similarity) of pictures (N, 3, H, W), values 0..1.

    Source: Wang et al., "Image Quality Assessment", IEEE TIP 2004; torchmetrics' implementation.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    window = min(SSIM_WINDOW_PX, *(side - 1 + side % 2 for side in images.shape[2:]))
    ssim = structural_similarity_index_measure(
        reconstructions, images, data_range=1.0, kernel_size=window
    )
    assert isinstance(ssim, Tensor)
    return 1 - ssim


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "ssim": dissimilarity,
}


def upsampling(
    start: Sequence[nn.Module], wide: int, doublings: int, bias: bool
) -> tuple[nn.Sequential, nn.Conv2d]:
    """Return layers that double maps (N, wide, h, w) `doublings` times, and the last convolution.

    A transposed convolution with batch norm and ReLU for each doubling, after the layers `start`.
    Source: Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks", ICLR 2016, section 3.
    """
    layers = list(start)
    for _ in range(doublings):
        narrow = max(NARROWEST, wide // 2)
        layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=bias)]
        layers += [nn.BatchNorm2d(narrow), nn.ReLU()]
        wide = narrow
    return nn.Sequential(*layers), nn.Conv2d(wide, 3, 3, padding=1)


def pixels_of(maps: Tensor, last: nn.Module, size_px: tuple[int, int]) -> Tensor:
    """Return pictures (N, 3, H, W), values 0..1: maps interpolated to `size_px`, convolved."""
    if maps.shape[2:] != size_px:
        maps = functional.interpolate(maps, size_px, mode="bilinear")
    return torch.sigmoid(last(maps))


class Decoder(nn.Module):
    """Maps feature maps (N, C, h, w) to pictures (N, 3, H, W), values 0..1.

    A 1 x 1 convolution, then `upsampling`.
    """

    def __init__(self, map_shape: tuple[int, ...], height_px: int, width_px: int) -> None:
        super().__init__()
        channels, height, width = map_shape
        doublings = max(0, round(math.log2(min(height_px / height, width_px / width))))
        wide = min(WIDEST, channels)
        start = [nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.ReLU()]
        self.layers, self.last = upsampling(start, wide, doublings, bias=True)
        self.size_px = (height_px, width_px)

    def forward(self, maps: Tensor) -> Tensor:
        """Return pictures (N, 3, H, W) from feature maps (N, C, h, w)."""
        return pixels_of(self.layers(maps), self.last, self.size_px)


def make_decoder(encoder: Encoder, seed: int) -> Decoder:
    """Build a decoder for an encoder's feature maps, its random weights from `seed`."""
    size = encoder.preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(encoder.map_shape, size.height_px, size.width_px)


def autoencoder(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Reconstruct the picture from the backbone's last feature maps; see VARIANTS."""
    return VARIANTS[options.variant](encoder, options, seed)


def denoising(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Reconstruct the picture from one with added Gaussian noise.

    Source: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders",
    ICML 2008.
    """

    def corrupt(images: Tensor) -> Tensor:
        return images + options.noise * torch.randn_like(images)

    return reconstruction(encoder, options, seed, corrupt=corrupt)


def sparse(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Reconstruct from sparse feature maps: penalise their mean magnitude, or fix the active share.

    Source: Ng, "Sparse autoencoder", CS294A lecture notes, 2011 (the divergence from a target
    share); Olshausen and Field, "Emergence of simple-cell receptive field properties", Nature 1996
    (the magnitude, relative to the scale).
    """
    weight = SPARSITY_WEIGHT if options.sparsity_weight is None else options.sparsity_weight

    def penalty(maps: Tensor) -> tuple[Tensor, float]:
        if options.sparsity is None:
            return weight * relative_magnitudes(maps).mean(), active_share(maps)
        active = torch.tanh(relative_magnitudes(maps)).mean(dim=(0, 2, 3))  # (C,)
        divergence = bernoulli_divergence(options.sparsity, active).mean()
        return weight * divergence, float(active.detach().mean())

    return reconstruction(encoder, options, seed, penalty=penalty)


def relative_magnitudes(maps: Tensor) -> Tensor:
    """Return absolute activations (N, C, h, w), divided by their root mean square.

    Absolute ones could shrink without limit, since the decoder's batch norm scales small maps up
    again. The mean of the relative ones is the ratio of L1 to L2 norm: 1 if all are equal, the root
    of the active share if the others are 0.
    Source: Hoyer, "Non-negative Matrix Factorization with Sparseness Constraints", JMLR 2004.
    """
    return maps.abs() / (maps.square().mean() + 1e-12).sqrt()


def active_share(maps: Tensor) -> float:
    """Return the share of activations above a hundredth of the largest."""
    magnitudes = maps.detach().abs()
    return float((magnitudes > 0.01 * magnitudes.max()).float().mean())


def bernoulli_divergence(target: float, active: Tensor) -> Tensor:
    """Return KL(Bernoulli(target) || Bernoulli(active)), element by element."""
    active = active.clamp(1e-6, 1 - 1e-6)
    return target * (target / active).log() + (1 - target) * ((1 - target) / (1 - active)).log()


def reconstruction(
    encoder: Encoder,
    options: Pretraining,
    seed: int,
    corrupt: Callable[[Tensor], Tensor] = lambda images: images,
    penalty: Callable[[Tensor], tuple[Tensor, float]] | None = None,
) -> Method:
    """Reconstruct the picture.

    corrupt: applied to the encoder's input. penalty: feature maps -> (added loss [], active share).
    Source: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks",
    Science 2006.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]

    def learn(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        maps = encoder.maps(corrupt(images))
        loss = compare(decoder(maps), images)
        if penalty is None:
            yield Objective(loss)
            return
        added, active = penalty(maps)
        figures = {"reconstruction": float(loss.detach()), "active": active}
        yield Objective(loss + added, figures=figures)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        inputs = corrupt(images)
        rows = [images, decoder(encoder.maps(inputs))]
        rows[1:1] = [inputs.clamp(0, 1)] if inputs is not images else []
        return {"reconstructions": torch.stack(rows)}

    return Method(networks, (Phase("reconstruct", {"network": networks}, learn),), show=show)


class Bottleneck(nn.Module):
    """Maps feature maps (N, C, h, w) to a Gaussian over Z latent variables, and latents back."""

    def __init__(self, map_shape: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.map_shape = map_shape
        size = math.prod(map_shape)
        self.narrow = nn.Linear(size, 2 * latent)
        self.widen = nn.Linear(latent, size)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (N, Z) each."""
        mean, log_variance = self.narrow(maps.flatten(1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 12)

    def back(self, latent: Tensor) -> Tensor:
        """Return feature maps (N, C, h, w) from latents (N, Z)."""
        return self.widen(latent).relu().view(-1, *self.map_shape)


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence (N,) of Gaussians (N, Z) from the standard normal, in closed form.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=1)


def variational(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Reconstruct from a Gaussian over a few latents, kept close to the standard normal.

    The divergence is divided by the number of values in a picture, as the error is a mean over
    them: kl_weight is twice the assumed variance of a pixel around its reconstruction.
    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014; the weight: Higgins
    et al., "beta-VAE", ICLR 2017.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        bottleneck = Bottleneck(encoder.map_shape, options.latent)
        fixed = torch.randn(SHOWN_ROWS * SHOWN_COLUMNS, options.latent)
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "bottleneck": bottleneck, "decoder": decoder})
    networks.register_buffer("fixed", fixed)
    compare = LOSSES[options.loss]

    def learn(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        mean, log_variance = bottleneck(encoder.maps(images))
        noise = torch.randn_like(mean) if not batch.held_out else torch.zeros_like(mean)
        outputs = decoder(bottleneck.back(mean + (0.5 * log_variance).exp() * noise))
        error, divergence = compare(outputs, images), gaussian_divergence(mean, log_variance).mean()
        loss = error + options.kl_weight * divergence / images[0].numel()
        figures = {"reconstruction": error.detach(), "divergence": divergence.detach()}
        yield Objective(loss, figures={name: float(value) for name, value in figures.items()})

    def show(images: Tensor) -> Mapping[str, Tensor]:
        outputs = decoder(bottleneck.back(bottleneck(encoder.maps(images))[0]))
        samples = decoder(bottleneck.back(networks.get_buffer("fixed")))
        samples = samples.view(SHOWN_ROWS, SHOWN_COLUMNS, *samples.shape[1:])
        return {"reconstructions": torch.stack([images, outputs]), "samples": samples}

    return Method(networks, (Phase("reconstruct", {"network": networks}, learn),), show=show)


VARIANTS: dict[str, Callable[[Encoder, Pretraining, int], Method]] = {
    "plain": reconstruction,
    "denoising": denoising,
    "sparse": sparse,
    "variational": variational,
    "stacked": stacked_autoencoder,
}
