"""A closing solve averaged with the head that the stages trained on the same features.

What the stages learn and what the depths hold add up; both heads are linear, so their average is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from transferkit.closed_form.judge import fit_temperature

DROPOUTS = (nn.Dropout, nn.AlphaDropout)
SHARES = tuple(step / 10 for step in range(10))
"""Of the trained head that are tried; with all of it, the solve would add nothing."""


@torch.no_grad()
def blend_(
    solved: nn.Sequential,
    trained: nn.Module,
    features: Tensor,
    labels: Tensor,
    rank: Callable[[Tensor], tuple[float, float]],
) -> float:
    """Move a solved head to the share of the trained one that ranks highest; return the share.

    solved: (N, D) -> (N, K), changed in place. trained: on the last F of these features; with
    hidden layers or batch norm it has no part. features: (N, D) of unseen pictures; labels: (N,).
    rank: of logits (N, K); of equal ones the smaller share. Both heads' logits count at the
    temperature that fits them best.
    """
    layers = [part for part in trained.children() if not isinstance(part, DROPOUTS)]
    if len(layers) != 1 or not isinstance(own := layers[0], nn.Linear):
        return 0.0
    layer = solved[-1]
    assert isinstance(layer, nn.Linear)
    ours, theirs = layer(features), own(features[:, -own.in_features :])
    by_ours, by_theirs = (1 / fit_temperature(logits, labels) for logits in (ours, theirs))
    mixed = [torch.lerp(ours * by_ours, theirs * by_theirs, share) for share in SHARES]
    share = max(zip(map(rank, mixed), SHARES, strict=True), key=lambda pair: pair[0])[1]
    for mine, other in ((layer.weight, own.weight), (layer.bias, own.bias)):
        mine.mul_((1 - share) * by_ours)
        mine[..., -other.shape[-1] :] += share * by_theirs * other
    return share
