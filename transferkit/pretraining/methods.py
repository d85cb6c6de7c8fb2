"""The table of pretraining methods."""

from collections.abc import Callable

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Method, MethodKind


def autoencoder(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """See `transferkit.pretraining.autoencoders`."""
    from transferkit.pretraining import autoencoders

    return autoencoders.autoencoder(encoder, options, seed)


def self_supervised(name: str) -> Callable[[Encoder, Pretraining, int], Method]:
    """Return what makes a method of `transferkit.pretraining.contrastive`."""

    def make(encoder: Encoder, options: Pretraining, seed: int) -> Method:
        from transferkit.pretraining import contrastive

        found: Method = getattr(contrastive, name)(encoder, options, seed)
        return found

    return make


METHODS: dict[str, MethodKind] = {
    "autoencoder": MethodKind(
        autoencoder, ("weak",), "to draw a picture again from its features", drops_last=False
    ),
    "simclr": MethodKind(
        self_supervised("simclr"), ("strong", "strong"), "to tell views of one picture from others"
    ),
}
