"""Restricted Boltzmann machines (RBMs), stacked greedily: a deep belief net that becomes an MLP.

An RBM shares weights and hidden biases with the MLP's layer, so the backbone is always up to date:
the activations of its logistic layers are the probabilities of the hidden units.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.backbones.scratch import Scratch
from transferkit.config import Pretraining
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Learn, Method, Objective, Phase

VISIBLE_STD = 0.5
"""Standard deviation of Gaussian visible units, on the scale of the network's input, -1..1."""
SPARSITY_WEIGHT = 1.0


@dataclass(frozen=True)
class Machine:
    """A restricted Boltzmann machine on the input of a layer.

    weight: (H, V) and bias: (H,) of p(hidden | visible) = logistic(weight v + bias). visible_bias:
    (V,). std: of Gaussian visible units; None for Bernoulli units, 0 or 1.
    """

    weight: Tensor
    bias: Tensor
    visible_bias: Tensor
    std: float | None = None

    def hidden(self, visible: Tensor) -> Tensor:
        """Return the probabilities (N, H) that hidden units are on."""
        return torch.sigmoid(functional.linear(visible, self.weight, self.bias))

    def visible(self, hidden: Tensor) -> Tensor:
        """Return the expected visible units (N, V): means, or probabilities."""
        inputs = hidden @ self.weight
        if self.std is not None:
            return self.visible_bias + self.std**2 * inputs
        return torch.sigmoid(self.visible_bias + inputs)

    def sample_visible(self, hidden: Tensor) -> Tensor:
        """Draw visible units (N, V)."""
        expected = self.visible(hidden)
        if self.std is not None:
            return expected + self.std * torch.randn_like(expected)
        return torch.bernoulli(expected)

    def gibbs(self, visible: Tensor, steps: int) -> Tensor:
        """Return visible units (N, V) after `steps` rounds of block Gibbs sampling."""
        for _ in range(steps):
            visible = self.sample_visible(torch.bernoulli(self.hidden(visible)))
        return visible

    def free_energy(self, visible: Tensor) -> Tensor:
        """Return the free energy (N,): -log of the unnormalised marginal probability of visible.

        Source: Hinton, "A Practical Guide to Training Restricted Boltzmann Machines", section 16.1.
        """
        inputs = functional.linear(visible, self.weight, self.bias)
        hidden = functional.softplus(inputs).sum(dim=1)
        if self.std is not None:
            distance = (visible - self.visible_bias).square().sum(dim=1)
            return distance / (2 * self.std**2) - hidden
        return -(visible @ self.visible_bias) - hidden


def contrastive_divergence(machine: Machine, data: Tensor, fantasy: Tensor) -> Tensor:
    """Return a loss [] whose gradient is that of contrastive divergence.

    data: (N, V) visible units of pictures. fantasy: (M, V) sampled visible units. The loss is the
    difference of their mean free energies: its gradient is that of the negative log-likelihood if
    the fantasies are samples of the model.
    Source: Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002.
    """
    return machine.free_energy(data).mean() - machine.free_energy(fantasy).mean()


def pseudo_likelihood(machine: Machine, visible: Tensor, bit: Tensor) -> Tensor:
    """Return an estimate [] of the mean log pseudo-likelihood of Bernoulli visible units.

    visible: (N, V) of 0 and 1. bit: (N,) the unit of each row to flip: p(unit | all others) is the
    logistic of the rise in free energy; its log times V estimates the sum over all units.
    Source: scikit-learn's BernoulliRBM.score_samples.
    """
    flipped = visible.clone()
    rows = torch.arange(len(visible), device=visible.device)
    flipped[rows, bit] = 1 - flipped[rows, bit]
    rise = machine.free_energy(flipped) - machine.free_energy(visible)
    return visible.shape[1] * functional.logsigmoid(rise).mean()


