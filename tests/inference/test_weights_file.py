"""Exported weights as a file: timm takes them, and they come back as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm  # isort: skip

from transferkit.backbones.folding import fold_batchnorm
from transferkit.backbones.head import Classifier, HeadDesign
from transferkit.backbones.structure import Structure
from transferkit.inference.deployed import METADATA, Deployed
from transferkit.inference.predict import blank_classifier
from transferkit.inference.weights_file import (
    open_weights,
    weights_bytes,
    with_zeros,
    without_zeros,
)

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def made(name: str, hidden: tuple[int, ...] = (), **more: Any) -> tuple[Classifier, dict[str, Any]]:
    """Return a classifier of 5 classes with shaken weights, and what its file says of it."""
    network = {
        "backbone": name,
        "image_size": 32,
        "structure": Structure().to_dict(),
        "head": HeadDesign(hidden=hidden).to_dict(),
        "drop_path": 0.0,
    }
    preprocessing = {
        "height_px": 32,
        "width_px": 32,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    about = {"network": network, "classes": list("abcde"), "preprocessing": preprocessing}
    about |= {"folded_batchnorms": 0, "precision": "fp32", **more}
    classifier, _ = blank_classifier({**network, **about})
    generator = torch.Generator().manual_seed(1)
    for tensor in classifier.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return classifier.eval(), about


def written(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file and return its metadata."""
    path.write_bytes(data)
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()[METADATA]))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit"])
def test_timm_takes_the_weights_as_they_are(name: str, tmp_path: Path) -> None:
    classifier, about = made(name)
    path = tmp_path / "m.safetensors"
    assert written(path, weights_bytes(classifier, about, False))["timm"] == name
    size = {"img_size": 32} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=5, **size).eval()
    theirs.load_state_dict(safetensors.torch.load_file(path))  # every name, no other
    with torch.no_grad():
        expected = classifier(IMAGES)
        assert torch.allclose(theirs(classifier.normalize(IMAGES)), expected, atol=1e-5)
        assert torch.equal(open_weights(path)[0](IMAGES), expected)


@pytest.mark.parametrize("case", ["hidden", "folded", "bf16", "sparse"])
def test_what_timm_does_not_know_comes_back_all_the_same(case: str, tmp_path: Path) -> None:
    classifier, about = made("test_efficientnet", (7,) if case == "hidden" else ())
    network: Any = Deployed(classifier, torch.float32).eval()
    if case == "folded":
        network, folding = fold_batchnorm(network, IMAGES)
        about["folded_batchnorms"] = len(folding.pairs)
        assert folding.pairs
    if case == "bf16":
        about["precision"] = "bf16"
        network = Deployed(classifier, torch.bfloat16).eval()
    if case == "sparse":
        for parameter in classifier.parameters():
            parameter.data[parameter.abs() < 0.1] = 0
    path = tmp_path / "m.safetensors"
    found = written(path, weights_bytes(network.classifier, about, case == "sparse"))
    assert found["timm"] == ("test_efficientnet" if case == "bf16" else "")
    assert bool(found["sparse"]) == (case == "sparse")
    with torch.no_grad():
        assert torch.equal(open_weights(path)[0](IMAGES), network(IMAGES))


def test_zeros_are_left_out_where_that_is_smaller() -> None:
    weight = torch.zeros(4, 6)
    weight[1, 2], weight[3, 5] = 2.5, -1.0
    tensors = {"w": weight, "full": torch.ones(3), "count": torch.tensor(7)}
    stored, shapes = without_zeros(tensors)
    assert shapes == {"w": [4, 6]}
    assert stored["w::values"].tolist() == [2.5, -1.0]
    assert stored["w::mask"].tolist() == [0, 0b10000000, 0b00000001]  # of entries 8 and 23
    assert sum(t.nbytes for n, t in stored.items() if n.startswith("w")) == 2 * 4 + 3
    back = with_zeros(stored, shapes)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
