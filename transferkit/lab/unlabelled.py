"""What networks learn from pictures without labels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from transferkit.backbones.create import create_backbone
from transferkit.backbones.scratch import ScratchDesign
from transferkit.backbones.structure import Structure
from transferkit.config import Pretraining
from transferkit.lab.finding import Finding, Panel, lines, top
from transferkit.lab.trial import BATCH, CLASSES, Digits, digits, epochs
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.features import features_of, linear_accuracy
from transferkit.pretraining.method import Batch, Phase
from transferkit.pretraining.methods import make_method, views_of
from transferkit.pretraining.views import VIEWS, as_batch, drawn
from transferkit.training.optimizers import make_optimizer, parameter_groups, set_rates

SIDE_PX, LABELLED, CPU = 16, 10, torch.device("cpu")
CNN = ("cnn", ScratchDesign(4, 16, batchnorm=("before",)))
MLP = ("mlp", ScratchDesign(1, 256, "logistic"))
NETWORKS = {"autoencoder": CNN, "gan": CNN, "simclr": CNN, "rbm": MLP}


def probe_accuracy(encoder: Encoder, data: Digits) -> float:
    """Fit a linear classifier to features of the labelled digits; return its accuracy on others."""
    images = (data.images.float() / 255, data.val_images.float() / 255)
    known, others = (features_of(encoder, iter([part]), CPU) for part in images)
    return linear_accuracy(known, data.labels.numpy(), others, data.val_labels.numpy(), 0)


def learn_epoch(
    phase: Phase, optimizers: dict[str, torch.optim.Optimizer], views: list[Tensor], progress: float
) -> None:
    """Go once through the pictures, views V tensors (N, 3, H, W), as the pretraining loop does."""
    for pick in torch.randperm(len(views[0])).split(BATCH):
        batch = Batch(tuple(v[pick] for v in views), torch.zeros(len(pick)).long(), progress)
        for objective in phase.learn(batch):
            optimizer = optimizers[objective.player]
            optimizer.zero_grad(set_to_none=True)
            objective.loss.backward()
            optimizer.step()


def pretrain(name: str, images: Tensor, data: Digits, number: int) -> list[float]:
    """Pretrain on pictures (N, 3, H, W) uint8; return the probe's accuracies, by epoch from 0."""
    kind, design = NETWORKS[name]
    structure, options = Structure(scratch=design), Pretraining(method=name)
    encoder = Encoder(create_backbone(kind, image_size=SIDE_PX, structure=structure))
    kinds, method = views_of(encoder, options), make_method(encoder, options, 0, 0)
    (phase,), optimizers = method.phases, {}
    for player, part in phase.players.items():
        named = enumerate(part.parameters() if isinstance(part, nn.Module) else part)
        decays = (method.weight_decay, method.weight_decay)
        groups = parameter_groups([(str(i), p) for i, p in named], lambda _: 0, (1.0,), decays)
        optimizers[player] = make_optimizer("adamw", groups, method.hyper)
        set_rates(optimizers[player], method.lr)
    if phase.begin is not None:
        phase.begin(images.float() / 255)
    pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
    size, generator, found = encoder.preprocessing, np.random.default_rng(0), []
    for epoch in range(number):
        found.append(probe_accuracy(encoder, data))
        views = [[drawn(VIEWS[k], p, size, False, generator) for p in pictures] for k in kinds]
        method.networks.train()
        learn_epoch(phase, optimizers, [as_batch(part, CPU) for part in views], epoch / number)
    return [*found, probe_accuracy(encoder, data)]


def pretraining(scale: float = 1.0) -> Finding:
    """Pretrain small networks on digits, and probe them with ten labels of each class.

    Source: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks",
    2006; Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020.
    """
    number, every, found = epochs(12, scale), digits(SIDE_PX), {}
    data = every.of_classes(range(CLASSES), LABELLED)
    images = every.images if scale >= 1 else every.images[:100]
    for name in NETWORKS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found[name] = pretrain(name, images, data, number)
    gains = {name: values[-1] - values[0] for name, values in found.items()}
    best, least = top(gains), min(gains, key=lambda name: gains[name])
    ends, third = {name: values[-1] for name, values in found.items()}, max(1, number // 3)
    title = f"Linear probe, {LABELLED} labels of each class"
    accuracy = f"accuracy on {len(data.val_labels)} other digits"
    return Finding(
        f"Pretraining on {len(images):,} digits without labels",
        (Panel(title, "epoch of pretraining", accuracy, lines(found), share=True),),
        (
            f"{best} gains most: its probe goes from {found[best][0]:.1%} to {ends[best]:.1%}; "
            f"{least} {'gains least' if gains[least] >= 0 else 'loses'} ({gains[least] * 100:+.1f} "
            "points).",
            f"{top(ends)} ends highest with {ends[top(ends)]:.1%} from {CLASSES * LABELLED} "
            f"labels; with random weights the cnn has {found['gan'][0]:.1%} and the mlp of the rbm "
            f"{found['rbm'][0]:.1%}.",
            f"After {third} of {number} epochs {best} has made "
            f"{(found[best][third] - found[best][0]) / (gains[best] or 1):.0%} of its gain; the "
            f"autoencoder ends at {ends['autoencoder']:.1%}, the rbm at {ends['rbm']:.1%}.",
        ),
    )
