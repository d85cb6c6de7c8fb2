"""Autoencoders: the backbone encodes, a decoder of transposed convolutions draws the picture."""

import math
from collections.abc import Callable, Iterator, Mapping

import transferkit.timm_import  # noqa: F401  # isort: skip
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase

WIDEST, NARROWEST = 256, 16
"""Channels of a decoder: they halve with every doubling of the map, within these."""

SHOWN_ROWS, SHOWN_COLUMNS = 4, 8
SSIM_WINDOW_PX = 11
SPARSITY_WEIGHT = 0.01
"""Unless the user names another. A pixel's squared error is of that order."""


def dissimilarity(drawn: Tensor, images: Tensor) -> Tensor:
    """Return 1 less the structural similarity [] of pictures (N, 3, H, W), values 0..1.

    Source: Wang et al., "Image Quality Assessment", IEEE TIP 2004; torchmetrics' implementation.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    window = min(SSIM_WINDOW_PX, *(side - 1 + side % 2 for side in images.shape[2:]))
    similar = structural_similarity_index_measure(drawn, images, data_range=1.0, kernel_size=window)
    assert isinstance(similar, Tensor)
    return 1 - similar


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "ssim": dissimilarity,
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
    """Draw the picture again from the backbone's last maps, in one of several ways."""
    return VARIANTS[options.variant](encoder, options, seed)


def plain(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw the picture as it is.

    Source: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks",
    Science 2006.
    """
    return drawing_again(encoder, options, seed)


def denoising(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw the picture that lies under Gaussian noise.

    Source: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders",
    ICML 2008.
    """

    def spoil(images: Tensor) -> Tensor:
        return images + options.noise * torch.randn_like(images)

    return drawing_again(encoder, options, seed, spoil=spoil)


def sparse(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw it from maps of which little is on: of small mean size, or close to a target share.

    Source: Ng, "Sparse autoencoder", CS294A lecture notes, 2011 (the divergence); Olshausen and
    Field, "Emergence of simple-cell receptive field properties", Nature 1996 (the size, in units
    of the scale).
    """
    weight = SPARSITY_WEIGHT if options.sparsity_weight is None else options.sparsity_weight

    def cost(maps: Tensor) -> tuple[Tensor, float]:
        if options.sparsity is None:
            return weight * relative_sizes(maps).mean(), active_share(maps)
        on = torch.tanh(relative_sizes(maps)).mean(dim=(0, 2, 3))  # (C,)
        divergence = bernoulli_divergence(options.sparsity, on).mean()
        return weight * divergence, float(on.detach().mean())

    return drawing_again(encoder, options, seed, cost=cost)


def relative_sizes(maps: Tensor) -> Tensor:
    """Return activations (N, C, h, w) without sign, in units of their root mean square.

    A plain size could be made as small as one likes by smaller maps, which the decoder's batch norm
    scales up again: nothing would become sparse. The mean of these is the ratio of L1 to L2 norm,
    1 where all are equally large and the root of the share that is on where the others are 0.
    Source: Hoyer, "Non-negative Matrix Factorization with Sparseness Constraints", JMLR 2004.
    """
    return maps.abs() / (maps.square().mean() + 1e-12).sqrt()


def active_share(maps: Tensor) -> float:
    """Return the share of activations that is more than a hundredth of the largest."""
    sizes = maps.detach().abs()
    return float((sizes > 0.01 * sizes.max()).float().mean())


def bernoulli_divergence(target: float, on: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of units that are on with `on` from the target."""
    on = on.clamp(1e-6, 1 - 1e-6)
    return target * (target / on).log() + (1 - target) * ((1 - target) / (1 - on)).log()


def drawing_again(
    encoder: Encoder,
    options: Pretraining,
    seed: int,
    spoil: Callable[[Tensor], Tensor] = lambda images: images,
    cost: Callable[[Tensor], tuple[Tensor, float]] | None = None,
) -> Method:
    """Build an autoencoder. spoil: what is done to the picture first; cost: of the maps, and the
    share of them that is on.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        maps = encoder.maps(spoil(images))
        loss = compare(decoder(maps), images)
        if cost is None:
            yield Move(loss)
            return
        extra, active = cost(maps)
        yield Move(loss + extra, figures={"reconstruction": float(loss.detach()), "active": active})

    def show(images: Tensor) -> Mapping[str, Tensor]:
        seen = spoil(images)
        rows = [images, decoder(encoder.maps(seen))]
        rows[1:1] = [seen.clamp(0, 1)] if seen is not images else []
        return {"reconstructions": torch.stack(rows)}

    return Method(networks, (Phase("reconstruct", {"network": networks}, learn),), show=show)


class Bottleneck(nn.Module):
    """Maps (N, C, h, w) to a Gaussian over Z numbers, and such numbers back to maps."""

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
        """Return maps (N, C, h, w) of numbers (N, Z)."""
        return self.widen(latent).relu().view(-1, *self.map_shape)


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence (N,) of Gaussians (N, Z) from the standard one, in closed form.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=1)


def variational(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw it from a Gaussian over a few numbers, held close to the standard one.

    The divergence is weighed against the mean error of a pixel: kl_weight is twice the variance
    that a pixel is taken to have around what is drawn.
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

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        mean, log_variance = bottleneck(encoder.maps(images))
        noise = torch.randn_like(mean) if not batch.held_out else torch.zeros_like(mean)
        drawn = decoder(bottleneck.back(mean + (0.5 * log_variance).exp() * noise))
        error, divergence = compare(drawn, images), gaussian_divergence(mean, log_variance).mean()
        loss = error + options.kl_weight * divergence / images[0].numel()
        figures = {
            "reconstruction": float(error.detach()),
            "divergence": float(divergence.detach()),
        }
        yield Move(loss, figures=figures)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        again = decoder(bottleneck.back(bottleneck(encoder.maps(images))[0]))
        drawn = decoder(bottleneck.back(networks.get_buffer("fixed")))
        samples = drawn.view(SHOWN_ROWS, SHOWN_COLUMNS, *drawn.shape[1:])
        return {"reconstructions": torch.stack([images, again]), "samples": samples}

    return Method(networks, (Phase("reconstruct", {"network": networks}, learn),), show=show)


def stacked(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """One layer after the other, each drawing its own input again; then all together."""
    from transferkit.pretraining.stacked import stacked_autoencoder

    return stacked_autoencoder(encoder, options, seed)


VARIANTS: dict[str, Callable[[Encoder, Pretraining, int], Method]] = {
    "plain": plain,
    "denoising": denoising,
    "sparse": sparse,
    "variational": variational,
    "stacked": stacked,
}
