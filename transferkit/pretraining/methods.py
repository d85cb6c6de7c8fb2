"""The table of pretraining methods."""

import importlib
from collections.abc import Callable

from transferkit.config import Pretraining
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Method, MethodKind

Make = Callable[..., Method]


def lazy(module: str, name: str) -> Make:
    """Return what makes the method `name` of a module, which is imported only then."""

    def make(encoder: Encoder, options: Pretraining, seed: int, **more: int) -> Method:
        found = importlib.import_module(f"transferkit.pretraining.{module}")
        method: Method = getattr(found, name)(encoder, options, seed, **more)
        return method

    return make


def dino_views(encoder: Encoder, options: Pretraining) -> tuple[str, ...]:
    """See `transferkit.pretraining.teachers`."""
    from transferkit.pretraining import teachers

    return teachers.dino_views(encoder, options)


TWO_VIEWS = ("strong", "strong")

METHODS: dict[str, MethodKind] = {
    "autoencoder": MethodKind(
        lazy("autoencoders", "autoencoder"),
        ("weak",),
        "to draw a picture again from its features",
        drops_last=False,
    ),
    "gan": MethodKind(
        lazy("gan", "gan"),
        ("weak",),
        "to tell pictures from those that a second network draws",
        backbone="cnn",
    ),
    "mae": MethodKind(
        lazy("masked", "mae"),
        ("weak",),
        "to draw the patches that were hidden",
        backbone="vit_tiny_patch16_224",
        drops_last=False,
    ),
    "rbm": MethodKind(
        lazy("rbm", "rbm"),
        ("weak",),
        "layer by layer, which pictures are probable",
        backbone="mlp",
        drops_last=False,
        one_process=True,  # its persistent chains belong to places in the batch
    ),
    "simclr": MethodKind(
        lazy("contrastive", "simclr"), TWO_VIEWS, "to tell views of one picture from all others"
    ),
    "simsiam": MethodKind(
        lazy("contrastive", "simsiam"), TWO_VIEWS, "to predict the other view, which is held still"
    ),
    "byol": MethodKind(
        lazy("teachers", "byol"),
        TWO_VIEWS,
        "to predict what a slow copy of itself makes of the other view",
    ),
    "barlow": MethodKind(
        lazy("contrastive", "barlow"),
        TWO_VIEWS,
        "outputs that agree on two views and not with each other",
    ),
    "vicreg": MethodKind(
        lazy("contrastive", "vicreg"), TWO_VIEWS, "outputs that are near, vary, and vary apart"
    ),
    "dino": MethodKind(
        lazy("teachers", "dino"),
        TWO_VIEWS,
        "to name small views as a slow copy of itself names large ones",
        views_of=dino_views,
    ),
    "rotation": MethodKind(
        lazy("auxiliary", "rotation"), ("weak",), "by how many quarters a picture is turned"
    ),
    "jigsaw": MethodKind(lazy("auxiliary", "jigsaw"), ("weak",), "in which order its tiles lie"),
    "colorization": MethodKind(
        lazy("filling", "colorization"), ("weak",), "the colours of a picture seen in grey"
    ),
    "inpainting": MethodKind(
        lazy("filling", "inpainting"), ("weak",), "what the hidden parts of a picture look like"
    ),
    "same-or-different": MethodKind(
        lazy("siamese", "same_or_different"),
        TWO_VIEWS,
        "whether two pictures show the same",
        one_process=True,  # its pairs are made of the whole batch
    ),
    "supervised": MethodKind(
        lazy("auxiliary", "supervised"),
        ("weak",),
        "the classes of another labelled set",
        reads_labels=True,
    ),
}


def refuse_sharing(options: Pretraining, number: int) -> None:
    """Raise a usage error where so many processes cannot share the batches of a run."""
    if number > 1 and METHODS[options.method].one_process:
        able = ", ".join(name for name, kind in METHODS.items() if not kind.one_process)
        raise usage_error(
            f"--method {options.method} runs in one process, not in {number}",
            "its batches cannot be shared out",
            f"start it without torchrun, or take one of {able}",
        )
    if options.batch_size < number:
        raise usage_error(f"--batch-size {options.batch_size} is too small for {number} processes")
