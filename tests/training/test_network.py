from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones.create import create_backbone
from transferkit.backbones.scratch import ScratchDesign
from transferkit.config import BackboneOptions, Config
from transferkit.errors import UserError
from transferkit.events import Notice
from transferkit.finetuning.preparation import prepare
from transferkit.recipes.reading import load_config
from transferkit.training.network import (
    head_design,
    make_structure,
    random_backbone,
    selu_notices,
)

MLP: dict[str, Any] = {
    **{"backbone.name": "mlp", "backbone.image_size": 16, "backbone.width": 8},
    **{"backbone.depth": 3, "augment.level": "none", "device.accelerator": "cpu"},
}
TIMM: dict[str, Any] = {
    **{"backbone.name": "test_efficientnet", "backbone.pretrained": False},
    **{"backbone.image_size": 32, "augment.level": "none", "device.accelerator": "cpu"},
}


def first_step(pictures: Path, options: dict[str, Any]) -> Tensor:
    """Logits and gradients of a step in training mode, the same pictures and seed each time."""
    session = prepare(load_config(None, (), {"data.path": pictures, **options}), lambda event: None)
    size = session.backbone.preprocessing
    images = torch.randint(
        *(0, 256, (6, 3, size.height_px, size.width_px)),
        generator=torch.Generator().manual_seed(1),
    )
    torch.manual_seed(0)
    classifier = session.classifier.train()
    logits = classifier(images)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    gradients = [p.grad.flatten() for p in classifier.parameters() if p.grad is not None]
    return torch.cat([logits.detach().flatten(), *gradients])


HIDDEN = {"head.layers": [8], "head.classifier_initializer": "glorot_normal"}
SCRATCH_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "depth": {"backbone.depth": 4},
    "width": {"backbone.width": 9},
    "activation": {"backbone.activation": "tanh"},
    "leaky": {"backbone.activation": "leaky_relu"},
    "slope": {"backbone.activation": "leaky_relu", "backbone.slope": 0.3},
    "initializer": {"backbone.initializer": "normal:0.5"},
    "another initializer": {"backbone.initializer": "he_uniform"},
    "another fan": {"backbone.initializer": "he_normal:avg"},
    "batch norm before": {"backbone.batchnorm": ["before"]},
    "batch norm after": {"backbone.batchnorm": ["after"]},
    "batch norm first": {"backbone.batchnorm": ["first"]},
    "dropout": {"backbone.dropout": 0.3},
    "alpha dropout": {"backbone.activation": "selu", "backbone.dropout": 0.3}
    | {"backbone.dropout_kind": "alpha"},
    "cnn": {"backbone.name": "cnn"},
    "spatial dropout": {"backbone.name": "cnn", "backbone.dropout": 0.3}
    | {"backbone.dropout_kind": "spatial"},
    "plain dropout of maps": {"backbone.name": "cnn", "backbone.dropout": 0.3},
}
HEAD_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"head.dropout": 0.5},
    "classifier": {"head.classifier_initializer": "glorot_normal"},
    "batch norm first": {"head.batchnorm": ["first"]}
    | {"head.classifier_initializer": "glorot_normal"},
    "head": HIDDEN,
    "activation": HIDDEN | {"head.activation": "selu"},
    "initializer": HIDDEN | {"head.initializer": "lecun_normal"},
    "prelu": HIDDEN | {"head.activation": "prelu"},
    "slope": HIDDEN | {"head.activation": "prelu", "head.slope": 0.1},
    "batch norm before": HIDDEN | {"head.batchnorm": ["before"]},
    "batch norm after": HIDDEN | {"head.batchnorm": ["after"]},
    "dropout by layer": HIDDEN | {"head.dropout": [0.0, 0.4]},
    "alpha": HIDDEN | {"head.activation": "selu", "head.dropout_kind": "alpha"},
}


@pytest.mark.parametrize(
    ("base", "variants"),
    [(MLP, SCRATCH_VARIANTS), (TIMM, HEAD_VARIANTS)],
    ids=["from scratch", "new layers"],
)
def test_each_option_changes_a_run(
    base: dict[str, Any], variants: dict[str, dict[str, Any]], pictures: Path
) -> None:
    found = {name: first_step(pictures, base | more) for name, more in variants.items()}
    assert torch.equal(found["plain"], first_step(pictures, base))  # the seed decides the rest
    alike = [
        (one, other)
        for one in found
        for other in found
        if one < other and torch.equal(found[one], found[other])
    ]
    assert alike == []


def test_a_network_from_scratch_has_its_options() -> None:
    config = load_config(
        None,
        (),
        MLP | {"backbone.activation": "selu", "backbone.initializer": "normal:1.0"},
    )
    design = ScratchDesign(3, 8, "selu", initializer="normal:1.0")
    assert make_structure(config.backbone).scratch == design
    assert head_design(config).classifier_initializer == "glorot_normal"
    assert head_design(load_config()).classifier_initializer == "zeros"
    assert make_structure(load_config().backbone).scratch is None


