"""Stacked autoencoders: an mlp or cnn, trained greedily from the first layer up."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.backbones.scratch import Scratch
from transferkit.config import Pretraining
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Learn, Method, Objective, Phase

TOGETHER = 2.0
"""Share of the epochs that train all layers, relative to 1 for each single layer."""
LOSSES = {"mse": functional.mse_loss, "l1": functional.l1_loss}
"""Losses that are also defined for activations."""


class Inverse(nn.Module):
    """The decoder of one layer: a linear map from the layer's output to its input.

    tied: the weight is the layer's, transposed; only the bias is trained.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, tied: bool) -> None:
        super().__init__()
        self.stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 0
        self._layer = [layer]  # in a list: it is not a part of this module
        inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        self.bias = nn.Parameter(torch.zeros(inputs))
        self.weight = None if tied else nn.Parameter(layer.weight.detach().clone())

    def forward(self, outputs: Tensor) -> Tensor:
        """Reconstruct the layer's inputs from its outputs."""
        weight = self._layer[0].weight if self.weight is None else self.weight
        if not self.stride:
            return functional.linear(outputs, weight.t(), self.bias)
        extra = self.stride - 1
        return functional.conv_transpose2d(outputs, weight, self.bias, self.stride, 1, extra)


def stacked_autoencoder(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Train each layer to reconstruct its input, the layers below frozen; then all together.

    Source: Bengio et al., "Greedy Layer-Wise Training of Deep Networks", NeurIPS 2007.
    """
    backbone = encoder.backbone
    if not isinstance(backbone, Scratch):
        where = f"this backbone is a {type(backbone).__name__}"
        remedy = "use --backbone mlp or --backbone cnn, or another --variant"
        raise usage_error("--variant stacked needs a plain stack of layers", where, remedy)
    layers = [
        next(m for m in block.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        for block in backbone.blocks
    ]
    inverses = nn.ModuleList(Inverse(layer, options.tied) for layer in layers)
    networks = nn.ModuleDict({"encoder": encoder, "inverses": inverses})
    compare = LOSSES[options.loss]

    def below(images: Tensor, depth: int) -> Tensor:
        activations: Tensor = backbone.flatten(backbone.input_norm(encoder.normalized(images)))
        for block in list(backbone.blocks.children())[:depth]:
            activations = block(activations)
        return activations

    def one_layer(number: int) -> Learn:
        def learn(batch: Batch) -> Iterator[Objective]:
            with torch.no_grad():
                inputs = below(batch.views[0], number)
            yield Objective(compare(inverses[number](backbone.blocks[number](inputs)), inputs))

        return learn

    def reconstructed(images: Tensor) -> Tensor:
        activations = below(images, len(layers))
        for inverse in reversed(list(inverses)):
            activations = inverse(activations)
        return activations

    def together(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        yield Objective(compare(reconstructed(images), below(images, 0)))

    def show(images: Tensor) -> Mapping[str, Tensor]:
        outputs = reconstructed(images).view_as(images) * encoder.std + encoder.mean
        return {"reconstructions": torch.stack([images, outputs.clamp(0, 1)])}

    phases = []
    for number, (block, inverse) in enumerate(zip(backbone.blocks, inverses, strict=True)):
        players = {"network": nn.ModuleList([block, inverse])}
        phases.append(Phase(f"layer {number + 1}", players, one_layer(number)))
    phases.append(Phase("together", {"network": networks}, together, share=TOGETHER))
    return Method(networks, tuple(phases), show=show)
