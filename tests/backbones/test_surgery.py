import json

import pytest
import torch

from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import Backbone, create_backbone
from transferkit.backbones.structure import Structure
from transferkit.errors import UserError

TINY, SIZE = "test_efficientnet", 64


def build(name: str = TINY, size: int = SIZE, **changes: object) -> Backbone:
    structure = Structure(**changes)  # type: ignore[arg-type]
    return create_backbone(name, pretrained=False, image_size=size, structure=structure)


def images(size: int = SIZE) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", "catavgmax"])
@torch.no_grad()
def test_pooling_equals_what_it_says_of_the_last_maps(pooling: str) -> None:
    backbone = build(pooling=pooling)
    maps = backbone.model.forward_features(images())  # type: ignore[operator]
    mean, top = maps.mean((2, 3)), maps.amax((2, 3))
    both = {"avg": mean, "max": top, "avgmax": (mean + top) / 2}
    expected = both.get(pooling, torch.cat([mean, top], dim=1))
    torch.testing.assert_close(backbone.model(images()), expected)
    assert backbone.num_features == expected.shape[1]


@pytest.mark.parametrize("name", [TINY, "test_vit", "test_convnext"])
@torch.no_grad()
def test_the_rest_below_dropped_blocks_is_as_it_was(name: str) -> None:
    size = 160 if name == "test_vit" else SIZE
    whole = build(name, size)
    chain = find_chain(whole.model, images(size))
    count = 1
    rest = build(name, size, drop_top_blocks=count)
    again = find_chain(rest.model, images(size))
    assert again.verified, again.reason
    assert [g.name for g in again.groups] == [g.name for g in chain.groups[:-count]]
    kept = rest.model.state_dict()
    assert set(kept) < set(whole.model.state_dict())
    assert all(torch.equal(kept[n], whole.model.state_dict()[n]) for n in kept)
    boundary = len(chain.groups) - count
    below = chain.trunk(boundary)(images(size))  # what the dropped blocks were given
    features = rest.model(images(size))
    assert features.shape == (2, rest.num_features)
    if name == TINY:
        torch.testing.assert_close(features, below.mean((2, 3)))


def test_activations_are_replaced_and_gates_are_not() -> None:
    plain, changed = (
        build("mobilenetv3_small_100"),
        build("mobilenetv3_small_100", replace_activations="leaky_relu"),
    )
    kinds = [{type(m).__name__ for m in b.model.modules()} for b in (plain, changed)]
    assert {"Hardswish", "ReLU", "Hardsigmoid"} <= kinds[0]
    assert not {"Hardswish", "ReLU"} & kinds[1]
    assert {"LeakyReLU", "Hardsigmoid"} <= kinds[1]
    assert "leaky_relu in place of" in changed.notices[0]


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        (TINY, {"drop_top_blocks": 99}, "--drop-top-blocks 99: test_efficientnet has"),
        (TINY, {"pooling": "token"}, "--pooling token: test_efficientnet cannot"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    name: str, changes: dict[str, object], what: str
) -> None:
    with pytest.raises(UserError, match=what) as refused:
        build(name, **changes)
    assert refused.value.exit_code == 2


def test_changes_survive_being_written() -> None:
    structure = Structure(None, "max", 2, "selu")
    assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure
