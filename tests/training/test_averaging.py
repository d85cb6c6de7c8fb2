from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transferkit.config import Averaging, Config, Stage
from transferkit.finetune import finetune
from transferkit.run_folder import open_run
from transferkit.training.averaging import averaged, ema_decay, moving_average
from transferkit.training.stages import PlannedStage

STAGE = PlannedStage("x", 1, 1.0, (0.0, 1.0))  # the first module is frozen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def group_of(name: str) -> int:
    return int(name[0])


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)


def test_the_decay_rises_to_its_value() -> None:
    decays = [ema_decay(step, 0.9) for step in range(1, 200)]
    assert decays == sorted(decays)
    assert decays[0] == 2 / 11
    assert decays[7] == 9 / 18
    assert set(decays[80:]) == {0.9}


def test_the_average_equals_the_one_of_torch_once_warm() -> None:
    model = network()
    average = moving_average(model, group_of, STAGE, 0.5)
    assert average is not None
    average.steps = 100

    def mean(averages: list[Tensor], values: list[Tensor], _: object) -> None:
        for one, other in zip(averages, values, strict=True):
            one.copy_(0.5 * one + 0.5 * other)

    reference = AveragedModel(model, multi_avg_fn=mean, use_buffers=True)
    reference.update_parameters(model)  # the first one copies
    for _ in range(5):
        disturb(model)
        average.update()
        reference.update_parameters(model)
    theirs = reference.module.state_dict()
    assert average.tensors.keys() == {n for n in theirs if n.startswith("1.")}
    for name, tensor in average.tensors.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-6), name
    assert average.tensors["1.1.num_batches_tracked"] == 5


def test_the_weights_come_back_after_the_average_was_in_the_model() -> None:
    model = network()
    average = moving_average(model, group_of, STAGE, 0.9)
    assert average is not None
    disturb(model)
    average.update()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with averaged(average):
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(t, average.tensors.get(n, own[n])) for n, t in inside.items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(own["1.0.weight"], average.tensors["1.0.weight"])


def test_without_decay_there_is_no_average() -> None:
    assert moving_average(network(), group_of, STAGE, 0.0) is None


def test_a_run_keeps_and_evaluates_its_average(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    plain = with_stages(Stage(1, 3))
    models, rows = [], []
    for name, decay in (("plain", 0.0), ("low", 1e-9), ("high", 0.999)):
        finetune(replace(plain, averaging=Averaging(ema=decay)), tmp_path / name, lambda _: None)
        models.append(load_file(tmp_path / name / "model.safetensors"))
        rows.append(open_run(tmp_path / name).read_metrics())
    losses = [[row["train_loss"] for row in each] for each in rows]
    assert losses[0] == losses[2]  # the average does not touch training
    values = [[row["val_loss"] for row in each] for each in rows]
    assert values[0] == pytest.approx(values[1], abs=1e-6)  # decay 0: the weights themselves
    assert values[0] != pytest.approx(values[2], abs=1e-5)
    same = [name for name in models[0] if torch.equal(models[0][name], models[2][name])]
    assert any(name.startswith("backbone.blocks.0.") for name in same)
    assert not any(name.startswith("head.") for name in same)
