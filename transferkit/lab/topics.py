"""The experiments of `transferkit lab`: names, what each shows, and where it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transferkit.lab.finding import Finding


@dataclass(frozen=True)
class Topic:
    """An experiment. function: "module:name" in this package, `(scale) -> Finding`."""

    summary: str
    function: str

    def run(self, scale: float = 1.0) -> "Finding":
        """Carry it out; scale: of its length, 1 for what the command shows.

        On one core: for such small networks more are no faster, and sums would depend on them.
        """
        import torch

        experiment: Callable[[float], Finding] = resolve_name(f"{__package__}.{self.function}")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return experiment(scale)
        finally:
            torch.set_num_threads(threads)


TOPICS = {
    "activations": Topic(
        "which activations let gradients vanish, and which units die", "signals:activations"
    ),
    "initializers": Topic(
        "what becomes of a signal's variance through 50 layers, with theory", "signals:initializers"
    ),
    "batchnorm": Topic("which learning rates batch norm makes possible", "signals:batchnorm"),
    "skip": Topic("how skip connections carry the gradient through 30 layers", "signals:skip"),
    "clipping": Topic("what clipping does to steep gradients", "steps:clipping"),
    "optimizers": Topic("speed and quality of every optimiser, measured", "steps:optimizers"),
    "schedules": Topic(
        "what every learning-rate schedule makes of the same run", "steps:schedules"
    ),
    "regularization": Topic(
        "what L1, L2, max-norm and dropout do against overfitting", "overfitting:regularization"
    ),
    "dropout": Topic(
        "MC dropout on a picture that the model knows and on one that it does not",
        "overfitting:dropout",
    ),
    "freezing": Topic(
        "frozen, unfrozen at once or progressively: accuracy over time", "transfer:freezing"
    ),
    "depths": Topic("what each depth of a backbone holds", "transfer:depths"),
    "pretraining": Topic(
        "what autoencoder, GAN, RBM and contrastive learning find without labels",
        "unlabelled:pretraining",
    ),
}
