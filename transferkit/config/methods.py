"""The table of pretraining methods: what each learns, how it runs, and which options it reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

TWO_VIEWS = ("strong", "strong")


@dataclass(frozen=True)
class MethodKind:
    """A row of the table of methods.

    function: "module.function" of `transferkit.pretraining`, called with (encoder, options, seed).
    summary: what is learned, in a few words. options: those that not every method reads.
    views: kinds of the views of each picture, see `transferkit.pretraining.views.VIEWS`.
    views_function: "module.function", called with (encoder, options), that returns them instead.
    backbone: the default one. reads_labels: learns the classes of a labelled set; the function also
    takes their number. drops_last: a smaller last batch is dropped. one_process: not distributed.
    """

    function: str
    summary: str
    options: tuple[str, ...] = ()
    views: tuple[str, ...] = ("weak",)
    views_function: str | None = None
    backbone: str = "resnet18"
    reads_labels: bool = False
    drops_last: bool = True
    one_process: bool = False


METHODS: dict[str, MethodKind] = {
    "autoencoder": MethodKind(
        "autoencoders.autoencoder",
        "to reconstruct a picture from its features",
        (
            *("variant", "noise", "loss", "kl_weight", "tied"),
            *("sparsity", "sparsity_weight", "latent"),
        ),
        drops_last=False,
    ),
    "mae": MethodKind(
        "masked.mae",
        "to reconstruct masked patches from the visible ones",
        ("mask_ratio",),
        backbone="vit_tiny_patch16_224",
        drops_last=False,
    ),
    "gan": MethodKind(
        "gan.gan",
        "to tell pictures from those of a generator",
        ("latent", "gan_loss", "gan_penalty"),
        backbone="cnn",
    ),
    "rbm": MethodKind(
        "rbm.rbm",
        "a probability model of the pictures, layer by layer",
        ("sparsity", "sparsity_weight", "visible", "cd_steps", "persistent"),
        backbone="mlp",
        drops_last=False,
        one_process=True,  # its persistent chains belong to positions in the batch
    ),
    "simclr": MethodKind(
        "contrastive.simclr",
        "to find the other view of a picture among all others",
        ("temperature", "projection"),
        TWO_VIEWS,
    ),
    "simsiam": MethodKind(
        "contrastive.simsiam",
        "to predict the other view, a target without gradient",
        ("projection",),
        TWO_VIEWS,
    ),
    "byol": MethodKind(
        "teachers.byol",
        "to predict a momentum copy's output for the other view",
        ("target_momentum", "projection"),
        TWO_VIEWS,
    ),
    "barlow": MethodKind(
        "contrastive.barlow",
        "decorrelated outputs that agree between two views",
        ("projection",),
        TWO_VIEWS,
    ),
    "vicreg": MethodKind(
        "contrastive.vicreg",
        "outputs that agree between views, vary, and do not correlate",
        ("projection",),
        TWO_VIEWS,
    ),
    "dino": MethodKind(
        "teachers.dino",
        "to match a momentum teacher's output, also on small crops",
        ("temperature", "teacher_temperature", "target_momentum", "projection", "local_views"),
        TWO_VIEWS,
        "teachers.dino_views",
    ),
    "rotation": MethodKind("auxiliary.rotation", "the rotation of a picture, in quarter turns"),
    "jigsaw": MethodKind(
        "auxiliary.jigsaw", "the order of a picture's shuffled tiles", ("grid", "permutations")
    ),
    "colorization": MethodKind(
        "filling.colorization", "the colours of a greyscale picture", ("loss",)
    ),
    "inpainting": MethodKind(
        "filling.inpainting", "the content of masked regions", ("loss", "mask_ratio")
    ),
    "same-or-different": MethodKind(
        "siamese.same_or_different",
        "whether two pictures show the same thing",
        ("identities",),
        TWO_VIEWS,
        one_process=True,  # its pairs span the whole batch
    ),
    "supervised": MethodKind(
        "auxiliary.supervised",
        "the classes of another labelled data set",
        ("aux",),
        reads_labels=True,
    ),
}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
