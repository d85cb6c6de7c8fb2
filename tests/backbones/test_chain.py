import re
from collections import Counter

import pytest

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from torch import Tensor, nn

from transferkit.backbones.block_groups import lies_in
from transferkit.backbones.chain import Chain, find_chain, share
from transferkit.backbones.engine import onnx_runner

EFFICIENTNET = ["stem", *(f"blocks.{i}" for i in range(7))]
VIT = ["stem", *(f"blocks.{i}" for i in range(12))]
FAMILIES = {
    "tf_efficientnet_lite0": (64, EFFICIENTNET),
    "mobilenetv3_small_100": (64, EFFICIENTNET[:-1]),
    "resnet18": (64, ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "convnext_atto": (64, ["stem", *(f"stages.{i}" for i in range(4))]),
    "vit_tiny_patch16_224": (32, VIT),
    "swin_tiny_patch4_window7_224": (32, ["stem", *(f"layers.{i}" for i in range(4))]),
    "regnetx_002": (64, ["stem", "s1", "s2", "s3", "s4"]),
    "densenet121": (64, ["stem", *(f"features.denseblock{i}" for i in range(1, 5))]),
    "test_convnext": (64, ["stem", *(f"stages.{i}" for i in range(4))]),
}


def scramble(model: nn.Module) -> nn.Module:
    """Give every scale, shift and statistic a random value, so that no block is near nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def build(name: str, size: int) -> nn.Module:
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0, **({"img_size": size} if fixed else {}))
    return scramble(model).eval()


def pictures(size: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(2))


def owners(chain: Chain, name: str) -> list[int]:
    """The groups that a tensor's name belongs to by its longest listed prefix."""
    listed = [
        (len(p), i) for i, g in enumerate(chain.groups) for p in g.modules if lies_in(name, p)
    ]
    longest = max((length for length, _ in listed), default=0)
    return [i for length, i in listed if length == longest] or [0]


@pytest.fixture(scope="module", params=FAMILIES)
def found(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor, Chain]:
    size, _ = FAMILIES[request.param]
    model, images = build(request.param, size), pictures(size)
    return request.param, model, images, find_chain(model, images)


class TestFamilies:
    def test_groups(self, found: tuple[str, nn.Module, Tensor, Chain]) -> None:
        name, _, _, chain = found
        assert (chain.verified, chain.reason) == (True, "")
        assert [group.name for group in chain.groups] == FAMILIES[name][1]
        assert chain.max_difference <= 1e-4

    def test_every_tensor_in_one_group(self, found: tuple[str, nn.Module, Tensor, Chain]) -> None:
        _, model, _, chain = found
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        groups = {name: owners(chain, name) for name in tensors}
        assert all(len(indices) == 1 for indices in groups.values())
        filled = Counter(indices[0] for name, indices in groups.items())
        assert sorted(filled) == list(range(len(chain.groups)))

    def test_trunk_is_what_the_model_computes(
        self, found: tuple[str, nn.Module, Tensor, Chain]
    ) -> None:
        """The trunk's result is what the first module above the boundary is given in the model."""
        _, model, images, chain = found
        for boundary in range(1, len(chain.groups)):
            seen: list[Tensor] = []
            module = model.get_submodule(chain._calls[boundary][0])
            handle = module.register_forward_pre_hook(lambda _, x, to=seen: to.append(x[0].clone()))
            with torch.no_grad():
                model(images)
                activation = chain.trunk(boundary)(images)
            handle.remove()
            torch.testing.assert_close(activation, seen[0])

    def test_sections_compose(self, found: tuple[str, nn.Module, Tensor, Chain]) -> None:
        _, model, images, chain = found
        top = len(chain.groups)
        with torch.no_grad():
            whole = model(images)
            activation = chain.trunk(1)(images)
            for boundary in range(1, top):
                torch.testing.assert_close(chain.section(boundary, top)(activation), whole)
                activation = chain.section(boundary, boundary + 1)(activation)
            torch.testing.assert_close(activation, whole)
            torch.testing.assert_close(chain.trunk(top)(images), whole)
            torch.testing.assert_close(chain.section(top, top)(whole), whole)

    def test_trunk_and_section_divide_the_parameters(
        self, found: tuple[str, nn.Module, Tensor, Chain]
    ) -> None:
        """Each has the model's own tensors, those of its side of the boundary and no others."""
        _, model, _, chain = found
        for boundary in range(1, len(chain.groups)):
            below = {id(p) for n, p in model.named_parameters() if owners(chain, n)[0] < boundary}
            above = {id(p) for p in model.parameters()} - below
            section = chain.section(boundary, len(chain.groups))
            assert {id(p) for p in chain.trunk(boundary).parameters()} == below
            assert {id(p) for p in section.parameters()} == above


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Tensor, Chain]:
    model, images = build("resnet18", 64), pictures(64)
    return model, images, find_chain(model, images)


