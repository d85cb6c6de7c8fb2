"""A solved head is an ordinary one: what it says in torch, TorchScript, ONNX and exports."""

import io
import warnings
from pathlib import Path

import pytest

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from torch import Tensor, nn

from transferkit.backbones.chain import find_chain
from transferkit.backbones.engine import onnx_runner
from transferkit.backbones.head import HeadDesign, make_head
from transferkit.closed_form.depths import find_depths, num_columns
from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.result import DepthClassifier, put_into
from transferkit.closed_form.sums import one_hot

SIDE_PX = 32
TEMPERATURE = 0.1


def pictures(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (number, 3, SIDE_PX, SIDE_PX), generator=generator).to(torch.uint8)


def solved(mirror: bool = False) -> tuple[DepthClassifier, Tensor]:
    """Return a classifier and the scores that the regression has for `pictures(12)`."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0).eval()
    example = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    depths = find_depths(model, find_chain(model, example).groups, example)[-3:]
    head = make_head(num_columns(depths), 3, HeadDesign(dropout=(0.2,)))
    network = DepthClassifier(model, head, (0.5,) * 3, (0.25,) * 3, depths, mirror).eval()
    with torch.no_grad():
        features = network.features(pictures(12))
    problem = Problem(features, one_hot(torch.arange(12) % 3, 3))
    solution = solve(problem, [depth.columns for depth in depths], penalty=1e-3)
    put_into(network.head, solution.spectrum, solution.penalty, TEMPERATURE)
    return network, solution.spectrum.predict(features, solution.penalty)


@pytest.mark.parametrize("mirror", [False, True])
def test_logits_are_the_scores_over_the_temperature(mirror: bool) -> None:
    network, scores = solved(mirror)
    with torch.no_grad():
        logits = network(pictures(12))
    assert torch.allclose(logits.double(), scores / TEMPERATURE, atol=1e-4)
    assert scores.std() > 0.1


def test_state_has_the_names_of_any_classifier() -> None:
    network, _ = solved()
    names = network.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    other, _ = solved()
    nn.init.zeros_(other.head[-1].weight)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other(pictures(3)), network(pictures(3)))


@pytest.mark.parametrize("mirror", [False, True])
def test_exports_say_the_same(mirror: bool, tmp_path: Path) -> None:
    network, _ = solved(mirror)
    images = pictures(5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        expected = network(images)
        traced = torch.jit.freeze(torch.jit.trace(network, (images[:2],), check_trace=False))
        exported = torch.export.export(
            network, (images[:2],), dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}}
        )
        torch.export.save(exported, buffer := io.BytesIO())
        buffer.seek(0)
        found = {
            "TorchScript": traced(images),
            "torch.export": torch.export.load(buffer).module()(images),
            "ONNX": onnx_runner(network, images[:2])(images),
        }
    differences = {name: float((logits - expected).abs().max()) for name, logits in found.items()}
    assert max(differences.values()) < 1e-4, differences


def test_gradients_reach_the_blocks() -> None:
    network, _ = solved()
    network(pictures(2)).sum().backward()
    gradients = [p.grad for p in network.backbone.parameters() if p.grad is not None]
    assert len(gradients) > 10
    assert all(gradient.isfinite().all() for gradient in gradients)
