"""The supervised objective: mixing, logits, cross-entropy with smoothing and class weights."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Objective:
    """What a supervised step minimises.

    class_weights: (K,) or None. mixup, cutmix: Beta parameters, 0 is off; with both on, each batch
    takes one of them at random.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    def weight(self, labels: np.ndarray) -> float:
        """Return what the mean loss over these labels (N,) counts beside others': their weights."""
        if self.class_weights is None:
            return float(len(labels))
        return float(self.class_weights.cpu().numpy()[labels].sum())

    def loss(
        self,
        network: Callable[[Tensor], Tensor],
        inputs: Tensor,
        labels: Tensor,
        generator: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return the batch's mean loss [] and the logits (N, K).

        inputs: pictures (N, 3, H, W) or activations (N, ...). Mixed inputs have the mixed loss.
        """
        partner, share = labels, 1.0
        if self.mixup or self.cutmix:
            inputs, order, share = self.mix(inputs, generator)
            partner = labels[order]
        logits = network(inputs)
        loss = share * self.cross_entropy(logits, labels)
        if share < 1:
            loss = loss + (1 - share) * self.cross_entropy(logits, partner)
        return loss, logits

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with this objective's smoothing and weights, averaged over the batch."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        return functional.cross_entropy(
            logits, labels, weights, label_smoothing=self.label_smoothing
        )

    def mix(self, inputs: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor, float]:
        """Mix every input with another one; return inputs, the partners (N,), and the own share.

        Pictures and activation maps (N, C, H, W) can take CutMix; vectors and tokens have no area
        to cut, and take mixup with CutMix's parameter. Mixing activations is manifold mixup.
        Source: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019; Verma et al.,
        "Manifold Mixup", ICML 2019.
        """
        cut = self.cutmix > 0 and (self.mixup == 0 or generator.random() < 0.5)
        beta = self.cutmix if cut else self.mixup
        share = float(generator.beta(beta, beta))
        order = torch.from_numpy(generator.permutation(len(inputs))).to(inputs.device)
        if not (cut and inputs.ndim == 4):
            inputs = inputs.float()
            return share * inputs + (1 - share) * inputs[order], order, share
        height, width = inputs.shape[2:]
        side = np.sqrt(1 - share)
        cut_h, cut_w = round(height * side), round(width * side)
        top = int(generator.integers(0, height - cut_h + 1))
        left = int(generator.integers(0, width - cut_w + 1))
        mixed = inputs.clone()
        area = (slice(None), slice(None), slice(top, top + cut_h), slice(left, left + cut_w))
        mixed[area] = inputs[order][area]
        return mixed, order, 1 - cut_h * cut_w / (height * width)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return weights (K,) inversely proportional to the class counts, 1 on average over pictures.

    labels: (N,) of the training set; every class must occur. As scikit-learn's "balanced".
    """
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(len(labels) / (num_classes * counts), dtype=torch.float32)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss, accuracy and mean recall of the classes, of logits (N, K) and labels (N,)."""
    right = (logits.argmax(dim=1) == labels).double()
    recalls = [right[labels == k].mean() for k in labels.unique()]
    return {
        "val_loss": float(functional.cross_entropy(logits, labels)),
        "val_accuracy": float(right.mean()),
        "val_balanced_accuracy": float(torch.stack(recalls).mean()),
    }
