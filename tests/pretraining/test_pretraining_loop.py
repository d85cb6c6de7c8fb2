"""The loop on every method of the table: it learns, and goes on where it was interrupted."""

import itertools
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
import torch
from torch import nn

from transferkit.config import Config
from transferkit.config.methods import METHODS
from transferkit.config.pretraining import USES
from transferkit.errors import UserError
from transferkit.events import Notice, PretrainingEpoch
from transferkit.pretraining import loop
from transferkit.pretraining.autoencoders import VARIANTS
from transferkit.pretraining.loop import cut, split_epochs
from transferkit.pretraining.method import Phase
from transferkit.runs.folder import RunFolder, open_run
from transferkit.verbs import pretrain as verb

Make = Callable[..., Config]
OPTIONS: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS}
OPTIONS |= {
    name: {"method": "autoencoder", "variant": name} for name in VARIANTS if name != "plain"
}
OPTIONS["identities"] = {"method": "same-or-different", "identities": True}
for _name in USES["projection"]:
    OPTIONS[_name] |= {"projection": 32}
LEARNING: dict[str, dict[str, Any]] = {
    "barlow": {"lr": 1e-2},
    "jigsaw": {"lr": 3e-3, "permutations": 4},
    "rotation": {"lr": 1e-2},
    "gan": {"lr": 1e-3},
    "mae": {"lr": 1e-2},
    "rbm": {"lr": 1e-2},
    "simclr": {"lr": 1e-2, "temperature": 0.2},
    "simsiam": {"lr": 3e-3, "projection": 256},
    "vicreg": {"lr": 1e-2},
}
"""Method -> options with which it learns within seconds, where the usual ones will not do."""
BACKBONES: dict[str, str] = {
    "gan": "cnn",
    "jigsaw": "cnn",
    "mae": "test_vit",
    "rbm": "mlp",
    "stacked": "cnn",
}
"""Method -> a backbone of its own, where the tiny EfficientNet will not do."""


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than these runs; tests/end_to_end looks at them."""
    monkeypatch.setattr(verb, "feature_map", lambda features, images: None)
    monkeypatch.setattr(RunFolder, "save_plot", lambda folder, name, figure: folder.path)


def config_of(make: Make, name: str, **more: Any) -> Config:
    return make(BACKBONES.get(name, "test_efficientnet"), **{**OPTIONS[name], **more})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return open_run(path).load_model()[1]


def run(config: Config, out: Path) -> list[PretrainingEpoch]:
    events: list[Any] = []
    verb.pretrain(config, out, events.append)
    return [event for event in events if isinstance(event, PretrainingEpoch)]


OBJECTIVES = {"gan": "loss_discriminator", "rbm": "reconstruction"}
"""Method -> the figure that falls, where it is not the loss: that of an RBM has no bottom."""


def objective(name: str, epochs: list[PretrainingEpoch]) -> list[float]:
    """Return the figure that falls, of every epoch of the first phase."""
    figures = [epoch.figures for epoch in epochs if epoch.figures["phase"] == 0]
    return [each[OBJECTIVES.get(name, "loss")] for each in figures]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_lowers_its_own_objective(
    name: str, pretraining_config: Make, tmp_path: Path
) -> None:
    epochs = 20 if name == "gan" else 12  # some of whose steps have a penalty
    config = config_of(pretraining_config, name, epochs=epochs, **LEARNING.get(name, {"lr": 3e-3}))
    found = objective(name, run(config, tmp_path / "run"))
    part = max(1, len(found) // 4)
    assert len(found) >= 2
    center = median if name == "gan" else fmean
    assert center(found[-part:]) < 0.97 * center(found[:part])


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    ("name", "after"), [*((name, 2) for name in OPTIONS), ("byol", 1), ("gan", 1), ("rbm", 1)]
)
def test_interrupted_and_resumed_equals_uninterrupted(
    name: str, after: int, pretraining_config: Make, tmp_path: Path
) -> None:
    config = config_of(pretraining_config, name, epochs=3)
    run(config, tmp_path / "whole")

    def stop(event: Any) -> None:
        if isinstance(event, PretrainingEpoch) and event.epoch == after:
            raise Stopped

    with pytest.raises(UserError, match="interrupted") as told:
        verb.pretrain(config, tmp_path / "parts", stop)
    assert told.value.exit_code == 130
    assert_resumes_to(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("name", "steps"), [("byol", 2), ("byol", 4), ("gan", 2), ("rbm", 5)])
def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(
    name: str,
    steps: int,
    pretraining_config: Make,
    tmp_path: Path,
    stopped_after: Callable[..., Any],
) -> None:
    config = config_of(pretraining_config, name, epochs=3)
    run(config, tmp_path / "whole")
    told = pytest.raises(UserError, match="every finished step is saved")
    with stopped_after(steps, loop), told:
        run(config, tmp_path / "parts")
    assert_resumes_to(tmp_path / "whole", tmp_path / "parts")


def assert_resumes_to(path: Path, other_path: Path) -> None:
    """An interrupted run, taken up again, ends as the one at the first path: weights, rows."""
    verb.resume(other_path, lambda event: None)
    whole, parts = open_run(path), open_run(other_path)
    assert (whole.path / "model.safetensors").read_bytes() == (
        parts.path / "model.safetensors"
    ).read_bytes()
    one, other = whole.load_checkpoint("last"), parts.load_checkpoint("last")
    assert one is not None
    assert other is not None
    for part in ("networks", "optimizers"):
        assert_same(one[part], other[part])
    rows = zip(one["state"]["rows"], other["state"]["rows"], strict=True)
    for row, again in rows:
        assert {n: v for n, v in row.items() if not n.startswith("seconds")} == {
            n: v for n, v in again.items() if not n.startswith("seconds")
        }


def assert_same(one: Any, other: Any) -> None:
    """Two nested states hold the same bits."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def test_the_seed_decides(pretraining_config: Make, tmp_path: Path) -> None:
    config = config_of(pretraining_config, "simclr", epochs=1)
    for name in ("one", "same"):
        run(config, tmp_path / name)
    one, same = weights(tmp_path / "one"), weights(tmp_path / "same")
    assert all(torch.equal(one[key], same[key]) for key in one)


