"""What networks learn from pictures without labels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transferkit.backbones.create import create_backbone
from transferkit.backbones.scratch import ScratchDesign
from transferkit.backbones.structure import Structure
from transferkit.config import Pretraining
from transferkit.lab.finding import Finding, Line, Panel
from transferkit.lab.trial import BATCH, CLASSES, Digits, digits, epochs
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.features import features_of, linear_accuracy
from transferkit.pretraining.method import Batch, Phase
from transferkit.pretraining.methods import make_method, views_of
from transferkit.pretraining.views import VIEWS, as_batch, drawn
from transferkit.training.optimizers import make_optimizer, parameter_groups, set_rates

SIDE_PX, LABELLED = 16, 10
CNN = ScratchDesign(4, 16, batchnorm=("before",))
MLP = ScratchDesign(1, 256, "logistic")
METHODS = {"autoencoder": CNN, "gan": CNN, "simclr": CNN, "rbm": MLP}
CPU = torch.device("cpu")


def make_encoder(design: ScratchDesign) -> Encoder:
    """Build an encoder from scratch: an mlp with logistic units, else a cnn."""
    name = "mlp" if design.activation == "logistic" else "cnn"
    return Encoder(create_backbone(name, image_size=SIDE_PX, structure=Structure(scratch=design)))


def probe_accuracy(encoder: Encoder, data: Digits) -> float:
    """Fit a linear classifier to features of the labelled digits; return its accuracy on others."""
    train, val = (
        features_of(encoder, iter([images.float() / 255]), CPU)
        for images in (data.images, data.val_images)
    )
    return linear_accuracy(train, data.labels.numpy(), val, data.val_labels.numpy(), 0)


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
        if phase.after_step is not None:
            phase.after_step(progress)


def pretrain(method: str, images: Tensor, data: Digits, number: int) -> list[float]:
    """Pretrain on pictures (N, 3, H, W) uint8; return the probe's accuracy from before the first
    epoch to after the last.
    """
    encoder, options = make_encoder(METHODS[method]), Pretraining(method=method)
    kinds = views_of(encoder, options)
    made = make_method(encoder, options, 0, 0)
    (phase,) = made.phases
    optimizers = {}
    for name, player in phase.players.items():
        parameters = list(player.parameters() if isinstance(player, torch.nn.Module) else player)
        named = [(str(i), p) for i, p in enumerate(parameters)]
        groups = parameter_groups(named, lambda _: 0, (1.0,), (made.weight_decay,) * 2)
        optimizers[name] = make_optimizer("adamw", groups, made.hyper)
        set_rates(optimizers[name], made.lr)
    pictures = [Image.fromarray(p) for p in images.permute(0, 2, 3, 1).numpy()]
    found = [probe_accuracy(encoder, data)]
    if phase.begin is not None:
        phase.begin(images[:256].float() / 255)
    for epoch in range(number):
        generator = np.random.default_rng([epoch, 4])
        views = [
            as_batch(
                [
                    drawn(VIEWS[kind], picture, encoder.preprocessing, False, generator)
                    for picture in pictures
                ],
                CPU,
            )
            for kind in kinds
        ]
        made.networks.train()
        learn_epoch(phase, optimizers, views, epoch / number)
        found.append(probe_accuracy(encoder, data))
    return found


def pretraining(scale: float = 1.0) -> Finding:
    """Pretrain small networks on 1,000 digits, and probe them with ten labels of each class.

    Source: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks",
    2006; Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020.
    """
    number, every = epochs(20, scale), digits(SIDE_PX)
    data = every.of_classes(range(CLASSES), LABELLED)
    images = every.images if scale >= 1 else every.images[:100]
    found = {}
    with torch.random.fork_rng(devices=[]):
        for method in METHODS:
            torch.manual_seed(0)
            found[method] = pretrain(method, images, data, number)
    gains = {method: values[-1] - values[0] for method, values in found.items()}
    best, least = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    top = max(found, key=lambda method: found[method][-1])
    peak = int(np.argmax(found[best]))
    starts = {"cnn": found["autoencoder"][0], "mlp": found["rbm"][0]}
    return Finding(
        f"Pretraining on {len(images):,} digits without labels",
        (
            Panel(
                f"Linear probe with {LABELLED} labels of each class",
                "epoch of pretraining (0: random weights)",
                f"accuracy on {len(data.val_labels)} others",
                tuple(Line(method, values) for method, values in found.items()),
                share=True,
            ),
        ),
        (
            f"{best} gains most: its probe goes from {found[best][0]:.1%} to "
            f"{found[best][-1]:.1%}; {least} {'gains least' if gains[least] > 0 else 'loses'} "
            f"({gains[least] * 100:+.1f} points).",
            f"{top} ends highest with {found[top][-1]:.1%} from {CLASSES * LABELLED} labels; before "
            f"pretraining the cnn has {starts['cnn']:.1%} and the rbm's mlp {starts['mlp']:.1%}.",
            f"After epoch {max(1, number // 4)} of {number}, {best} already had "
            f"{found[best][max(1, number // 4)]:.1%}; its highest is {found[best][peak]:.1%} after "
            f"epoch {peak}.",
        ),
    )
