"""What is read of several depths, and that ONNX Runtime reads the same."""

from collections.abc import Callable
from typing import Any

import pytest

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from torch import Tensor, nn

from transferkit.backbones.block_groups import BlockGroup
from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import create_scratch
from transferkit.backbones.engine import Engine
from transferkit.backbones.structure import Structure
from transferkit.closed_form import depths as depths_module
from transferkit.closed_form.depths import (
    Depth,
    DepthTrunk,
    find_depths,
    make_depth_engine,
    num_columns,
    read_depths,
    top_depths,
)

CPU = torch.device("cpu")

# model -> picture size, kind of every depth from the stem to the output, number of columns
MODELS: dict[str, tuple[int, list[str], list[int]]] = {
    "test_efficientnet": (32, [*["maps"] * 6, "vector"], [48, 32, 48, 64, 96, 128, 256]),
    "resnet18": (32, [*["maps"] * 5, "vector"], [128, 128, 256, 512, 1024, 512]),
    "swin_tiny_patch4_window7_224": (
        32,
        [*["maps, channels last"] * 5, "vector"],
        [192, 192, 384, 768, 1536, 768],
    ),
    "test_vit": (160, ["maps, channels last", *["tokens"] * 6, "vector"], [128, *[192] * 6, 64]),
}


def build(name: str, size: int) -> nn.Module:
    fixed = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    return timm.create_model(name, num_classes=0, **fixed).eval()


def pictures(size: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(2))


def depths_of(model: nn.Module, images: Tensor) -> tuple[Depth, ...]:
    return find_depths(model, find_chain(model, images).groups, images)


@pytest.mark.parametrize("name", MODELS)
def test_every_block_group_and_the_output(name: str) -> None:
    size, kinds, columns = MODELS[name]
    model, images = build(name, size), pictures(size)
    model.train()
    found = depths_of(model, images)
    assert model.training
    assert [depth.kind for depth in found] == kinds
    assert [depth.columns for depth in found] == columns
    model.eval()
    with torch.no_grad():
        features = read_depths(model, found, images)
        assert torch.equal(features[:, -columns[-1] :], model(images))
    assert features.shape == (2, num_columns(found))
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "test_vit"])
def test_mean_and_deviation_over_positions_and_the_class_token(name: str) -> None:
    size = MODELS[name][0]
    model, images = build(name, size), pictures(size)
    depth = depths_of(model, images)[-2]
    kept: list[Tensor] = []
    model.get_submodule(depth.module).register_forward_hook(lambda *_: kept.append(_[2]))
    with torch.no_grad():
        found = read_depths(model, [depth], images)
    activation = kept[0].flatten(2).mT if depth.kind == "maps" else kept[0]
    if depth.kind == "maps, channels last":
        activation = activation.flatten(1, 2)
    patches = activation[:, 1:] if name == "test_vit" else activation
    expected = [patches.mean(1), patches.std(1, unbiased=False)]
    expected += [activation[:, 0]] if name == "test_vit" else []
    assert torch.allclose(found, torch.cat(expected, 1), atol=2e-6)


def test_the_order_is_that_of_the_depths() -> None:
    model, images = build("resnet18", 32), pictures(32)
    found = depths_of(model, images)
    two = (found[3], found[1])
    with torch.no_grad():
        whole = read_depths(model, found, images).split([d.columns for d in found], 1)
        assert torch.equal(read_depths(model, two, images), torch.cat([whole[3], whole[1]], 1))
    assert top_depths(found, 2) == found[-2:]
    assert top_depths(found, 0) == found[-1:]
    assert top_depths(found, 99) == found


class Plain(nn.Module):
    """Blocks that give no tensors by position."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_without_usable_blocks_the_output_remains() -> None:
    found = find_depths(Plain(), [BlockGroup("block", ("block",))], pictures(8))
    assert found == (Depth("features", "", "vector", 0, 3),)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_networks_from_scratch(name: str) -> None:
    backbone = create_scratch(name, Structure(), 32, None, 0)
    images = pictures(32)
    found = depths_of(backbone.model, images)
    kinds = {depth.kind for depth in found[:-1]}
    assert kinds == {"vector" if name == "mlp" else "maps"}
    assert len(found) > 2
    with torch.no_grad():
        features = read_depths(backbone.model, found, images)
    assert features.shape == (2, num_columns(found))


def test_a_layer_that_works_in_place_after_a_depth_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten())
    depth = Depth("conv", "0", "maps", 0, 8)
    images = pictures(4)
    with torch.no_grad():
        expected = model[0](images).mean((2, 3))
        assert torch.allclose(read_depths(model, [depth], images)[:, :4], expected, atol=1e-6)


def test_gradients_through_a_constant_map_are_numbers() -> None:
    images = torch.ones(1, 3, 4, 4, requires_grad=True)
    depth = Depth("x", "0", "maps", 0, 6)
    read_depths(nn.Sequential(nn.Identity(), nn.Flatten()), [depth], images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_mirrored() -> None:
    model, images = build("resnet18", 32), pictures(32)
    found = depths_of(model, images)
    with torch.no_grad():
        mirrored = DepthTrunk(model, found, mirror=True)(images)
        both = [read_depths(model, found, i) for i in (images, images.flip(3))]
    assert torch.allclose(mirrored, (both[0] + both[1]) / 2)
    assert not torch.allclose(mirrored, both[0], atol=1e-3)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_onnx_reads_the_same(name: str) -> None:
    size = MODELS[name][0]
    model, images = build(name, size), pictures(size, 3)
    found = depths_of(model, images)
    engine = make_depth_engine(DepthTrunk(model, found), found, images[:2], "onnx", CPU)
    assert (engine.name, engine.notice) == ("onnx", "")
    with torch.no_grad():
        expected = read_depths(model, found, images)
    parts = zip(
        *(f.split([d.columns for d in found], 1) for f in (engine.run(images), expected)),
        strict=True,
    )
    for ours, theirs in parts:
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_onnx_that_is_wrong_at_one_small_depth_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = build("resnet18", 32), pictures(32)
    found = depths_of(model, images)
    usual: Callable[..., Engine] = depths_module.make_engine

    def spoiled(*arguments: Any) -> Engine:
        engine = usual(*arguments)

        def run(inputs: Tensor) -> Tensor:
            features = engine.run(inputs).clone()
            features[:, -512:] *= 1.01
            return features

        return Engine("onnx", run)

    monkeypatch.setattr(depths_module, "make_engine", spoiled)
    engine = make_depth_engine(DepthTrunk(model, found), found, images, "onnx", CPU)
    assert engine.name == "torch"
    assert "at features; torch runs the network" in engine.notice
    with torch.no_grad():
        expected = read_depths(model, found, images)
    assert torch.allclose(engine.run(images), expected, atol=1e-4)


def test_a_depth_is_kept_as_plain_values() -> None:
    depth = Depth("blocks.3", "blocks.3", "tokens", 1, 192)
    assert Depth(**depth.to_dict()) == depth