def test_trunk_follows_the_model(resnet: tuple[nn.Module, Tensor, Chain]) -> None:
    """A section that trains changes the model; a trunk made before sees it, statistics included."""
    _, images, _ = resnet
    model = build("resnet18", 64)
    chain = find_chain(model, images)
    trunk, low, section = chain.trunk(5), chain.trunk(3)(images).detach(), chain.section(3, 5)
    before = trunk(images).detach()
    optimizer = torch.optim.SGD(section.parameters(), lr=0.1)
    section.train()(low).square().mean().backward()
    optimizer.step()
    section.eval()
    torch.testing.assert_close(trunk(images), model(images))
    assert not torch.allclose(trunk(images), before, rtol=1e-3)
    torch.testing.assert_close(chain.trunk(3)(images), low)


def test_model_is_left_as_it_was(resnet: tuple[nn.Module, Tensor, Chain]) -> None:
    model = build("resnet18", 64).train()
    model.layer1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chain = find_chain(model, pictures(64))
    assert chain.verified
    chain.trunk(2)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module.training for module in chain.trunk(2).modules())


def test_boundaries_outside_are_refused(resnet: tuple[nn.Module, Tensor, Chain]) -> None:
    *_, chain = resnet
    for call in (lambda: chain.trunk(0), lambda: chain.trunk(6), lambda: chain.section(0, 5)):
        with pytest.raises(ValueError, match="boundary"):
            call()
    with pytest.raises(ValueError, match=r"boundary 2 is not in 3\.\.5"):
        chain.section(3, 2)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"])
def test_trunk_exports_with_any_batch_size(name: str) -> None:
    size = FAMILIES[name][0]
    chain = find_chain(build(name, size), pictures(size))
    for boundary in (len(chain.groups) // 2, len(chain.groups)):
        trunk = chain.trunk(boundary)
        run = onnx_runner(trunk, pictures(size, number=2))
        images = pictures(size, number=5)
        with torch.no_grad():
            expected = trunk(images)
        got = run(images)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "size"), [("hrnet_w18_small", 64), ("eva02_tiny_patch14_224", 28)]
)
def test_models_whose_blocks_take_more_are_refused(name: str, size: int) -> None:
    model, images = build(name, size), pictures(size)
    chain = find_chain(model, images)
    assert not chain.verified
    assert "not a chain" in chain.reason
    assert len(chain.groups) >= 3
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    assert all(len(owners(chain, n)) == 1 for n in names)
    filled = {owners(chain, n)[0] for n, _ in model.named_parameters()}
    assert filled == set(range(len(chain.groups)))
    with torch.no_grad():
        torch.testing.assert_close(chain.trunk(len(chain.groups))(images), model(images))
    with pytest.raises(ValueError, match="not a chain"):
        chain.trunk(1)
    with pytest.raises(ValueError, match="not a chain"):
        chain.section(1, len(chain.groups))


