from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones import engine as engine_module
from transferkit.backbones.engine import WORTH_EXPORTING, choose_engine, make_engine

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model(torch.randn(16, 3, 12, 12))  # moves the statistics away from 0 and 1
    return model


def test_onnx_and_torch_agree_for_any_batch_size() -> None:
    model = network()
    example = torch.randn(2, 3, 12, 12)
    onnx, plain = (make_engine(model, example, name, CPU) for name in ("onnx", "torch"))
    assert [(e.name, e.notice) for e in (onnx, plain)] == [("onnx", ""), ("torch", "")]
    assert not model.training
    for count in (1, 2, 5):
        inputs = torch.randn(count, 3, 12, 12)
        with torch.no_grad():
            expected = model(inputs)
        for engine in (onnx, plain):
            result = engine.run(inputs)
            assert result.dtype == torch.float32
            assert not result.requires_grad
            assert torch.allclose(result, expected, atol=1e-5)


def test_a_run_never_changes_the_network() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("onnx", "torch"):
        make_engine(model, torch.randn(2, 3, 12, 12), name, CPU).run(torch.randn(4, 3, 12, 12))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.train()(torch.randn(2, 3, 12, 12)).sum().backward()  # it can still train
    assert all(p.grad is not None for p in model.parameters())


def test_a_failing_export_leaves_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no operator aten::foo\nand much more")

    monkeypatch.setattr(engine_module, "onnx_runner", fail)
    model, example = network(), torch.randn(2, 3, 12, 12)
    engine = make_engine(model, example, "onnx", CPU)
    assert engine.name == "torch"
    assert (
        engine.notice
        == "ONNX export failed (no operator aten::foo); torch runs the network, slower"
    )
    assert torch.allclose(engine.run(example), model(example), atol=1e-5)


@pytest.mark.parametrize(("wrong", "told"), [(0.01, "1.0e-02"), (float("nan"), "nan")])
def test_a_wrong_export_leaves_torch(
    wrong: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def biased(model: nn.Module, _: Tensor) -> object:
        return lambda inputs: model(inputs) + wrong * model(inputs).abs().max()

    monkeypatch.setattr(engine_module, "onnx_runner", biased)
    model, example = network(), torch.randn(2, 3, 12, 12)
    engine = make_engine(model, example, "onnx", CPU)
    assert engine.name == "torch"
    assert f"differs from torch by {told}" in engine.notice
    assert torch.allclose(engine.run(example), model(example), atol=1e-5)


def test_rounding_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(model: nn.Module, _: Tensor) -> object:
        return lambda inputs: model(inputs) * (1 + 1e-5)

    monkeypatch.setattr(engine_module, "onnx_runner", rounded)
    assert make_engine(network(), torch.randn(2, 3, 12, 12), "onnx", CPU).name == "onnx"


def test_choice() -> None:
    cuda = torch.device("cuda")
    assert choose_engine("auto", CPU, WORTH_EXPORTING) == "onnx"
    assert choose_engine("auto", CPU, WORTH_EXPORTING - 1) == "torch"
    assert choose_engine("auto", cuda, 10**6) == "torch"
    assert [choose_engine(name, cuda, 1) for name in ("onnx", "torch")] == ["onnx", "torch"]


def test_threads_of_onnx_runtime_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    opened = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model: bytes, options: onnxruntime.SessionOptions, **more: Any) -> None:
            opened.append(options)
            super().__init__(model, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert make_engine(network(), torch.randn(2, 3, 12, 12), "onnx", CPU).name == "onnx"
    kinds = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
    assert [[o.get_session_config_entry(kind) for kind in kinds] for o in opened] == [["0", "0"]]
