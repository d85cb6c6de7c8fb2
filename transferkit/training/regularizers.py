"""Penalties on the size of the weights, most of which join the loss, and a limit to it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def l2(weight: Tensor, start: Tensor) -> Tensor:
    """Half the sum of squares, whose gradient is the weight.

    Source: Krogh and Hertz, "A Simple Weight Decay Can Improve Generalization", NeurIPS 1991.
    """
    return 0.5 * weight.square().sum()


def l2_sp(weight: Tensor, start: Tensor) -> Tensor:
    """Half the squared distance to the pretrained weights.

    Source: Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning", ICML 2018.
    """
    return 0.5 * (weight - start).square().sum()


PENALTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": l2, "l2_sp": l2_sp}


@dataclass(frozen=True)
class Strengths:
    """What each penalty is multiplied with before it joins the loss; 0 is off."""

    backbone_l1: float = 0.0
    backbone_l2: float = 0.0
    head_l1: float = 0.0
    head_l2: float = 0.0
    l2_sp: float = 0.0

    def of(self, in_head: bool, is_weight: bool) -> dict[str, float]:
        """Return penalty -> strength in the loss of a parameter. is_weight: it has 2 dimensions.

        Biases and normalisation parameters are free of l1 and l2, but drawn to where they began.
        """
        found = {"l2": self.head_l2 if in_head else self.backbone_l2} if is_weight else {}
        found |= {} if in_head else {"l2_sp": self.l2_sp}
        return {name: strength for name, strength in found.items() if strength}

    def l1_of(self, in_head: bool, parameter: Tensor) -> float:
        """Return the strength of L1 on a parameter, 0 for none; as `of`."""
        strength = self.head_l1 if in_head else self.backbone_l1
        return strength if parameter.ndim > 1 else 0.0


@dataclass(frozen=True)
class Term:
    """One penalty of one parameter. start: its pretrained value, with l2_sp."""

    kind: str
    strength: float
    parameter: Tensor
    start: Tensor


def penalty_terms(
    named: Iterable[tuple[str, nn.Parameter]],
    in_head: Callable[[str], bool],
    strengths: Strengths,
    starts: Mapping[str, Tensor],
) -> list[Term]:
    """List the penalties of the parameters that train. starts: name -> pretrained value."""
    return [
        Term(kind, strength, parameter, starts.get(name, parameter))
        for name, parameter in named
        if parameter.requires_grad
        for kind, strength in strengths.of(in_head(name), parameter.ndim > 1).items()
    ]


def penalized(loss: Tensor, terms: Iterable[Term]) -> Tensor:
    """Add the penalties to a loss []."""
    for term in terms:
        loss = loss + term.strength * PENALTIES[term.kind](term.parameter, term.start)
    return loss


@torch.no_grad()
def soft_threshold_(weight: Tensor, limit: Tensor | float) -> Tensor:
    """Bring every weight nearer to zero by `limit`, in place; within it, to exactly zero.

    limit: >= 0, one or one for each. This is the proximal step of limit * L1. Returns the same
    tensor.
    Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; Beck and Teboulle,
    "A Fast Iterative Shrinkage-Thresholding Algorithm", 2009.
    """
    limit = torch.as_tensor(limit, dtype=weight.dtype, device=weight.device)
    return weight.sub_(weight.clamp(-limit, limit))


@torch.no_grad()
def max_norm_(weight: Tensor, limit: float) -> Tensor:
    """Rescale, in place, every neuron's incoming weight vector to an L2 norm of at most `limit`.

    weight: (out, in, ...); each slice along the first dimension is one neuron's incoming weights.
    limit: > 0, in the units of the weights; vectors already within it are left bit-identical.
    Returns the same tensor.
    Source: Srivastava et al., "Dropout", JMLR 2014, section 5.1.
    """
    return weight.renorm_(p=2, dim=0, maxnorm=limit)


def constrained(model: nn.Module, in_head: Callable[[str], bool], scope: str) -> list[Tensor]:
    """List the weights that max-norm holds: of trained linear and convolutional layers.

    scope: "head" or "all".
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and module.weight.requires_grad
        and (scope == "all" or in_head(name))
    ]
