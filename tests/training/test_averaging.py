from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transferkit.config import Averaging, Config, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.runs.folder import open_run
from transferkit.training.averaging import (
    averaged,
    ema_decay,
    first_averaged,
    make_average,
)
from transferkit.training.stages import PlannedStage
from transferkit.verbs.finetune import finetune, resume

STAGE = PlannedStage("x", 1, 1.0, (0.0, 1.0))  # the first module is frozen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def column_of(name: str) -> int:
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
    average = make_average(model, column_of, STAGE, 0.5, 0.0)
    assert average is not None
    average.count = 100

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
    average = make_average(model, column_of, STAGE, 0.9, 0.0)
    assert average is not None
    disturb(model)
    average.update()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with averaged(average):
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(t, average.tensors.get(n, own[n])) for n, t in inside.items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(own["1.0.weight"], average.tensors["1.0.weight"])


def test_the_mean_of_epochs_equals_the_one_of_torch() -> None:
    model, share = network(), 0.5
    average = make_average(model, column_of, replace(STAGE, epochs=6), 0.0, share)
    assert average is not None
    reference = AveragedModel(model, use_buffers=True)
    kept = []
    for epoch in range(6):
        disturb(model)
        average.end_epoch(epoch)
        assert average.started == (epoch >= 3)
        if epoch >= 3:
            reference.update_parameters(model)
            kept.append({n: t.clone() for n, t in model.state_dict().items()})
    theirs = reference.module.state_dict()
    assert average.count == 3
    assert average.tensors.keys() == {n for n in theirs if n.startswith("1.")}
    for name, tensor in average.tensors.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-6), name
            by_hand = torch.stack([weights[name] for weights in kept]).mean(0)
            assert torch.allclose(tensor, by_hand, rtol=0, atol=1e-6), name
    assert average.tensors["1.1.num_batches_tracked"] == kept[-1]["1.1.num_batches_tracked"]


def test_a_share_of_a_stage_is_its_last_epochs() -> None:
    pairs = ((10, 0.25), (10, 1.0), (3, 0.01), (4, 0.5))
    assert [first_averaged(*pair) for pair in pairs] == [8, 0, 2, 2]
    assert make_average(network(), column_of, STAGE, 0.0, 0.0) is None


@pytest.fixture
def swa(with_stages: Callable[..., Config]) -> Config:
    """Four epochs, the mean of the last two, which is kept."""
    plain = with_stages(Stage(1, 4))
    training = replace(plain.training, restore_best=False)
    return replace(plain, training=training, averaging=Averaging(swa=0.5))


def weights_after(config: Config, epochs: int, out: Path) -> dict[str, Tensor]:
    """Return the weights at the end of an epoch, by stopping the run there."""

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == epochs:
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="interrupted"):
        finetune(config, out, stop)
    checkpoint = open_run(out).load_checkpoint("last")
    assert checkpoint is not None
    return dict(checkpoint["model"])


def test_a_run_ends_with_the_mean_of_its_last_epochs_and_so_does_a_resumed_one(
    swa: Config, tmp_path: Path
) -> None:
    finetune(swa, tmp_path / "run", lambda _: None)
    plain = replace(swa, averaging=Averaging())
    finetune(plain, tmp_path / "plain", lambda _: None)
    epochs = [weights_after(swa, n, tmp_path / str(n)) for n in (3, 4)]
    model = load_file(tmp_path / "run" / "model.safetensors")
    for name in (n for n in model if n.startswith("head.") and model[n].is_floating_point()):
        mean = (epochs[0][name] + epochs[1][name]) / 2
        assert torch.allclose(model[name], mean, rtol=0, atol=1e-7), name
    rows = [open_run(tmp_path / name).read_metrics() for name in ("run", "plain")]
    losses = [[row["train_loss"] for row in each] for each in rows]
    assert losses[0] == losses[1]  # the mean does not touch training
    values = [[row["val_loss"] for row in each] for each in rows]
    assert values[0][:2] == values[1][:2]
    assert values[0][3] != values[1][3]
    resume(tmp_path / "3", lambda _: None)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "3")]
    assert models[0] == models[1]


def test_the_statistics_are_those_of_the_averaged_weights(
    swa: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed where the stage trains, untouched below."""
    finetune(swa, tmp_path / "run", lambda _: None)
    monkeypatch.setattr("transferkit.training.loop.recalibrate", lambda *_: ())
    finetune(swa, tmp_path / "stale", lambda _: None)
    renewed, stale = (load_file(tmp_path / n / "model.safetensors") for n in ("run", "stale"))
    changed = {name for name in renewed if not torch.equal(renewed[name], stale[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
    trained = {name for name in epochs_change(tmp_path / "run") if "running" in name}
    assert {name for name in changed if "running" in name} == trained


def epochs_change(run: Path) -> set[str]:
    """Return what the run's only stage trains: the top block group and the head."""
    checkpoint = open_run(run).load_checkpoint("last")
    assert checkpoint is not None
    return set(checkpoint["model"])


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
