"""What the other pictures say of each one's label: the features, and scores out of sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transferkit.closed_form.left_out import solve
from transferkit.config import BackboneOptions, Cache, Config, Data, Device, Stage
from transferkit.data.index import DatasetIndex
from transferkit.finetuning.evidence import (
    Evidence,
    evidence_of,
    out_of_sample,
    run_evidence,
)
from transferkit.finetuning.pictures import read_evidence
from transferkit.training import depth_features
from transferkit.verbs.finetune import finetune


@pytest.fixture
def config(strips: Path, tmp_path: Path) -> Config:
    """A solve on a small network without a choice of framing."""
    return Config(
        data=Data(path=strips),
        backbone=BackboneOptions(
            "test_efficientnet", pretrained=False, image_size=32, crop="squash"
        ),
        cache=Cache(dir=tmp_path / "cache"),
        device=Device(accelerator="cpu", engine="torch"),
        stages=(Stage("solve", 1),),
    )


def test_a_run_after_it_reads_no_picture_and_keeps_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_evidence(config, lambda _: None)
    assert len(found.positions) == len(found.labels) == len(found.index)
    read: list[int] = []
    true = depth_features.read_batches

    def counted(*given: Any) -> Any:
        read.append(len(given[2]))
        return true(*given)

    monkeypatch.setattr("transferkit.training.solve_features.read_batches", counted)
    finetune(config, tmp_path / "run", lambda _: None)
    assert sum(read) == 0
    kept = run_evidence(tmp_path / "run")
    assert kept.widths == found.widths
    files = [kept.index.file(int(p)) for p in kept.positions]
    order = [[found.index.file(int(p)) for p in found.positions].index(file) for file in files]
    assert torch.equal(kept.features, found.features[order])
    assert torch.equal(kept.labels, found.labels[order])


def toy(groups: np.ndarray | None) -> Evidence:
    """Thirty pictures of three classes that three of eight features tell."""
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(30) % 3
    features = torch.randn(30, 8, generator=generator)
    features[:, :3] += 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), 3)
    index = DatasetIndex(
        root=Path("/"),
        classes=("a", "b", "c"),
        paths=tuple(f"{n}.png" for n in range(30)),
        labels=labels,
        splits=np.array(["train"] * 30),
        digests=tuple(map(str, range(30))),
        sizes=np.full((30, 2), 9),
        dhashes=np.zeros(30, np.uint64),
        unreadable=(),
        warnings=(),
        groups=groups,
    )
    return evidence_of(index, np.arange(30), features, (3, 5))


@pytest.mark.parametrize("groups", [None, np.arange(30) // 6])
def test_out_of_sample_is_as_if_solved_without_the_group(groups: np.ndarray | None) -> None:
    evidence = toy(groups)
    answers = out_of_sample(evidence).argmax(1)
    whole = solve(evidence.problem, evidence.widths)
    leaving = np.arange(30) if groups is None else groups
    for group in np.unique(leaving):
        kept = torch.from_numpy(leaving != group)
        # the scale of the columns stays that of all pictures
        scaled = whole.spectrum.scale.of(evidence.features)
        rest, targets = scaled[kept], evidence.problem.targets[kept].double()
        center, mean = rest.mean(0), targets.mean(0)
        ridge = (rest - center).T @ (rest - center) + whole.penalty * 30 * torch.eye(8).double()
        weight = torch.linalg.solve(ridge, (rest - center).T @ (targets - mean))
        scores = (scaled[~kept] - center) @ weight + mean
        assert torch.equal(scores.argmax(1), answers[~kept])
