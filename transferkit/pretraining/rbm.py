"""Restricted Boltzmann machines, stacked greedily: a deep belief net that becomes an mlp.

A machine's weights and hidden biases are those of the mlp's layer, so what is learned lies in the
backbone at every moment: with logistic layers its activations are the hidden units' probabilities.
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
from transferkit.pretraining.method import Batch, Learn, Method, Move, Phase

VISIBLE_STD = 0.5
"""Of Gaussian visible units, in the units of the network's input, -1..1."""
SPARSITY_WEIGHT = 1.0
"""Unless the user names another."""


@dataclass(frozen=True)
class Machine:
    """A restricted Boltzmann machine on what a layer sees.

    weight: (H, V) and bias: (H,) of p(hidden | visible) = logistic(weight v + bias). visible_bias:
    (V,). std: of Gaussian visible units; None for Bernoulli ones, 0 or 1.
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
        drive = hidden @ self.weight
        if self.std is not None:
            return self.visible_bias + self.std**2 * drive
        return torch.sigmoid(self.visible_bias + drive)

    def sample_visible(self, hidden: Tensor) -> Tensor:
        """Draw visible units (N, V)."""
        expected = self.visible(hidden)
        if self.std is not None:
            return expected + self.std * torch.randn_like(expected)
        return torch.bernoulli(expected)

    def gibbs(self, visible: Tensor, steps: int) -> Tensor:
        """Return visible units (N, V) after so many rounds of drawing hidden, then visible ones."""
        for _ in range(steps):
            visible = self.sample_visible(torch.bernoulli(self.hidden(visible)))
        return visible

    def free_energy(self, visible: Tensor) -> Tensor:
        """Return F (N,): -log of the unnormalised probability of visible units, summed over hidden.

        Source: Hinton, "A Practical Guide to Training Restricted Boltzmann Machines", section 16.1.
        """
        drive = functional.linear(visible, self.weight, self.bias)
        hidden = functional.softplus(drive).sum(dim=1)
        if self.std is not None:
            distance = (visible - self.visible_bias).square().sum(dim=1)
            return distance / (2 * self.std**2) - hidden
        return -(visible @ self.visible_bias) - hidden


def contrastive_divergence(machine: Machine, data: Tensor, fantasy: Tensor) -> Tensor:
    """Return a loss [] whose gradient is that of contrastive divergence.

    data: (N, V) visible units of pictures. fantasy: (M, V) those that the machine drew. The mean
    free energy of the first less that of the second: its gradient is the negative of the
    likelihood's where the fantasies are fair draws.
    Source: Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002.
    """
    return machine.free_energy(data).mean() - machine.free_energy(fantasy).mean()


def pseudo_likelihood(machine: Machine, visible: Tensor, bit: Tensor) -> Tensor:
    """Return an estimate [] of the mean log pseudo-likelihood of Bernoulli visible units.

    visible: (N, V) of 0 and 1. bit: (N,) which unit of each to flip: log p(unit | all others) is
    logistic of the rise of the free energy; times V it stands for the sum over all units.
    Source: as scikit-learn's BernoulliRBM.score_samples.
    """
    flipped = visible.clone()
    rows = torch.arange(len(visible), device=visible.device)
    flipped[rows, bit] = 1 - flipped[rows, bit]
    rise = machine.free_energy(flipped) - machine.free_energy(visible)
    return visible.shape[1] * functional.logsigmoid(rise).mean()


class Stack(nn.Module):
    """The machines of a deep belief net on the layers of an mlp.

    The weights start as the mlp's do, at random or from a file. visible_biases: of every layer.
    chains: (N, V) persistent draws of every layer. learning: number of the machine that learns.
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
        """Return what the first machine sees (N, V) of pictures (N, 3, H, W), values 0..1.

        The network's own input -1..1; for Bernoulli units the pixels' values, taken as
        probabilities.
        """
        return (self.encoder.normalized(images) if self.gaussian else images).flatten(1)

    def machine(self, number: int) -> Machine:
        """Return the machine on a layer.

        The layer's input is n = 2 v - 1 where the visible units v are pixels of 0..1, so that its
        weight and bias are the machine's, rescaled: w n + b = 2 w v + (b - w 1).
        """
        layer, bias = self.layers[number], self.visible_biases[number]
        if number or self.gaussian:
            std = VISIBLE_STD if number == 0 else None
            return Machine(layer.weight, layer.bias, bias, std)
        return Machine(2 * layer.weight, layer.bias - layer.weight.sum(dim=1), bias)

    def below(self, images: Tensor, number: int) -> Tensor:
        """Return what the machine `number` sees (N, V): probabilities of the hidden units below."""
        found = self.input(images)
        for position in range(number):
            found = self.machine(position).hidden(found)
        return found

    @torch.no_grad()
    def centre_(self, number: int, images: Tensor) -> None:
        """Start a machine's biases at what pictures (N, 3, H, W) look like on the mean.

        Visible units begin at their mean; hidden ones, where their biases are still 0, in the
        middle: a picture that is mostly white would else switch them all the same way.
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

    def chain(self, number: int) -> Tensor:
        """Return a layer's persistent draws (N, V)."""
        found: Tensor = getattr(self, f"chain{number}")
        return found

    def drawn(self, images: Tensor, depth: int) -> Tensor:
        """Return pictures (N, 3, H, W) as the first `depth` machines draw them again, 0..1."""
        hidden = self.below(images, depth)
        for number in reversed(range(depth)):
            hidden = self.machine(number).visible(hidden)
        if self.gaussian:
            shape = (1, 3, *images.shape[2:])
            pixels = hidden.view(len(images), *shape[1:])
            return (pixels * self.encoder.std + self.encoder.mean).clamp(0, 1)
        return hidden.view_as(images)


