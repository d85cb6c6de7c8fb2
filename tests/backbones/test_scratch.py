import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import create_backbone
from transferkit.backbones.scratch import DEFAULTS, ScratchDesign, make_scratch, scratch_misfit
from transferkit.backbones.structure import Structure
from transferkit.data.preprocessing import Preprocessing

SMALL = {"mlp": ScratchDesign(4, 16), "cnn": ScratchDesign(5, 4)}


def images(side: int = 16, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL)
def test_interface_of_a_backbone(name: str) -> None:
    backbone = create_backbone(name, image_size=16, structure=Structure(SMALL[name]))
    features = backbone.model(images())
    assert features.shape == (3, backbone.num_features)
    maps = backbone.model.forward_features(images())
    assert torch.equal(backbone.model.forward_head(maps), features)
    assert backbone.weights_source == "random (seed 0)"
    assert (backbone.preprocessing.width_px, backbone.preprocessing.crop_pct) == (16, 1.0)
    assert Preprocessing.from_dict(backbone.preprocessing.to_dict()) == backbone.preprocessing


def test_an_mlp_is_what_its_layers_compute() -> None:
    model = make_scratch("mlp", SMALL["mlp"], 16, seed=0)
    x = images().flatten(1)
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        x = (x @ layer.weight.T + layer.bias).clamp_min(0)
    torch.testing.assert_close(model(images()), x)


@pytest.mark.parametrize(
    ("depth", "side", "widths", "map_px"),
    [
        (1, 16, [4], 8),
        (4, 64, [4, 8, 16, 32], 4),
        (5, 64, [4, 4, 8, 16, 32], 4),
        (8, 64, [4, 4, 8, 8, 16, 16, 32, 32], 4),
        (4, 16, [4, 4, 8, 16], 2),
    ],
)
def test_channels_double_where_maps_are_halved(
    depth: int, side: int, widths: list[int], map_px: int
) -> None:
    model = make_scratch("cnn", ScratchDesign(depth, 4), side, seed=0)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == widths
    assert map_px * 2 ** sum(c.stride == (2, 2) for c in convolutions) == side
    maps = model.forward_features(images(side))
    assert maps.shape == (3, widths[-1], map_px, map_px)
    torch.testing.assert_close(model(images(side)), maps.mean((2, 3)))


@pytest.mark.parametrize("depth", [1, 2, 3, 20])
@pytest.mark.parametrize("name", SMALL)
def test_every_layer_is_a_block_group_that_can_be_cut(name: str, depth: int) -> None:
    model = make_scratch(name, replace(SMALL[name], depth=depth), 32, seed=0).eval()
    chain = find_chain(model, images(32))
    if depth > 1:
        assert chain.verified, chain.reason
        assert [g.name for g in chain.groups] == ["stem", *(f"blocks.{i}" for i in range(1, depth))]
    for boundary in range(1, len(chain.groups) + 1) if depth > 1 else ():
        below = chain.trunk(boundary)(images(32))
        torch.testing.assert_close(
            chain.section(boundary, len(chain.groups))(below), model(images(32))
        )


@pytest.mark.parametrize(("activation", "scale"), [("relu", 2), ("selu", 1), ("tanh", 1)])
def test_layers_start_as_suits_their_activation(activation: str, scale: float) -> None:
    model = make_scratch("mlp", ScratchDesign(2, 500, activation), 16, seed=0)
    weight = model.blocks[1].linear.weight
    assert weight.var().item() == pytest.approx(scale / 500, rel=0.02)
    assert torch.equal(model.blocks[1].linear.bias, torch.zeros(500))
    assert scratch_misfit(model, ScratchDesign(2, 500, activation)) == ""
    assert scratch_misfit(model, ScratchDesign(2, 500, activation, initializer="normal:1")) != ""


def test_another_initialiser_is_taken_and_the_seed_decides() -> None:
    design = ScratchDesign(3, 300, initializer="normal:1.0")
    first, same, other = (make_scratch("mlp", design, 16, seed) for seed in (0, 0, 1))
    weights = [model.blocks[1].linear.weight for model in (first, same, other)]
    assert weights[0].std().item() == pytest.approx(1.0, rel=0.02)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def kinds(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_children()]