class Stack(nn.Module):
    """The RBMs of a deep belief net on the layers of an MLP.

    The weights start as the MLP's, random or from a file. visible_biases: of every layer. Buffers
    chain0, ...: persistent chains (N, V) of every layer. learning: index of the RBM in training.
    """

    def __init__(self, encoder: Encoder, options: Pretraining, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.gaussian = options.visible == "gaussian"
        self.layers = linear_layers(encoder)
        generator = torch.Generator().manual_seed(seed)
        self.visible_biases = nn.ParameterList()
        self.learning = 0
        for number, layer in enumerate(self.layers):
            self.visible_biases.append(nn.Parameter(torch.zeros(layer.in_features)))
            start = torch.rand(options.batch_size, layer.in_features, generator=generator)
            self.register_buffer(f"chain{number}", start.round() if number else start)

    def input(self, images: Tensor) -> Tensor:
        """Return the first RBM's visible units (N, V) for pictures (N, 3, H, W), values 0..1.

        The network's input, -1..1; for Bernoulli units the pixel values as probabilities.
        """
        return (self.encoder.normalized(images) if self.gaussian else images).flatten(1)

    def machine(self, number: int) -> Machine:
        """Return the RBM on a layer.

        With Bernoulli pixels v of 0..1, the first layer's input is n = 2 v - 1, so the RBM's weight
        and bias are the layer's, rescaled: w n + b = 2 w v + (b - w 1).
        """
        layer, bias = self.layers[number], self.visible_biases[number]
        if number or self.gaussian:
            std = VISIBLE_STD if number == 0 else None
            return Machine(layer.weight, layer.bias, bias, std)
        return Machine(2 * layer.weight, layer.bias - layer.weight.sum(dim=1), bias)

    def below(self, images: Tensor, number: int) -> Tensor:
        """Return the visible units (N, V) of RBM `number`: the hidden probabilities below it."""
        visible = self.input(images)
        for position in range(number):
            visible = self.machine(position).hidden(visible)
        return visible

    @torch.no_grad()
    def centre_(self, number: int, images: Tensor) -> None:
        """Initialise an RBM's biases from the mean of pictures (N, 3, H, W).

        Visible biases reproduce the mean. Hidden biases that are still 0 put the mean picture at
        probability 1/2: else a set of mostly white pictures would saturate all units alike.
        Source: Hinton, "A Practical Guide to Training Restricted Boltzmann Machines", section 8.1;
        Montavon and Müller, "Deep Boltzmann Machines and the Centering Trick", 2012.
        """
        mean = self.below(images, number).mean(dim=0)
        layer = self.layers[number]
        bernoulli = self.machine(number).std is None
        self.visible_biases[number].copy_(mean.clamp(0.01, 0.99).logit() if bernoulli else mean)
        if not layer.bias.any():
            scaled = number == 0 and not self.gaussian
            layer.bias.copy_(-layer.weight @ (2 * mean - 1 if scaled else mean))

    def reconstructed(self, images: Tensor, depth: int) -> Tensor:
        """Return pictures (N, 3, H, W), 0..1, reconstructed from `depth` layers up."""
        hidden = self.below(images, depth)
        for number in reversed(range(depth)):
            hidden = self.machine(number).visible(hidden)
        pixels = hidden.view_as(images)
        scale = self.encoder
        return (pixels * scale.std + scale.mean).clamp(0, 1) if self.gaussian else pixels


def linear_layers(encoder: Encoder) -> list[nn.Linear]:
    """Return an MLP's layers. Raises a usage error if one is not linear with logistic units."""
    backbone = encoder.backbone
    if not isinstance(backbone, Scratch) or backbone.maps:
        raise usage_error(
            "--method rbm needs a multilayer perceptron",
            "its layers are the machines' hidden units",
            "use --backbone mlp (with --backbone-depth and --backbone-width), or another --method",
        )
    if not isinstance(backbone.input_norm, nn.Identity):
        raise usage_error(
            "--method rbm needs pixels as they are",
            "here batch norm changes them before the first layer",
            "leave out --backbone-batchnorm first",
        )
    layers: list[nn.Linear] = []
    for block in backbone.blocks:
        parts = [block, *block.children()]
        if [type(part) for part in parts] != [nn.Sequential, nn.Linear, nn.Sigmoid]:
            what = "--method rbm needs layers with logistic units and nothing between them"
            where = f"here they are {', '.join(type(part).__name__ for part in parts)}"
            remedy = "use --activation logistic, without batch norm, dropout and skip connections"
            raise usage_error(what, where, remedy)
        layers += [part for part in parts if isinstance(part, nn.Linear)]
    return layers


def rbm(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Lower the free energy of pictures and raise that of the model's own samples.

    Source: Hinton, Osindero and Teh, "A Fast Learning Algorithm for Deep Belief Nets", 2006;
    persistent chains: Tieleman, "Training Restricted Boltzmann Machines using Approximations to
    the Likelihood Gradient", ICML 2008; sparsity: Lee et al., "Sparse deep belief net model for
    visual area V2", NeurIPS 2007.
    """
    stack = Stack(encoder, options, seed)
    phases = []
    for number, layer in enumerate(stack.layers):
        players = {"network": [layer.weight, layer.bias, stack.visible_biases[number]]}
        step, begin = layer_step(stack, number, options), partial(stack.centre_, number)
        phases.append(Phase(f"layer {number + 1}", players, step, begin=begin))

    def show(images: Tensor) -> Mapping[str, Tensor]:
        depths = dict.fromkeys((1, len(stack.layers)))
        rows = [images, *(stack.reconstructed(images, depth) for depth in depths)]
        return {"reconstructions": torch.stack(rows)}

    def figures(training: Tensor, held_out: Tensor) -> Mapping[str, float]:
        if not len(held_out):
            return {}
        machine = stack.machine(stack.learning)
        with torch.no_grad():
            parts = [stack.below(part, stack.learning) for part in (held_out, training)]
            energies = [machine.free_energy(part).mean() for part in parts]
        return {"free_energy_gap": float(energies[0] - energies[1])}

    return Method(stack, tuple(phases), lr=1e-3, weight_decay=1e-4, show=show, figures=figures)


def layer_step(stack: Stack, number: int, options: Pretraining) -> Learn:
    """Return the training step of one RBM."""
    weight = SPARSITY_WEIGHT if options.sparsity_weight is None else options.sparsity_weight

    def learn(batch: Batch) -> Iterator[Objective]:
        stack.learning = number
        machine = stack.machine(number)
        with torch.no_grad():
            data = stack.below(batch.views[0], number)
            if machine.std is None:
                data = torch.bernoulli(data)
            chain = stack.get_buffer(f"chain{number}")
            persistent = options.persistent and not batch.held_out
            start = chain[: len(data)] if persistent else data
            fantasy = machine.gibbs(start, options.cd_steps)
            if persistent:
                chain[: len(data)] = fantasy
            reconstructed = machine.visible(machine.hidden(data))
            figures = {"reconstruction": float((reconstructed - data).square().mean())}
            if machine.std is None:
                bit = torch.randint(data.shape[1], (len(data),), device=data.device)
                figures["pseudo_likelihood"] = float(pseudo_likelihood(machine, data, bit))
        loss = contrastive_divergence(machine, data, fantasy)
        if options.sparsity is not None:
            active = machine.hidden(data).mean(dim=0)  # (H,)
            figures["active"] = float(active.detach().mean())
            loss = loss + weight * (active - options.sparsity).square().sum()
        yield Objective(loss, figures=figures)

    return learn
