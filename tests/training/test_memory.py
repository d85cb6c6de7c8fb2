import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from transferkit.backbones.recompute import Recomputed, recompute
from transferkit.config import BackboneOptions, Config, Stage
from transferkit.errors import UserError
from transferkit.events import Event, Notice
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import open_run
from transferkit.training.memory import (
    batch_size_for,
    estimated_parts,
    fitting_parts,
    is_out_of_memory,
    kept_bytes,
    refuse_more_classes,
    shares,
)
from transferkit.verbs.finetune import finetune

LIVE = (Stage("all", 2, 1e-2),)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def trained(config: Config, out: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list]:
    events: list[Event] = []
    changed = replace(config, stages=LIVE, training=replace(config.training, **options))
    finetune(changed, out, events.append)
    return weights(out), events


def test_parts_add_up_to_the_batch() -> None:
    """The same gradient as of the whole batch, by torch's own mean over it."""
    torch.manual_seed(0)
    network = nn.Linear(5, 3)
    inputs, labels = torch.randn(11, 5), torch.arange(11) % 3
    whole = torch.autograd.grad(functional.cross_entropy(network(inputs), labels), network.weight)[
        0
    ]
    summed = torch.zeros_like(whole)
    for part in shares(11, 4):
        loss = functional.cross_entropy(network(inputs[part]), labels[part])
        summed += torch.autograd.grad(loss * len(labels[part]) / 11, network.weight)[0]
    torch.testing.assert_close(summed, whole)


@pytest.mark.parametrize(("count", "parts", "least"), [(11, 4, 1), (8, 3, 2), (3, 5, 2), (1, 4, 2)])
def test_parts_are_near_equal_and_cover_the_batch(count: int, parts: int, least: int) -> None:
    cut = shares(count, parts, least)
    assert [i for part in cut for i in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in cut]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, count)
    assert len(cut) <= parts


def test_accumulation_trains_the_same_weights(tiny_config: Config, tmp_path: Path) -> None:
    """Of a network without batch norm, which would see each part alone."""
    config = replace(tiny_config, backbone=BackboneOptions("cnn", depth=2, width=8, image_size=32))
    whole, _ = trained(config, tmp_path / "whole", batch_size=8)
    parts, _ = trained(config, tmp_path / "parts", batch_size=8, accumulate=4)
    smaller, _ = trained(config, tmp_path / "smaller", batch_size=2)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-4, rtol=1e-3)
    head = next(name for name in whole if name.startswith("head") and whole[name].ndim == 2)
    assert (smaller[head] - whole[head]).abs().max() > 1e-2


def test_recomputed_activations_change_no_bit(tiny_config: Config, tmp_path: Path) -> None:
    plain, _ = trained(tiny_config, tmp_path / "plain")
    again, _ = trained(tiny_config, tmp_path / "again", checkpoint_activations=True)
    assert any("running_mean" in name for name in plain)
    changed = [name for name, tensor in plain.items() if not torch.equal(again[name], tensor)]
    assert changed == []


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    made = [
        nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        for i in range(4)
    ]
    return nn.Sequential(*made)


def test_recomputing_keeps_less_and_survives_copies() -> None:
    plain, images = blocks(), torch.randn(2, 3, 16, 16)
    saving = copy.deepcopy(plain)
    recompute(saving, ["0", "1", "2", "3"])
    recompute(saving, ["0"])  # once is enough
    assert saving.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(copy.deepcopy(saving)[0], Recomputed)
    assert kept_bytes(saving, images) < kept_bytes(plain, images) / 2


def test_what_is_kept_is_counted_by_hand() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2))
    # the input (N, 4) for the first weights, the sigmoid's output (N, 6) for itself and the second
    assert kept_bytes(network, torch.randn(5, 4)) == 4 * (5 * 4 + 5 * 6)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    tried: list[int] = []

    def try_step(count: int) -> None:
        tried.append(count)
        if count > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert fitting_parts(try_step, 32, 2) == 4
    assert tried == [32, 16, 8]


def test_what_never_fits_is_told_and_other_errors_pass() -> None:
    def never(count: int) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    def wrong(count: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(UserError, match="not even a batch of 2 pictures fits"):
        fitting_parts(never, 32, 2)
    with pytest.raises(RuntimeError, match="multiplied"):
        fitting_parts(wrong, 32, 2)
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_estimated_parts_grow_as_memory_shrinks() -> None:
    found = [estimated_parts(1000, 64, 2, available) for available in (10**9, 100_000, 50_000, 1)]
    assert found == [1, 2, 4, 32]
    assert estimated_parts(10**12, 64, 2, None) == 1


def test_the_automatic_size_leaves_steps_to_take() -> None:
    assert [batch_size_for(n) for n in (3, 400, 1000, 10**6)] == [8, 16, 32, 128]


def test_auto_writes_what_it_found_into_the_recipe(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transferkit.finetuning.batch_parts.available_bytes", lambda device: 400_000
    )
    found, events = trained(tiny_config, tmp_path / "run", batch_size="auto")
    training = config_of(open_run(tmp_path / "run")).training
    assert training.batch_size == 8
    assert training.accumulate in (2, 4), training.accumulate
    said = [e.text for e in events if isinstance(e, Notice) and "does not fit" in e.text]
    assert said == [
        f"a batch of 8 does not fit into memory: {training.accumulate} parts of "
        f"{8 // training.accumulate}, their gradients added up"
    ]
    same, _ = trained(tiny_config, tmp_path / "same", batch_size=8, accumulate=training.accumulate)
    assert all(torch.equal(same[name], tensor) for name, tensor in found.items())


def test_classes_whose_tables_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.training.memory.available_bytes", lambda device: 10**9)
    refuse_more_classes(5000, 2000)  # 0.92 GB
    refuse_more_classes(4999, 10**7)
    with pytest.raises(UserError, match=r"100,000 classes are too many .*\n.* 243 GB in all"):
        refuse_more_classes(100_000, 1000)
    monkeypatch.setattr("transferkit.training.memory.available_bytes", lambda device: None)
    refuse_more_classes(100_000, 1000)  # where nobody knows, it is tried