def notices(pictures: Path, options: dict[str, Any]) -> list[Notice]:
    seen: list[Any] = []
    prepare(load_config(None, (), {"data.path": pictures, **options}), seen.append)
    return [event for event in seen if isinstance(event, Notice)]


def test_pairings_are_told_and_bad_ones_warned_of(pictures: Path) -> None:
    good = notices(pictures, MLP | {"backbone.activation": "selu", **HIDDEN})
    assert Notice("mlp: selu layers start with lecun_normal") in good
    assert Notice("new layers: relu layers start with he_normal") in good
    bad = notices(
        pictures,
        MLP
        | {"backbone.activation": "logistic"}
        | {"backbone.depth": 20}
        | {"backbone.initializer": "normal:1.0"},
    )
    (warning,) = [notice for notice in bad if notice.warning]
    assert "its variance is 8 times" in warning.text
    assert "glorot_normal goes with logistic" in warning.text


def test_a_random_network_learns_at_one_rate(pictures: Path) -> None:
    config = load_config(None, (), {"data.path": pictures, **MLP, "stages": "all:2"})
    (stage,) = prepare(config, lambda event: None).plan.stages
    assert set(stage.multipliers) == {1.0}
    config = load_config(
        None, (), {"data.path": pictures, **MLP, "stages": "all:2", "training.block_decay": 0.5}
    )
    (stage,) = prepare(config, lambda event: None).plan.stages
    assert stage.multipliers == (0.125, 0.25, 0.5, 1.0)


def test_an_unknown_backbone_names_those_from_scratch(pictures: Path) -> None:
    with pytest.raises(UserError, match="unknown backbone 'mpl'") as refused:
        notices(pictures, {"backbone.name": "mpl"})
    assert "mlp and cnn" in refused.value.remedy


def test_a_drop_path_that_nothing_calls_is_refused() -> None:
    def backbone(name: str, rate: float) -> Config:
        return Config(backbone=BackboneOptions(name, image_size=32, drop_path=rate))

    for name in ("lcnet_050", "test_efficientnet"):  # they have the layers, and no shortcuts
        with pytest.raises(UserError, match=f"--drop-path has no effect: {name}") as caught:
            random_backbone(backbone(name, 0.2))
        assert caught.value.exit_code == 2
        random_backbone(backbone(name, 0.0))
    random_backbone(backbone("test_resnet", 0.2))


SELU = {"backbone.name": "mlp", "backbone.activation": "selu"}
ALPHA = {"backbone.dropout": 0.1, "backbone.dropout_kind": "alpha", "head.dropout_kind": "alpha"}
SELU_HEAD = {"head.layers": [8], "head.activation": "selu"}


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        (SELU, []),
        (SELU | ALPHA, []),  # also before the classifier, of a head without hidden layers
        (SELU | {"backbone.batchnorm": ["first"]}, []),  # which standardises
        (SELU | {"backbone.batchnorm": ["before"]}, ["mlp: batch norm"]),
        (SELU | {"backbone.dropout": 0.1}, ["mlp: plain dropout"]),
        (SELU | {"backbone.skip": True}, ["mlp: skip connections"]),
        (SELU_HEAD, ["new layers: plain dropout"]),
        (SELU_HEAD | {"head.dropout": 0.0}, []),
        (SELU_HEAD | {"head.dropout_kind": "alpha", "head.batchnorm": ["after"]},
         ["new layers: batch norm"]),
    ],
)  # fmt: skip
def test_selu_warns_of_what_it_cannot_live_with(given: dict[str, Any], reasons: list[str]) -> None:
    found = list(selu_notices(load_config(None, (), given)))
    assert all(notice.warning for notice in found)
    assert len(found) == len(reasons)
    for notice, reason in zip(found, reasons, strict=True):
        where, what = reason.split(": ")
        assert notice.text.startswith(f"{where}: SELU")
        assert f"ends with {what}" in notice.text


def test_replaced_activations_take_a_slope() -> None:
    given = {"backbone.replace_activations": "leaky_relu", "backbone.slope": 0.2}
    structure = make_structure(load_config(None, (), given).backbone)
    assert (structure.replace_activations, structure.slope) == ("leaky_relu", 0.2)
    backbone = create_backbone("test_resnet", pretrained=False, structure=structure)
    slopes = [m.negative_slope for m in backbone.model.modules() if isinstance(m, nn.LeakyReLU)]
    assert set(slopes) == {0.2}
    with pytest.raises(UserError, match=r"backbone\.slope belongs to"):
        load_config(None, (), given | {"backbone.replace_activations": "tanh"})
