"""finetune --strategy fsdp in two processes: the numbers of one process, with a part in each."""

import json
import pickle
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from several import as_by_srun
from sharded_worker import Job, quiet, work

from transferkit import processes
from transferkit.config import Averaging, Clipping, Config, Stage
from transferkit.config.optimization import OptimizerOptions
from transferkit.errors import UserError
from transferkit.finetuning.preparation import refuse_sharing
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import RunFolder
from transferkit.training.optimizers import OPTIMIZERS
from transferkit.training.sharded import refuse_unsharded
from transferkit.verbs import finetune as verb

WORKER = Path(__file__).with_name("sharded_worker.py")
NAMES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "cached")
Cli = Callable[..., Any]


def jobs_of(tiny: Config, folder: Path) -> dict[str, Job]:
    """Return the runs, by name, without shards."""
    training = replace(tiny.training, weight_decay=1e-2)
    steps = OptimizerOptions(name="momentum")
    plain = replace(tiny, training=training, optimizer=steps, clipping=Clipping(norm=0.5))
    rewound = replace(plain, training=replace(training, on_divergence="rewind"))
    adam = replace(
        tiny,
        optimizer=OptimizerOptions(name="adamw", eps=1e-2),  # less: rounding moves weights
        averaging=Averaging(swa=0.7),
        cache=replace(tiny.cache, enabled=False),
        training=replace(tiny.training, checkpoint_activations=True),
        stages=(Stage(3, 3),),
    )
    return {
        "plain": Job(plain, str(folder / "plain")),
        "stopped": Job(plain, str(folder / "stopped"), stop=3),  # within the second stage
        "rewound": Job(rewound, str(folder / "rewound"), diverges=14),
        "adam": Job(adam, str(folder / "adam")),
    }


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Config
) -> tuple[Path, Path, list[dict[str, Any]]]:
    """Do all runs, sharded in two processes, and plainly in this one; return both folders."""
    two, one = (tmp_path_factory.mktemp(name) for name in ("two", "one"))
    for folder in (two, one):
        config = replace(tiny_config, cache=replace(tiny_config.cache, dir=folder / "cache"))
        jobs = jobs_of(config, folder)
        if folder == one:
            jobs.pop("stopped")
            for job in jobs.values():
                with pytest.MonkeyPatch.context() as patch:
                    work(job, patch)
            continue
        device = replace(config.device, strategy="fsdp")
        sharded = [replace(job, config=replace(job.config, device=device)) for job in jobs.values()]
        (two / "jobs").write_bytes(pickle.dumps(sharded))
        ended = as_by_srun(two / "jobs", two / "found", program=(str(WORKER),))
        assert ended.codes == [0, 0], ended.err
    return two, one, [json.loads((two / f"found-{rank}.json").read_text()) for rank in (0, 1)]


def numbers(run: Path) -> list[float]:
    """Return what the epochs of a run gave."""
    return [row[name] for row in RunFolder(run).read_metrics() for name in NAMES]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return RunFolder(run).load_model()[1]


def largest_difference(run: Path, other: Path) -> float:
    theirs = weights(other)
    return max(float((t.float() - theirs[n]).abs().max()) for n, t in weights(run).items())


@pytest.mark.parametrize("name", ["plain", "rewound", "adam"])
def test_losses_and_weights_are_those_of_one_process(ran: Any, name: str) -> None:
    two, one, _ = ran
    assert numbers(two / name) == pytest.approx(numbers(one / name), abs=1e-5)
    assert largest_difference(two / name, one / name) < 1e-5
    assert {row["cached"] for row in RunFolder(two / name).read_metrics()} == (
        {0} if name == "adam" else {0, 1}
    )


def test_a_run_that_diverges_is_rewound_in_all_processes(ran: Any) -> None:
    two, one, _ = ran
    rates = [
        [row["lr/head"] for row in RunFolder(folder / name).read_metrics()]
        for folder, name in ((two, "rewound"), (one, "rewound"), (one, "plain"))
    ]
    assert rates[0] == rates[1]
    assert rates[0][:3] == rates[2][:3]
    assert rates[0][3] == rates[2][3] / 2


def test_a_resumed_run_is_the_uninterrupted_one(ran: Any) -> None:
    two, _, _ = ran
    assert numbers(two / "stopped") == numbers(two / "plain")
    assert largest_difference(two / "stopped", two / "plain") == 0