@pytest.mark.parametrize("name", SMALL)
def test_batch_norm_and_dropout_are_where_they_are_wanted(name: str) -> None:
    design = replace(SMALL[name], batchnorm=("first", "before"), dropout=0.5)
    model = make_scratch(name, design, 16, seed=0)
    assert kinds(model.blocks[0]) == ["linear", "norm", "act", "drop"]
    assert model.blocks[0].linear.bias is None
    assert isinstance(model.input_norm, nn.BatchNorm2d)
    after = make_scratch(name, replace(SMALL[name], batchnorm=("after",)), 16, seed=0)
    assert kinds(after.blocks[0]) == ["linear", "act", "norm"]
    assert isinstance(after.input_norm, nn.Identity)


def test_spatial_dropout_drops_whole_maps() -> None:
    design = ScratchDesign(1, 64, "identity", dropout=0.5, dropout_kind="spatial")
    maps = make_scratch("cnn", design, 16, seed=0).train().forward_features(images())
    dropped = (maps == 0).flatten(2).all(dim=2)
    assert torch.equal(dropped, (maps == 0).flatten(2).any(dim=2))
    assert 0.35 < dropped.float().mean().item() < 0.65


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    design = ScratchDesign(20, 300, "selu", dropout=0.05, dropout_kind="alpha")
    model = make_scratch("mlp", design, 16, seed=0).train()
    features = model(torch.randn(500, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert abs(features.mean().item()) <= 0.1
    assert abs(features.var().item() - 1) <= 0.15


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_structure_survives_being_written(name: str) -> None:
    structure = Structure(replace(DEFAULTS[name], batchnorm=("first",), slope=0.1))
    assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure
    assert Structure.from_dict(json.loads(json.dumps(Structure().to_dict()))) == Structure()


def test_skip_connections_add_what_comes_in() -> None:
    design = replace(SMALL["mlp"], skip=True)
    model = make_scratch("mlp", design, 16, seed=0)
    x = (images().flatten(1) @ model.blocks[0].linear.weight.T).clamp_min(0)
    for block in model.blocks[1:]:
        x = x + (x @ block.linear.weight.T).clamp_min(0)
    torch.testing.assert_close(model(images()), x)
    plain = make_scratch("mlp", SMALL["mlp"], 16, seed=0)
    shares = [plain.blocks[i].linear.weight / model.blocks[i].linear.weight for i in range(4)]
    assert torch.equal(shares[0], torch.ones_like(shares[0]))  # no connection beside the first
    for share in shares[1:]:
        torch.testing.assert_close(share, torch.full_like(share, 3**0.5))


def test_skip_connections_take_every_second_pixel_and_pad_channels() -> None:
    model = make_scratch("cnn", ScratchDesign(6, 4, skip=True), 50, seed=0)
    x = model.blocks[0](images(50))
    for block, halves in zip(model.blocks[1:], (1, 1, 0, 1, 1), strict=True):
        above = nn.Sequential(*block.children())(x)
        assert (above.shape[-1] == x.shape[-1]) != halves
        expected = above.clone()
        expected[:, : x.shape[1]] += x[..., ::2, ::2] if halves else x
        x = block(x)
        torch.testing.assert_close(x, expected)
    assert model(images(50)).shape == (3, model.num_features)


@pytest.mark.parametrize("activation", ["logistic", "relu"])
def test_skip_connections_keep_the_gradient_through_fifty_layers(activation: str) -> None:
    def share(skip: bool) -> float:
        model = make_scratch("mlp", ScratchDesign(50, 64, activation, skip=skip), 16, seed=0)
        (
            model(images()) * torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
        ).sum().backward()
        norms = [model.blocks[i].linear.weight.grad.norm().item() for i in (1, 49)]
        return norms[0] / norms[1]

    assert 0.02 < share(True) < 3
    if activation == "logistic":
        assert share(False) < 1e-20


@pytest.mark.parametrize("name", SMALL)
def test_a_network_with_skip_connections_is_cut_and_rebuilt(name: str) -> None:
    structure = Structure(replace(SMALL[name], skip=True))
    model = make_scratch(name, structure.scratch, 16, seed=0).eval()
    chain = find_chain(model, images())
    assert chain.verified, chain.reason
    assert len(chain.groups) == structure.scratch.depth
    assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure
    older = structure.to_dict()
    del older["scratch"]["skip"]  # a run folder of an earlier release
    assert not Structure.from_dict(older).scratch.skip
