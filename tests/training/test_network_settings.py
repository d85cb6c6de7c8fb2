"""Every way to configure the network changes a run."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import pytest

from transferkit.backbones.layers import ACTIVATIONS
from transferkit.config.network import Activation

MLP = {
    "backbone.name": "mlp",
    "backbone.image_size": 16,
    "backbone.depth": 3,
    "backbone.width": 8,
    "stages": "all:2@1e-2",
}
CNN = MLP | {"backbone.name": "cnn", "backbone.width": 4}
NEW = {"head.layers": [8], "head.dropout": [0.2]}
SELU_NEW = NEW | {"head.activation": "selu"}
STARTS = (
    *("glorot_normal", "glorot_uniform", "he_uniform", "he_normal:out", "lecun_normal"),
    *("lecun_uniform:avg", "orthogonal", "normal:0.1"),
)
PLAIN: dict[str, dict[str, Any]] = {
    "pretrained": {},
    "mlp": MLP,
    "cnn": CNN,
    "new layers": NEW,
    "selu": SELU_NEW,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"pooling {p}": ("larger", {"backbone.pooling": p}) for p in ("max", "catavgmax")},
    "pooling of a cnn": ("cnn", {"backbone.pooling": "avgmax"}),
    "drop top blocks": ("pretrained", {"backbone.drop_top_blocks": 1}),
    "replace activations": ("pretrained", {"backbone.replace_activations": "tanh"}),
    "drop path": ("residual", {"backbone.drop_path": 0.5}),
    "head layers": ("pretrained", {"head.layers": [8]}),
    "two head layers": ("new layers", {"head.layers": [8, 6]}),
    "dropout": ("pretrained", {"head.dropout": [0.0]}),
    "dropout of one layer": ("new layers", {"head.dropout": [0.2, 0.5]}),
    "alpha dropout": ("selu", {"head.dropout_kind": "alpha"}),
    "batch norm first": ("pretrained", {"head.batchnorm": ["first"]}),
    **{
        f"batch norm {where}": ("new layers", {"head.batchnorm": [where]})
        for where in ("before", "after")
    },
    "slope": ("leaky", {"head.slope": 0.3}),
    "classifier's start": ("pretrained", {"head.classifier_initializer": "normal:0.1"}),
    "start of new layers": ("new layers", {"head.initializer": "orthogonal"}),
    **{f"activation {a}": ("mlp", {"backbone.activation": a}) for a in ACTIVATIONS if a != "relu"},
    **{f"start {start}": ("mlp", {"backbone.initializer": start}) for start in STARTS},
    **{
        f"mlp with batch norm {where}": ("mlp", {"backbone.batchnorm": [where]})
        for where in ("first", "before", "after")
    },
    "depth": ("mlp", {"backbone.depth": 4}),
    "width": ("mlp", {"backbone.width": 9}),
    "backbone dropout": ("mlp", {"backbone.dropout": 0.3}),
    "spatial dropout": (
        "cnn with dropout",
        {"backbone.dropout": 0.3, "backbone.dropout_kind": "spatial"},
    ),
    "picture size": ("mlp", {"backbone.image_size": 24}),
}
PLAIN["larger"] = {"backbone.image_size": 64}
PLAIN["residual"] = {"backbone.name": "test_convnext", "stages": "all:2@1e-2"}
PLAIN["leaky"] = NEW | {"head.activation": "leaky_relu"}
PLAIN["cnn with dropout"] = CNN | {"backbone.dropout": 0.3}


@pytest.fixture(scope="module")
def plain(ran: Callable[..., Any]) -> Callable[[str], Any]:
    """Return the rows of a plain run, trained once."""
    return functools.cache(lambda name: ran(PLAIN[name]))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_configured_otherwise_differs(
    name: str, ran: Callable[..., Any], plain: Callable[[str], Any]
) -> None:
    base, given = VARIANTS[name]
    losses = [row["train_loss"] for row in ran(PLAIN[base] | given)]
    assert losses != [row["train_loss"] for row in plain(base)]


def test_every_activation_is_tried() -> None:
    assert set(get_args(Activation)) == set(ACTIVATIONS)
    assert {f"activation {name}" for name in ACTIVATIONS} - VARIANTS.keys() == {"activation relu"}