class Toy(nn.Module):
    """Three blocks and a pooling head, in timm's manner; the subclasses spoil it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(*(self.block() for _ in range(3)))
        self.head = nn.Linear(4, 5)

    def block(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward_features(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class LongSkip(Toy):
    def forward_features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return x + self.blocks(x)


class Repeats(Toy):
    def forward_features(self, images: Tensor) -> Tensor:
        return self.blocks(self.blocks(self.stem(images)))


class Shares(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2][0].weight = self.blocks[0][0].weight


class Remembers(Toy):
    """The last block reads what the stem left behind: the trace shows a chain, numbers do not."""

    class Block(nn.Module):
        def __init__(self, memory: list[Tensor]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 1, 1))
            self.memory = memory

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + self.memory[0]

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[Tensor] = []
        self.blocks.append(self.Block(self.memory))

    def forward_features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        self.memory[:] = [x]
        return self.blocks(x)


class Flat(Toy):
    """Layers side by side in one Sequential, as in VGG: those without parameters stand alone."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*layers, nn.Conv2d(4, 4, 1), nn.ReLU())
        self.stem = nn.Identity()


class Explodes(Toy):
    def forward_features(self, images: Tensor) -> Tensor:
        return super().forward_features(images) * float("inf")


class Fails(Toy):
    def forward_features(self, images: Tensor) -> Tensor:
        raise RuntimeError("only for square pictures")


class Writes(Toy):
    """Every block begins in place: a cached activation would be overwritten by its first use."""

    def block(self) -> nn.Module:
        return nn.Sequential(nn.ELU(inplace=True), nn.Conv2d(4, 4, 1))


class Wrapped(nn.Module):
    """A model inside one module: nothing to cut until that is looked into."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = Toy().stem, Toy().blocks

        def forward(self, images: Tensor) -> Tensor:
            return self.blocks(self.stem(images))

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Body()

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def toy_chain(kind: type[nn.Module]) -> tuple[nn.Module, Chain]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind()
    return model, find_chain(model, pictures(4))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (LongSkip, "not a chain"),
        (Repeats, "not a chain"),
        (Shares, r"parameter blocks\.2\.0\.weight is shared"),
        (Remembers, r"cut before blocks\.\d its features differ by"),
        (Explodes, "not a chain"),
        (Fails, "RuntimeError: only for square pictures"),
        (Writes, r"from blocks\.0 change their input in place"),
    ],
)
def test_spoiled_chains_are_refused(kind: type[nn.Module], reason: str) -> None:
    model, chain = toy_chain(kind)
    assert not chain.verified
    assert re.search(reason, chain.reason), chain.reason
    if kind is not Fails:
        features = chain.trunk(len(chain.groups))(pictures(4))
        torch.testing.assert_close(features, model(pictures(4)), equal_nan=True)


@pytest.mark.parametrize("kind", [Toy, Wrapped])
def test_toy_chain(kind: type[nn.Module]) -> None:
    _, chain = toy_chain(kind)
    prefix = "" if kind is Toy else "body."
    assert chain.verified, chain.reason
    assert [g.name for g in chain.groups] == ["stem", *(f"{prefix}blocks.{i}" for i in range(3))]
    assert chain.groups[0].modules == (f"{prefix}stem",)


def test_share_drops_what_attention_cached() -> None:
    """LeViT keeps attention biases computed in evaluation until train() is called."""
    model, images = build("levit_128s", 64), pictures(64)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        model(images)
        for parameter in (p for n, p in model.named_parameters() if "attention_biases" in n):
            parameter.add_(torch.rand(parameter.shape, generator=generator))
        fresh = timm.create_model("levit_128s", num_classes=0, img_size=64).eval()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(share(model)(images), fresh(images))
        assert not torch.allclose(model(images), fresh(images), rtol=1e-3)


def test_layers_without_parameters_join_the_group_below() -> None:
    """The first layer is the stem: below it there would be only the pictures."""
    _, chain = toy_chain(Flat)
    assert chain.verified, chain.reason
    assert [group.name for group in chain.groups] == ["stem", "blocks.2", "blocks.5"]
    assert chain.groups[0].modules == ("blocks.0",)
    assert chain.trunk(1)(pictures(4)).min() == 0  # the ReLU is below the boundary
    assert chain.trunk(2)(pictures(4)).shape == (2, 4, 2, 2)  # and so is the pooling
