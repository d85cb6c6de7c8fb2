"""A generative adversarial network whose discriminator is the backbone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase

DISCRIMINATOR, GENERATOR = "discriminator", "generator"
SHOWN_ROWS, SHOWN_COLUMNS = 4, 8
R1_GAMMA = 1.0
"""Weight of the gradient penalty at 32 px; it grows with the number of pixels."""
R1_EVERY = 16
"""Steps between penalties, which then weigh as much more: their second derivatives cost more than
all else. Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
section 3.1 (lazy regularization)."""
WIDEST, NARROWEST, SMALLEST_PX = 256, 16, 8
"""Channels of the generator's first maps at most, of its last at least; side of its first maps."""
ALIKE = 0.25
"""Samples that vary by less than this share of what pictures do are a sign of mode collapse."""
ONE_SIDED = 0.98
NO_BETTER_THAN_CHANCE = 0.52


class Generator(nn.Module):
    """Random numbers (N, Z) to pictures (N, 3, H, W), values 0..1.

    A linear layer to small maps, then a transposed convolution with batch norm and ReLU for each
    doubling. Source: Radford et al., "Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks", ICLR 2016, section 3.
    """

    def __init__(self, latent: int, height_px: int, width_px: int, widest: int = WIDEST) -> None:
        super().__init__()
        doublings = max(1, math.floor(math.log2(min(height_px, width_px) / SMALLEST_PX)) + 1)
        self.start = (math.ceil(height_px / 2**doublings), math.ceil(width_px / 2**doublings))
        self.size_px = (height_px, width_px)
        now = widest
        self.first = nn.Linear(latent, now * self.start[0] * self.start[1], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(now), nn.ReLU()]
        for _ in range(doublings):
            new = max(NARROWEST, now // 2)
            layers += [nn.ConvTranspose2d(now, new, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(new), nn.ReLU()]
            now = new
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return pictures (N, 3, H, W) of random numbers (N, Z)."""
        maps = self.first(latent).view(len(latent), -1, *self.start)
        drawn = self.layers(maps)
        if drawn.shape[2:] != self.size_px:
            drawn = functional.interpolate(drawn, self.size_px, mode="bilinear")
        return torch.sigmoid(self.last(drawn))


class Critic(nn.Module):
    """The discriminator: the backbone's features (N, D) to one score (N,), high for real."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.score = nn.Linear(encoder.num_features, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N,) of pictures (N, 3, H, W), values 0..1."""
        return self.score(self.encoder(images)).squeeze(1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Push scores of real pictures above 1, those of drawn ones below -1.

    Source: Lim and Ye, "Geometric GAN", 2017.
    """
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy of real against drawn. Source: Goodfellow et al., NeurIPS 2014."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def raise_score(fake: Tensor) -> Tensor:
    """Of the hinge loss' generator: the mean score, to be high."""
    return -fake.mean()


def non_saturating(fake: Tensor) -> Tensor:
    """-log of the probability to be taken for real. Source: Goodfellow et al., NeurIPS 2014."""
    return functional.softplus(-fake).mean()


GAN_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "non-saturating": (logistic, non_saturating),
    "hinge": (hinge, raise_score),
}
"""Name -> the discriminator's loss of scores (real, fake), and the generator's of (fake)."""


def r1(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the mean squared norm [] of the scores' gradient at real pictures.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018.
    """
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def normalise_spectrally(network: nn.Module) -> Sequence[nn.Module]:
    """Divide every weight matrix by its largest singular value, as long as it is trained.

    Returns the layers, to undo it. Source: Miyato et al., "Spectral Normalization for Generative
    Adversarial Networks", ICLR 2018; torch's implementation.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        parametrizations.spectral_norm(layer)
    return layers


def gan(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Tell pictures from those that a generator draws, while it learns to draw better ones."""
    size = encoder.preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = min(WIDEST, max(NARROWEST, encoder.num_features))  # a match for the other side
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
    judge, persuade = GAN_LOSSES[options.gan_loss]
    gamma = R1_GAMMA * size.height_px * size.width_px / 32**2

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        latent = torch.randn(len(images), options.latent, device=images.device)
        fake = generator(latent)
        scores = critic(images), critic(fake.detach())
        loss = judge(*scores)
        if options.gan_penalty == "r1" and not batch.held_out:
            steps = networks.get_buffer("steps")
            if int(steps) % R1_EVERY == 0:
                loss = loss + R1_EVERY * gamma / 2 * r1(critic, images)
            steps.add_(1)
        yield Move(loss, DISCRIMINATOR, judged(*scores))
        yield Move(persuade(critic(fake)), GENERATOR)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        drawn = generator(networks.get_buffer("fixed"))
        return {"samples": drawn.view(SHOWN_ROWS, SHOWN_COLUMNS, *drawn.shape[1:])}

    def measure(seen: Tensor, aside: Tensor) -> Mapping[str, float]:
        with torch.no_grad():
            return {"variety": variety(generator(networks.get_buffer("fixed")), seen)}

    def finish() -> None:
        for layer in spectral:
            parametrize.remove_parametrizations(layer, "weight")

    players = {DISCRIMINATOR: critic, GENERATOR: generator}
    return Method(
        networks,
        (Phase("play", players, learn),),
        lr=2e-4,
        weight_decay=0.0,
        hyper={"beta1": 0.5},
        show=show,
        measure=measure,
        warnings=warnings,
        finish=finish,
    )


@torch.no_grad()
def judged(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """Return the share of pictures told apart by scores (N,) of real and drawn ones, and means."""
    right = torch.cat([real > 0, drawn < 0]).float().mean()
    means = {"score_real": float(real.mean()), "score_drawn": float(drawn.mean())}
    return {"told_apart": float(right), **means}


def variety(drawn: Tensor, pictures: Tensor) -> float:
    """Return how much drawn pictures (N, 3, H, W) differ among themselves, real ones being 1."""
    return float(drawn.std(dim=0).mean() / pictures.std(dim=0).mean().clamp(min=1e-6))


def warnings(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Name a mode collapse, or a side that wins, after a few epochs."""
    if len(rows) < 3:
        return []
    found = []
    last = rows[-3:]
    if all(row["variety"] < ALIKE for row in last):
        found.append(
            "the generator draws much the same picture whatever it starts from (mode collapse): "
            "lower --lr, or take another --gan-loss or --gan-penalty"
        )
    if all(row["told_apart"] > ONE_SIDED for row in last):
        found.append(
            "the discriminator wins: it tells nearly all drawn pictures from real ones, and the "
            "generator learns little; lower --lr, or use --gan-penalty r1"
        )
    if all(row["told_apart"] < NO_BETTER_THAN_CHANCE for row in last):
        found.append(
            "the generator wins: the discriminator, the part that is kept, is no better than "
            "chance and learns little; raise --lr, use a wider backbone, or another --gan-penalty"
        )
    return found