def linear_layers(encoder: Encoder) -> list[nn.Linear]:
    """Return an mlp's layers. Raises a usage error where they are no restricted Boltzmann machines.

    Each must be a linear layer with logistic units alone.
    """
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
    found: list[nn.Linear] = []
    for block in backbone.blocks:
        parts = list(block.children())
        if [type(part) for part in parts] != [nn.Linear, nn.Sigmoid]:
            names = ", ".join(type(part).__name__ for part in parts)
            raise usage_error(
                "--method rbm needs layers with logistic units and nothing between them",
                f"here they are {names}",
                "use --activation logistic, without batch norm and dropout",
            )
        found += [part for part in parts if isinstance(part, nn.Linear)]
    return found


def rbm(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Give pictures a low energy, and what the machine draws by itself a high one.

    Source: Hinton, Osindero and Teh, "A Fast Learning Algorithm for Deep Belief Nets", 2006;
    persistent chains: Tieleman, "Training Restricted Boltzmann Machines using Approximations to
    the Likelihood Gradient", ICML 2008; sparsity: Lee et al., "Sparse deep belief net model for
    visual area V2", NeurIPS 2007.
    """
    stack = Stack(encoder, options, seed)
    phases = []
    for number, layer in enumerate(stack.layers):
        players = {"network": [layer.weight, layer.bias, stack.visible_biases[number]]}
        step = layer_step(stack, number, options)
        begin = partial(stack.centre_, number)
        phases.append(Phase(f"layer {number + 1}", players, step, begin=begin))

    def show(images: Tensor) -> Mapping[str, Tensor]:
        rows = [images, stack.drawn(images, 1)]
        if len(stack.layers) > 1:
            rows.append(stack.drawn(images, len(stack.layers)))
        return {"reconstructions": torch.stack(rows)}

    def measure(seen: Tensor, aside: Tensor) -> Mapping[str, float]:
        if not len(aside):
            return {}
        number = stack.learning
        with torch.no_grad():
            machine = stack.machine(number)
            parts = [stack.below(part, number) for part in (aside, seen)]
            energies = [machine.free_energy(part).mean() for part in parts]
        return {"free_energy_gap": float(energies[0] - energies[1])}

    return Method(stack, tuple(phases), lr=1e-3, weight_decay=1e-4, show=show, measure=measure)


def layer_step(stack: Stack, number: int, options: Pretraining) -> Learn:
    """Return how one machine learns from a batch."""
    weight = SPARSITY_WEIGHT if options.sparsity_weight is None else options.sparsity_weight

    def learn(batch: Batch) -> Iterator[Move]:
        stack.learning = number
        machine = stack.machine(number)
        with torch.no_grad():
            data = stack.below(batch.views[0], number)
            if machine.std is None:
                data = torch.bernoulli(data)
            chain = stack.chain(number)
            persistent = options.persistent and not batch.held_out
            start = chain[: len(data)] if persistent else data
            fantasy = machine.gibbs(start, options.cd_steps)
            if persistent:
                chain[: len(data)] = fantasy
            again = machine.visible(machine.hidden(data))
            figures = {"reconstruction": float((again - data).square().mean())}
            if machine.std is None:
                bit = torch.randint(data.shape[1], (len(data),), device=data.device)
                figures["pseudo_likelihood"] = float(pseudo_likelihood(machine, data, bit))
        loss = contrastive_divergence(machine, data, fantasy)
        if options.sparsity is not None:
            on = machine.hidden(data).mean(dim=0)  # (H,)
            figures["active"] = float(on.detach().mean())
            loss = loss + weight * (on - options.sparsity).square().sum()
        yield Move(loss, figures=figures)

    return learn
