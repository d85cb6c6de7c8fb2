"""Options of pretraining without labels; the network, optimiser and device have sections of
their own that `transferkit pretrain` reads as `finetune` does.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.methods import METHODS, MethodName
from transferkit.config.option import Option, Section
from transferkit.units import parse_duration

SECTION = "pretraining"

USES: dict[str, tuple[str, ...]] = {
    option: tuple(name for name, kind in METHODS.items() if option in kind.options)
    for option in dict.fromkeys(option for kind in METHODS.values() for option in kind.options)
}
"""Option -> the methods that read it; every other option is read by all."""
VARIANT_USES = {
    "noise": "denoising",
    "kl_weight": "variational",
    "latent": "variational",
    "tied": "stacked",
    "sparsity": "sparse",
    "sparsity_weight": "sparse",
}
"""Option -> the variant of the autoencoder that reads it."""


@dataclass(frozen=True)
class Pretraining(Section):
    """How a backbone learns from pictures without labels. None is the method's own default."""

    method: Annotated[
        MethodName, Option("--method", "See `transferkit explain pretraining`.", usual=True)
    ] = "simclr"
    init: Annotated[
        Literal["random", "pretrained"],
        Option("--init", "Start from random or from pretrained weights.", usual=True),
    ] = "random"
    epochs: Annotated[
        int | None,
        Ge(1),
        Le(100_000),
        Option("--epochs", "Number of epochs.", "100, or what --budget allows", usual=True),
    ] = None
    budget: Annotated[
        str | None,
        Option("--budget", "Time limit for training, e.g. 20m; chooses the epochs.", usual=True),
    ] = None
    batch_size: Annotated[
        int, Ge(2), Le(65_536), Option("--batch-size", "Pictures per optimiser step.", usual=True)
    ] = 64
    lr: Annotated[
        float | None, Gt(0), Le(10), Option("--lr", "Peak learning rate.", "by method", usual=True)
    ] = None
    weight_decay: Annotated[
        float | None,
        Ge(0),
        Option("--weight-decay", "Weight decay; biases and norms are exempt.", "by method"),
    ] = None
    warmup: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option(
            "--warmup", "Share of the steps in which the learning rate warms up.", "0.1; 1cycle 0"
        ),
    ] = None
    holdout: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--holdout", "Share of the pictures held out for evaluation, at most 500."),
    ] = 0.05
    probe: Annotated[
        Path | None, Option("--probe", "Labelled pictures to evaluate the features on.", usual=True)
    ] = None
    probe_every: Annotated[
        int | None, Ge(1), Option("--probe-every", "Epochs between two probes.", "a tenth of all")
    ] = None
    variant: Annotated[
        Literal["plain", "denoising", "sparse", "variational", "stacked"],
        Option("--variant", "autoencoder: its kind."),
    ] = "plain"
    noise: Annotated[
        float,
        Gt(0),
        Le(2),
        Option("--noise", "denoising: standard deviation, for pixels from 0 to 1."),
    ] = 0.2
    loss: Annotated[Literal["mse", "l1", "ssim"], Option("--loss", "Reconstruction loss.")] = "mse"
    kl_weight: Annotated[
        float, Ge(0), Option("--kl-weight", "variational autoencoder: weight of the KL divergence.")
    ] = 0.01
    tied: Annotated[
        bool, Option("--tied/--no-tied", "stacked: tie the decoder's weights to the encoder's.")
    ] = False
    sparsity: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Option("--sparsity", "sparse, rbm: target activation of hidden units.", "none"),
    ] = None
    sparsity_weight: Annotated[
        float | None,
        Gt(0),
        Option("--sparsity-weight", "Weight of the sparsity penalty.", "autoencoder 0.01, rbm 1"),
    ] = None
    mask_ratio: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Option(
            "--mask-ratio", "Share of each picture that is masked.", "mae 0.75, inpainting 0.25"
        ),
    ] = None
    visible: Annotated[
        Literal["gaussian", "bernoulli"],
        Option("--visible", "rbm: distribution of the visible units."),
    ] = "gaussian"
    cd_steps: Annotated[
        int, Ge(1), Le(1000), Option("--cd-steps", "rbm: Gibbs steps per update (CD-k).")
    ] = 1
    persistent: Annotated[
        bool, Option("--persistent/--no-persistent", "rbm: persistent contrastive divergence.")
    ] = False
    latent: Annotated[
        int,
        Ge(1),
        Le(65_536),
        Option("--latent", "variational autoencoder, gan: dimension of the latent space."),
    ] = 64
    gan_loss: Annotated[
        Literal["non-saturating", "hinge"],
        Option("--gan-loss", "gan: loss of generator and discriminator."),
    ] = "non-saturating"
    gan_penalty: Annotated[
        Literal["r1", "spectral", "none"],
        Option("--gan-penalty", "gan: regularisation of the discriminator."),
    ] = "r1"
    temperature: Annotated[
        float | None, Gt(0), Option("--temperature", "Softmax temperature.", "simclr 0.2, dino 0.1")
    ] = None
    teacher_temperature: Annotated[
        float, Gt(0), Option("--teacher-temperature", "dino: softmax temperature of the teacher.")
    ] = 0.04
    target_momentum: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--target-momentum", "byol, dino: momentum of the target network.", "0.99"),
    ] = None
    projection: Annotated[
        int | None,
        Ge(2),
        Le(65_536),
        Option("--projection", "Output dimension of the projection head.", "by method"),
    ] = None
    local_views: Annotated[
        int,
        Ge(0),
        Le(32),
        Option("--local-views", "dino: number of small crops besides the two large ones."),
    ] = 4
    grid: Annotated[
        int | None,
        Ge(2),
        Le(8),
        Option("--grid", "jigsaw: tiles per row and column.", "2, from 96 px on 3"),
    ] = None
    permutations: Annotated[
        int,
        Ge(2),
        Le(1000),
        Option("--permutations", "jigsaw: number of permutations to distinguish."),
    ] = 64
    identities: Annotated[
        bool, Option("--identities/--no-identities", "Pictures in one folder show the same thing.")
    ] = False
    aux: Annotated[
        Path | None, Option("--aux", "supervised: another labelled data set to train on.")
    ] = None


