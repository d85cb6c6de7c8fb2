import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.neural_network import BernoulliRBM
from torch import Tensor

from transferkit.backbones.create import create_backbone
from transferkit.backbones.scratch import ScratchDesign
from transferkit.backbones.structure import Structure
from transferkit.config import Config, Pretraining
from transferkit.errors import UserError
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch
from transferkit.pretraining.rbm import (
    VISIBLE_STD,
    Machine,
    Stack,
    contrastive_divergence,
    pseudo_likelihood,
    rbm,
)
from transferkit.verbs import pretrain as verb

Make = Callable[..., Config]


def machine(visible: int = 4, hidden: int = 3, std: float | None = None) -> Machine:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(True)

    return Machine(draw(hidden, visible), draw(hidden), draw(visible), std)


def every(count: int) -> Tensor:
    """All states (2^count, count) of so many binary units."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def joint_energy(m: Machine, visible: Tensor, hidden: Tensor) -> Tensor:
    """The energy of one joint state, as the definition has it."""
    pairs = hidden @ m.weight @ visible + m.bias @ hidden
    if m.std is not None:
        return (visible - m.visible_bias).square().sum() / (2 * m.std**2) - pairs
    return -(m.visible_bias @ visible) - pairs


@pytest.mark.parametrize("std", [None, 0.7])
def test_free_energy_sums_over_all_hidden_states(std: float | None) -> None:
    m = machine(std=std)
    visible = torch.rand(5, 4, dtype=torch.float64)
    for row, found in zip(visible, m.free_energy(visible), strict=True):
        energies = torch.stack([joint_energy(m, row, h) for h in every(3)])
        torch.testing.assert_close(found, -torch.logsumexp(-energies, dim=0))


@pytest.mark.parametrize("std", [None, 0.7])
def test_conditionals_are_those_of_the_joint_distribution(std: float | None) -> None:
    m = machine(std=std)
    visible = torch.rand(4, dtype=torch.float64)
    weights = torch.stack([-joint_energy(m, visible, h) for h in every(3)]).softmax(dim=0)
    torch.testing.assert_close(m.hidden(visible[None])[0], weights @ every(3))
    hidden = every(3)[5]
    if std is None:
        shares = torch.stack([-joint_energy(m, v, hidden) for v in every(4)]).softmax(dim=0)
        torch.testing.assert_close(m.visible(hidden[None])[0], shares @ every(4))
        return
    mean = m.visible(hidden[None])[0].detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(joint_energy(m, mean, hidden), mean)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=torch.float64))  # the mode of a Gaussian


def test_the_gradient_is_that_of_the_likelihood_where_fantasies_are_fair() -> None:
    """CD with fantasies from the model's own distribution, enumerated on a 4 x 3 machine."""
    m = machine()
    data = every(4)[[1, 6, 11, 14]]
    parameters = (m.weight, m.bias, m.visible_bias)
    log_z = torch.logsumexp(-m.free_energy(every(4)), dim=0)
    likelihood = (-m.free_energy(data) - log_z).mean()
    exact = torch.autograd.grad(-likelihood, parameters)
    with torch.no_grad():
        shares = (-m.free_energy(every(4))).softmax(dim=0)
    fair = m.free_energy(data).mean() - shares @ m.free_energy(every(4))
    for one, other in zip(torch.autograd.grad(fair, parameters), exact, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    with torch.no_grad():
        fantasy = m.gibbs(torch.rand(40_000, 4, dtype=torch.float64).round(), 60)
    found = torch.autograd.grad(contrastive_divergence(m, data, fantasy), parameters)
    for one, other in zip(found, exact, strict=True):
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        assert float(cosine) > 0.995


def test_sampling_reaches_the_distribution() -> None:
    m = machine()
    with torch.no_grad():
        shares = (-m.free_energy(every(4))).softmax(dim=0)
        torch.manual_seed(1)
        drawn = m.gibbs(torch.zeros(40_000, 4, dtype=torch.float64), 60)
    numbers = (drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    found = torch.bincount(numbers, minlength=16) / len(drawn)
    assert float((found - shares).abs().max()) < 0.015


def test_pseudo_likelihood_and_hidden_units_are_those_of_scikit_learn() -> None:
    m = machine(6, 3)
    visible = (torch.rand(20, 6, dtype=torch.float64) > 0.5).double()
    reference = BernoulliRBM(3, random_state=0).fit(visible.numpy())
    reference.components_ = m.weight.detach().numpy()
    reference.intercept_hidden_ = m.bias.detach().numpy()
    reference.intercept_visible_ = m.visible_bias.detach().numpy()
    torch.testing.assert_close(
        m.hidden(visible).detach(), torch.from_numpy(reference.transform(visible.numpy()))
    )
    torch.testing.assert_close(
        m.free_energy(visible).detach(), torch.from_numpy(reference._free_energy(visible.numpy()))
    )
    scores = reference.score_samples(visible.numpy()).mean()  # of bits it draws by itself
    with torch.no_grad():
        bits = [torch.full((20,), bit, dtype=torch.int64) for bit in range(6)]
        each = [float(pseudo_likelihood(m, visible, bit)) for bit in bits]
    low, high = min(each), max(each)
    assert low <= scores <= high


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli"])
def test_the_layers_of_the_mlp_are_the_hidden_units(visible: str) -> None:
    stack, images = make_stack(visible)
    machines = [stack.machine(number) for number in range(2)]
    hidden = machines[1].hidden(machines[0].hidden(stack.input(images)))
    with torch.no_grad():
        torch.testing.assert_close(stack.encoder(images), hidden)
    assert machines[0].std == (VISIBLE_STD if visible == "gaussian" else None)
    assert machines[1].std is None
    assert stack.reconstructed(images, 2).shape == images.shape


def make_stack(visible: str) -> tuple[Stack, Tensor]:
    design = ScratchDesign(2, 10, "logistic")
    backbone = create_backbone(
        "mlp", pretrained=False, image_size=16, structure=Structure(scratch=design)
    )
    options = Pretraining(method="rbm", visible=visible, batch_size=4)  # type: ignore[arg-type]
    stack = Stack(Encoder(backbone), options, seed=0)
    with torch.no_grad():
        for layer in stack.layers:
            layer.weight.normal_()
            layer.bias.normal_()
    return stack, torch.rand(4, 3, 16, 16)


def test_persistent_chains_go_on_where_they_were_but_not_while_measuring() -> None:
    stack, images = make_stack("bernoulli")
    options = Pretraining(method="rbm", visible="bernoulli", persistent=True, batch_size=4)
    method = rbm(stack.encoder, options, 0)
    learn, labels = method.phases[0].learn, torch.zeros(4, dtype=torch.int64)
    chain = method.networks.get_buffer("chain0")
    before = chain.clone()
    list(learn(Batch((images,), labels, 0.0, held_out=True)))
    assert torch.equal(chain, before)
    list(learn(Batch((images,), labels, 0.0)))
    assert not torch.equal(chain, before)


def test_the_machines_start_from_the_weights_of_the_mlp() -> None:
    stack, _ = make_stack("gaussian")  # its weights stand for those of a file
    before = {name: tensor.clone() for name, tensor in stack.encoder.state_dict().items()}
    rbm(stack.encoder, Pretraining(method="rbm"), 0)
    for name, tensor in stack.encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_free_energy_gap_is_that_of_the_machine_that_learns() -> None:
    stack, images = make_stack("gaussian")
    method = rbm(stack.encoder, Pretraining(method="rbm", batch_size=4), 0)
    aside = torch.rand(5, 3, 16, 16)
    assert method.figures is not None
    for number, phase in enumerate(method.phases):
        list(phase.learn(Batch((images,), torch.zeros(4, dtype=torch.int64), 0.0)))
        with torch.no_grad():
            seen = [stack.below(part, number) for part in (aside, images)]
            machine = method.networks.machine(number)  # type: ignore[operator]
            energies = [machine.free_energy(part).mean() for part in seen]
        found = method.figures(images, aside)["free_energy_gap"]
        assert found == pytest.approx(float(energies[0] - energies[1]), rel=1e-3)


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli"])
def test_biases_start_at_the_mean_picture(visible: str) -> None:
    stack, images = make_stack(visible)
    with torch.no_grad():
        for number, layer in enumerate(stack.layers):
            layer.bias.zero_()
            stack.centre_(number, images)
            machine = stack.machine(number)
            mean = stack.below(images, number).mean(dim=0)
            at_rest = machine.hidden(mean[None])
            torch.testing.assert_close(at_rest, torch.full_like(at_rest, 0.5))
            alone = machine.visible(torch.zeros(1, len(layer.bias)))[0]
            torch.testing.assert_close(
                alone, mean.clamp(0.01, 0.99) if machine.std is None else mean
            )
        before = stack.layers[0].bias.clone()
        stack.centre_(0, images / 2)
    assert torch.equal(stack.layers[0].bias, before)  # biases of a file are left alone


def test_a_phase_trains_one_layer_alone() -> None:
    stack, _ = make_stack("gaussian")
    method = rbm(stack.encoder, Pretraining(method="rbm"), 0)
    names = [phase.name for phase in method.phases]
    assert names == ["layer 1", "layer 2"]
    shapes = [[tuple(p.shape) for p in phase.players["network"]] for phase in method.phases]
    assert shapes == [[(10, 768), (10,), (768,)], [(10, 10), (10,), (10,)]]


def test_hidden_units_that_are_on_too_often_cost_their_squared_distance_to_the_target() -> None:
    stack, images = make_stack("gaussian")
    labels = torch.zeros(4, dtype=torch.int64)
    losses = []
    for sparsity, weight in ((None, 1.0), (0.05, 3.0)):
        options = Pretraining(method="rbm", sparsity=sparsity, sparsity_weight=weight, batch_size=4)
        method = rbm(stack.encoder, options, 0)
        torch.manual_seed(3)
        (move,) = method.phases[0].learn(Batch((images,), labels, 0.0))
        losses.append(move.loss.detach())
    with torch.no_grad():
        on = method.networks.machine(0).hidden(method.networks.input(images)).mean(dim=0)  # type: ignore[operator]
    torch.testing.assert_close(losses[1] - losses[0], 3.0 * (on - 0.05).square().sum())
    assert move.figures["active"] == pytest.approx(float(on.mean()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"activation": "relu"}, "logistic units"),
        ({"batchnorm": ("before",)}, "logistic units"),
        ({"batchnorm": ("first",)}, "--backbone-batchnorm first"),
        ({"name": "cnn", "activation": None, "depth": None, "width": None}, "--backbone mlp"),
    ],
)
def test_networks_that_are_no_machines_are_refused(
    change: dict[str, object], text: str, pretraining_config: Make, tmp_path: Path
) -> None:
    config = pretraining_config("mlp", method="rbm")
    wrong = replace(config, backbone=replace(config.backbone, **change))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--method rbm needs") as told:
        verb.pretrain(wrong, tmp_path / "run", lambda event: None)
    assert told.value.exit_code == 2
    assert text in f"{told.value} {told.value.remedy}"
    assert not (tmp_path / "run").exists()
