"""The table of pretraining methods."""

import importlib
from collections.abc import Callable

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Method, MethodKind

Make = Callable[[Encoder, Pretraining, int], Method]


def lazy(module: str, name: str) -> Make:
    """Return what makes the method `name` of a module, which is imported only then."""

    def make(encoder: Encoder, options: Pretraining, seed: int) -> Method:
        found = importlib.import_module(f"transferkit.pretraining.{module}")
        method: Method = getattr(found, name)(encoder, options, seed)
        return method

    return make


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
    ),
    "simclr": MethodKind(
        lazy("contrastive", "simclr"),
        ("strong", "strong"),
        "to tell views of one picture from all others",
    ),
}