def variant_problems(options: Pretraining) -> list[str]:
    """Find options that the variant of the autoencoder, or a method without one, does not read."""
    found = []
    for item in fields(Pretraining):
        variant = VARIANT_USES.get(item.name)
        changed = getattr(options, item.name) != item.default
        if changed and variant not in (None, options.variant) and options.method == "autoencoder":
            found.append(
                f"pretraining.{item.name} has no effect with pretraining.variant = "
                f"{options.variant}: it is for {variant}"
            )
    if options.method == "rbm" and options.sparsity_weight is not None and options.sparsity is None:
        found.append("pretraining.sparsity_weight has no effect without pretraining.sparsity")
    if options.variant == "stacked" and options.loss == "ssim":
        found.append("pretraining.loss ssim compares pictures, a stacked layer also activations")
    return found


def pretraining_problems(options: Pretraining) -> list[str]:
    """Find options of pretraining that contradict each other or would have no effect."""
    found = []
    for item in fields(Pretraining):
        methods = USES.get(item.name)
        if (
            methods
            and getattr(options, item.name) != item.default
            and options.method not in methods
        ):
            found.append(
                f"pretraining.{item.name} has no effect with pretraining.method = "
                f"{options.method}: it is for {', '.join(methods)}"
            )
    found += variant_problems(options)
    if options.epochs is not None and options.budget is not None:
        found.append("--epochs and --budget contradict each other: leave one out")
    if options.method == "supervised" and options.aux is None:
        found.append("pretraining.method supervised needs --aux: labelled pictures to learn from")
    if options.probe_every is not None and options.probe is None:
        found.append("pretraining.probe_every has no effect without pretraining.probe")
    if options.budget is not None:
        try:
            parse_duration(options.budget)
        except ValueError as error:
            found.append(f"pretraining.budget {error}")
    return found