def test_one_process_goes_on_without_shards(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    two, one, _ = ran
    left = two / "stopped-left"
    assert len(RunFolder(left).read_metrics()) == 3
    quiet(monkeypatch)
    verb.resume(left, lambda _: None)
    assert numbers(left) == pytest.approx(numbers(one / "plain"), abs=1e-5)
    assert largest_difference(left, one / "plain") < 5e-5  # its steps are fused: they round apart


def test_each_process_holds_about_half_of_what_learns(ran: Any) -> None:
    first, second = (found["sizes"] for found in ran[2])
    assert len(first) == len(second) >= 9
    for (own, total, units), (others, *_) in zip(first, second, strict=True):
        assert own + others == total
        assert 0.4 < own / total < 0.6
        assert units > 1  # of which one has its weights whole at a time
    assert first[2][2] > first[1][2] > first[0][2]  # a block each


def test_what_is_monitored_is_that_of_one_process(ran: Any) -> None:
    two, one, _ = ran
    ours, theirs = (RunFolder(folder / "plain").read_monitoring() for folder in (two, one))
    assert [row["group"] for row in ours] == [row["group"] for row in theirs]
    for name in ("gradient_norm", "update_ratio"):
        expected = [row[name] for row in theirs]
        assert [row[name] for row in ours] == pytest.approx(expected, rel=1e-3)
    clipped = [
        [row["clipped"] for row in RunFolder(folder / "plain").read_metrics()]
        for folder in (two, one)
    ]
    assert clipped[0] == clipped[1]
    assert max(clipped[0]) > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_steps_of_whole_weights(ran: Any, name: str) -> None:
    for found in ran[2]:
        assert found["drifts"][name] < 1e-6


@pytest.mark.parametrize(
    "change",
    [
        "averaging.ema=0.9",
        "clipping.value=1.0",
        "clipping.adaptive=0.1",
        "regularization.backbone_l1=1e-4",
        "regularization.backbone_l2=1e-4",
        "regularization.head_l1=1e-4",
        "regularization.head_l2=1e-4",
        "regularization.l2_sp=1e-4",
        "regularization.max_norm=1.0",
        "optimizer.name=timm:lion",
        "device.precision=16",
        "device.compile=on",
    ],
)
def test_what_needs_whole_weights_is_refused(cli: Cli, pictures: Path, change: str) -> None:
    asked = ("finetune", pictures, "--strategy", "fsdp", "--set", change, "--stages", "1:1")
    refused = cli(*asked)
    assert refused.code == 2
    (line,) = refused.message
    assert line.startswith(f"error: {change.split('=')[0]} ")
    assert line.endswith(" does not work with device.strategy = fsdp: leave one out")
    assert list(Path().iterdir()) == []


def test_one_process_has_nothing_to_share_out(cli: Cli, pictures: Path) -> None:
    refused = cli("finetune", pictures, "--strategy", "fsdp")
    assert refused.code == 2
    assert refused.message == [
        "error: --strategy fsdp has no effect in one process",
        "start several with torchrun or srun, or leave it out",
    ]


def test_a_torch_that_cannot_is_refused(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed import fsdp

    config = replace(tiny_config, device=replace(tiny_config.device, strategy="fsdp"))
    monkeypatch.setattr(processes, "count", lambda: 2)
    refuse_sharing(config)
    monkeypatch.delattr(fsdp.FSDPModule, "set_force_sum_reduction_for_comms")
    with pytest.raises(UserError, match=r"--strategy fsdp needs a newer torch than 2\.") as caught:
        refuse_sharing(config)
    assert caught.value.exit_code == 2


def test_weights_that_cannot_be_shared_out_are_refused() -> None:
    number = torch.nn.Parameter(torch.tensor(1.0))
    unused = torch.nn.Parameter(torch.ones(2))
    for parameter, what in ((number, "a single number"), (unused, "does not use it")):
        with pytest.raises(UserError, match=what) as caught:
            refuse_unsharded([("head.x", parameter)], {id(number)})
        assert caught.value.exit_code == 2


def test_the_recipe_keeps_the_strategy(ran: Any, cli: Cli) -> None:
    recipe = tomllib.loads(RunFolder(ran[0] / "plain").read_recipe())
    assert load_config(recipe).device.strategy == recipe["device"]["strategy"] == "fsdp"
    assert "--strategy" in cli("finetune", "--help-all").out
    assert "--strategy" not in cli("pretrain", "--help-all").out
