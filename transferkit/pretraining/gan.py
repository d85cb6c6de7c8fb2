"""A generative adversarial network (GAN) whose discriminator is the backbone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from transferkit.config import Pretraining
from transferkit.pretraining.autoencoders import (
    NARROWEST,
    SHOWN_COLUMNS,
    SHOWN_ROWS,
    WIDEST,
    pixels_of,
    upsampling,
)
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase

DISCRIMINATOR, GENERATOR = "discriminator", "generator"
R1_GAMMA = 1.0
"""Weight of the gradient penalty at 32 px; it grows with the number of pixels."""
R1_EVERY = 16
"""Steps between penalties, whose weight is multiplied by it: their second derivatives dominate the
cost of a step. Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR
2020, section 3.1 (lazy regularization)."""
SMALLEST_PX = 8
"""Side of the generator's first maps."""
COLLAPSED_VARIETY = 0.25
"""Variety of the samples, relative to that of pictures, below which they suggest mode collapse."""
ONE_SIDED = 0.98
NO_BETTER_THAN_CHANCE = 0.52
"""Discriminator accuracies above which it, and below which the generator, has won."""


class Generator(nn.Module):
    """Maps latents (N, Z) to pictures (N, 3, H, W), values 0..1.

    A linear layer to small maps, then `upsampling`.
    """

    def __init__(self, latent: int, height_px: int, width_px: int, widest: int = WIDEST) -> None:
        super().__init__()
        doublings = max(1, math.floor(math.log2(min(height_px, width_px) / SMALLEST_PX)) + 1)
        self.start = (math.ceil(height_px / 2**doublings), math.ceil(width_px / 2**doublings))
        self.size_px = (height_px, width_px)
        self.first = nn.Linear(latent, widest * self.start[0] * self.start[1], bias=False)
        start = [nn.BatchNorm2d(widest), nn.ReLU()]
        self.layers, self.last = upsampling(start, widest, doublings, bias=False)

    def forward(self, latent: Tensor) -> Tensor:
        """Return pictures (N, 3, H, W) from latents (N, Z)."""
        maps = self.first(latent).view(len(latent), -1, *self.start)
        return pixels_of(self.layers(maps), self.last, self.size_px)


class Critic(nn.Module):
    """The discriminator: the backbone and a linear layer to one logit (N,), positive for real."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.score = nn.Linear(encoder.num_features, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N,) of pictures (N, 3, H, W), values 0..1."""
        return self.score(self.encoder(images)).squeeze(1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Push scores of real pictures above 1, those of generated ones below -1."""
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    """Return the binary cross-entropy of real against generated pictures."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


GAN_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "non-saturating": (logistic, lambda fake: functional.softplus(-fake).mean()),
    "hinge": (hinge, lambda fake: -fake.mean()),
}
"""Name -> (discriminator loss of scores (real, fake), generator loss of scores (fake)).

Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014; Lim and Ye, "Geometric GAN",
2017.
"""


def r1(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the mean squared norm [] of the scores' gradient at real pictures.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018.
    """
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def normalise_spectrally(network: nn.Module) -> Sequence[nn.Module]:
    """Divide every weight matrix by its largest singular value during training.

    Returns the layers, to remove it again. Source: Miyato et al., "Spectral Normalization for
    Generative Adversarial Networks", ICLR 2018; torch's implementation.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        parametrizations.spectral_norm(layer)
    return layers


def gan(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Train a discriminator, the backbone, against a generator."""
    size = encoder.preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = min(WIDEST, max(NARROWEST, encoder.num_features))  # as strong as the discriminator
        generator = Generator(options.latent, size.height_px, size.width_px, wide)
        for module in generator.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.normal_(module.weight, 0, 0.02)
        critic = Critic(encoder)
        spectral = normalise_spectrally(critic) if options.gan_penalty == "spectral" else []
        fixed = torch.randn(SHOWN_ROWS * SHOWN_COLUMNS, options.latent)
    networks = nn.ModuleDict({"critic": critic, "generator": generator})
    networks.register_buffer("fixed", fixed)
    networks.register_buffer("steps", torch.zeros((), dtype=torch.long))
    discriminator_loss, generator_loss = GAN_LOSSES[options.gan_loss]
    gamma = R1_GAMMA * size.height_px * size.width_px / 32**2

    def learn(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        latent = torch.randn(len(images), options.latent, device=images.device)
        fake = generator(latent)
        scores = critic(images), critic(fake.detach())
        loss = discriminator_loss(*scores)
        if options.gan_penalty == "r1" and not batch.held_out:
            steps = networks.get_buffer("steps")
            if int(steps) % R1_EVERY == 0:
                loss = loss + R1_EVERY * gamma / 2 * r1(critic, images)
            steps.add_(1)
        yield Objective(loss, DISCRIMINATOR, discriminator_figures(*scores))
        yield Objective(generator_loss(critic(fake)), GENERATOR)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        samples = generator(networks.get_buffer("fixed"))
        return {"samples": samples.view(SHOWN_ROWS, SHOWN_COLUMNS, *samples.shape[1:])}

    def figures(training: Tensor, held_out: Tensor) -> Mapping[str, float]:
        with torch.no_grad():
            return {"variety": variety(generator(networks.get_buffer("fixed")), training)}

    def finish() -> None:
        for layer in spectral:
            parametrize.remove_parametrizations(layer, "weight")

    players = {DISCRIMINATOR: critic, GENERATOR: generator}
    phases = (Phase("play", players, learn),)
    return Method(
        networks, phases, 2e-4, 0.0, {"beta1": 0.5}, show, figures, warnings, finish=finish
    )


@torch.no_grad()
def discriminator_figures(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return the discriminator's accuracy and mean scores from scores (N,) of real and fake."""
    right = torch.cat([real > 0, fake < 0]).float().mean()
    means = {"score_real": float(real.mean()), "score_drawn": float(fake.mean())}
    return {"told_apart": float(right), **means}


def variety(samples: Tensor, pictures: Tensor) -> float:
    """Return the standard deviation among samples (N, 3, H, W), relative to that among pictures."""
    return float(samples.std(dim=0).mean() / pictures.std(dim=0).mean().clamp(min=1e-6))


def warnings(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Warn of mode collapse, or of a player that has won, over the last three epochs."""
    if len(rows) < 3:
        return []
    varieties, accuracies = ([row[name] for row in rows[-3:]] for name in ("variety", "told_apart"))
    texts = []
    if max(varieties) < COLLAPSED_VARIETY:
        texts.append(
            "the generator draws nearly the same picture from every latent (mode collapse): "
            "lower --lr, or take another --gan-loss or --gan-penalty"
        )
    if min(accuracies) > ONE_SIDED:
        texts.append(
            "the discriminator wins: it recognises nearly all generated pictures, and the "
            "generator learns little; lower --lr, or use --gan-penalty r1"
        )
    if max(accuracies) < NO_BETTER_THAN_CHANCE:
        texts.append(
            "the generator wins: the discriminator, the part that is kept, is no better than "
            "chance and learns little; raise --lr, use a wider backbone, or another --gan-penalty"
        )
    return texts