def test_weights_are_those_of_a_plain_loop_of_torch(
    pretraining_config: Make, tmp_path: Path
) -> None:
    """The same steps by hand: views, Adam's rates, the loss."""
    config = config_of(pretraining_config, "autoencoder", epochs=1, warmup=0.0, weight_decay=0.0)
    run(config, tmp_path / "run")
    session = verb.prepare(config, lambda event: None)
    networks = session.method.networks.train()
    for parameter in networks.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1, weight_decay=0.0, fused=True)
    generator = loop.np.random.default_rng([0, 0, 6])
    train = session.index.of_split("train")
    picks = cut(train[generator.permutation(len(train))], 8, drop_last=False)
    torch.manual_seed(0)
    for step, pick in enumerate(picks):
        made = [session.views.make(session.index.file(int(p)), int(p), 0)[0].pixels for p in pick]
        images = torch.from_numpy(loop.np.stack(made))
        images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            factor = 0.5 * (1 + loop.np.cos(loop.np.pi * (step + 0.5) / len(picks)))
            group["lr"] = session.method.lr * factor
        decoder: Any = networks["decoder"]  # type: ignore[index]
        loss = nn.functional.mse_loss(decoder(session.encoder.maps(images)), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = weights(tmp_path / "run")
    for name, tensor in session.backbone.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_budget_sets_the_epochs_and_leaves_no_trace_of_its_pilot(
    pretraining_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    events: list[Any] = []
    config = config_of(pretraining_config, "autoencoder", epochs=None, budget="40s")
    summary = verb.pretrain(config, tmp_path / "run", events.append)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any("epochs fit the budget" in text for text in notices)
    assert 2 <= summary.epochs <= 40


@pytest.mark.parametrize(
    ("shares", "epochs", "expected"),
    [([1], 7, [7]), ([1, 1], 4, [2, 2]), ([1, 1, 2], 8, [2, 2, 4]), ([1, 1, 1], 1, [1, 1, 1])],
)
def test_epochs_are_shared_out(shares: list[float], epochs: int, expected: list[int]) -> None:
    phases = [Phase(str(n), {}, lambda batch: iter(()), share) for n, share in enumerate(shares)]
    assert split_epochs(phases, epochs) == expected


def test_short_last_batches_are_left_out_where_they_would_hurt() -> None:
    order = loop.np.arange(9)
    assert [len(pick) for pick in cut(order, 4, drop_last=True)] == [4, 4]
    assert [len(pick) for pick in cut(order, 4, drop_last=False)] == [4, 4]
    assert [len(pick) for pick in cut(order[:6], 4, drop_last=False)] == [4, 2]
    assert [len(pick) for pick in cut(order[:3], 4, drop_last=True)] == [3]


def test_a_loss_that_is_no_number_ends_the_run_with_advice(
    pretraining_config: Make, tmp_path: Path
) -> None:
    config = config_of(pretraining_config, "autoencoder", lr=10.0, loss="mse", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "checked", lambda loss, step: loop_fails(loss, step))
        with pytest.raises(UserError, match="the loss became NaN in epoch 1") as told:
            verb.pretrain(config, tmp_path / "run", lambda event: None)
    assert "--lr" in told.value.remedy


def test_a_loss_that_is_no_number_later_on_leaves_what_was_learned_before(
    pretraining_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(pretraining_config, "autoencoder", epochs=3)
    steps = itertools.count(1)
    monkeypatch.setattr(loop, "checked", lambda loss, step: loss if next(steps) < 6 else fails())
    with pytest.raises(UserError, match="the loss became NaN in epoch 2") as told:
        verb.pretrain(config, tmp_path / "run", lambda event: None)
    assert told.value.remedy.endswith(f"transferkit finetune DATA --from {tmp_path / 'run'}")
    run = open_run(tmp_path / "run")
    summary, last = run.read_json("summary"), run.load_checkpoint("last")
    assert (summary["stopped"], summary["epochs"]) == (told.value.what, 1)
    assert last is not None
    weights = run.load_model()[1]
    kept = {n.removeprefix("encoder.backbone."): t for n, t in last["networks"].items()}
    assert weights
    assert all(torch.equal(weights[name], kept[name]) for name in weights)


def fails() -> float:
    raise loop.Diverged(float("nan"), 0)


def loop_fails(loss: float, step: int) -> float:
    raise loop.Diverged(float("nan"), step)
