import pytest
import torch
from torch import nn

from transferkit.training.regularizers import (
    PENALTIES,
    Strengths,
    constrained,
    max_norm_,
    penalized,
    penalty_terms,
    soft_threshold_,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))


def in_head(name: str) -> bool:
    return name.startswith("1")


def test_penalties_in_closed_form_with_their_gradients() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, -4.0]]))
    start = torch.tensor([[1.0, -4.0]])
    expected = {"l2": (12.5, [[3, -4]]), "l2_sp": (2.0, [[2, 0]])}
    assert expected.keys() == PENALTIES.keys()
    for name, (value, gradient) in expected.items():
        found = PENALTIES[name](weight, start)
        weight.grad = None
        found.backward()
        assert float(found.detach()) == value
        assert weight.grad.tolist() == gradient  # type: ignore[attr-defined]


def test_terms_separate_backbone_and_head_and_spare_biases_and_norms() -> None:
    model = network()
    named = list(model.named_parameters())
    starts = {name: p.detach() + 1 for name, p in named}
    strengths = Strengths(backbone_l1=2, head_l2=3, l2_sp=5)
    terms = penalty_terms(named, in_head, strengths, starts)
    own = {name: [t.kind for t in terms if t.parameter is p] for name, p in named}
    assert own == {
        "0.0.weight": ["l2_sp"],
        "0.0.bias": ["l2_sp"],
        "0.1.weight": ["l2_sp"],
        "0.1.bias": ["l2_sp"],
        "1.weight": ["l2"],
        "1.bias": [],
    }
    count = sum(p.numel() for name, p in named if not in_head(name))
    weights = {name: p.detach() for name, p in named}
    expected = 1.5 * weights["1.weight"].square().sum()  # L1 takes steps of its own
    total = penalized(torch.tensor(1.0), terms)
    assert float(total.detach()) == pytest.approx(float(1 + expected + 5 * 0.5 * count), rel=1e-5)
    model[0].requires_grad_(False)
    assert {t.kind for t in penalty_terms(named, in_head, strengths, starts)} == {"l2"}


def test_l1_is_of_weights_alone() -> None:
    strengths = Strengths(backbone_l1=2, head_l1=3)
    found = {n: strengths.l1_of(in_head(n), p) for n, p in network().named_parameters()}
    assert {name: size for name, size in found.items() if size} == {"0.0.weight": 2, "1.weight": 3}


def test_the_soft_threshold_in_closed_form() -> None:
    weight = torch.tensor([3.0, -3.0, 0.5, -0.5, 0.0])
    assert soft_threshold_(weight.clone(), 0.5).tolist() == [2.5, -2.5, 0.0, 0.0, 0.0]
    limits = torch.tensor([1.0, 4.0, 0.0, 0.25, 9.0])
    assert soft_threshold_(weight.clone(), limits).tolist() == [2.0, 0.0, 0.5, -0.25, 0.0]


def test_max_norm_rescales_only_what_is_too_long() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.3, 0.4]])
    limited = max_norm_(weight.clone(), 1.5)
    assert limited[0].tolist() == pytest.approx([0.9, 1.2], rel=1e-5)
    assert torch.equal(limited[1:], weight[1:])
    kernel = max_norm_(torch.randn(5, 3, 2, 2), 0.1)
    assert float(kernel.flatten(1).norm(dim=1).max()) <= 0.1 * (1 + 1e-6)


def test_max_norm_holds_the_weights_of_trained_layers() -> None:
    model = network()
    assert [w.shape for w in constrained(model, in_head, "head")] == [(2, 4)]
    assert [w.shape for w in constrained(model, in_head, "all")] == [(4, 3), (2, 4)]
    model[0].requires_grad_(False)
    assert [w.shape for w in constrained(model, in_head, "all")] == [(2, 4)]
