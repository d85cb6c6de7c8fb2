from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.closed_form.label_gain import LabelGain
from transferkit.closed_form.sums import one_hot
from transferkit.inference.select import Pool, farthest_first, score_by
from transferkit.inference.uncertainty import uncertainty_of


def write(folder: Path, name: str, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(folder / name)
    return folder / name


def test_the_unsurest_come_first_and_copies_only_once(tmp_path: Path) -> None:
    pool = Pool(wanted=3, criterion="entropy")
    files = [write(tmp_path, f"{n}.png", n) for n in range(30)]
    twin = write(tmp_path, "twin.png", 29)
    again = tmp_path / "again.jpg"
    Image.open(files[29]).save(again, quality=70)
    rng = np.random.default_rng(0)
    for n, file in enumerate(files):
        pool.add(file, n / 30, rng.normal(size=4))
    pool.add(twin, 0.95, rng.normal(size=4))
    pool.add(again, 0.96, rng.normal(size=4))
    chosen = pool.choose(None)
    assert chosen[0][0] == files[29]
    assert len(chosen) == 3
    assert not {twin, again} & {file for file, _ in chosen}
    assert all(score > 0.5 for _, score in chosen)


def test_farthest_first_by_hand() -> None:
    angles = np.deg2rad([0, 5, 90, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert farthest_first(points, 3) == [0, 3, 2]
    assert farthest_first(points, 1, avoided=points[3:]) == [0]


def test_diverse_takes_one_of_each_group_and_stays_away_from_labelled(tmp_path: Path) -> None:
    pool = Pool(wanted=2, criterion="diverse", seed=0)
    centres = np.eye(3)
    for n in range(15):
        noise = np.random.default_rng(n).normal(scale=0.05, size=3)
        pool.add(write(tmp_path, f"{n}.png", n), 0.0, centres[n % 3] + noise)
    chosen = pool.choose(labelled=centres[:1])
    groups = {int(file.stem) % 3 for file, _ in chosen}
    assert groups == {1, 2}


def test_scores() -> None:
    found = uncertainty_of(np.array([[[0.9, 0.1], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5]]]))
    assert score_by("bald", found).argmax() == 0
    assert score_by("entropy", found)[0] == score_by("entropy", found)[1]
    assert score_by("margin", found).tolist() == [1, 1]
    assert score_by("diverse", found).tolist() == [0, 0]


def test_by_solve_the_label_that_changes_most_of_the_others_comes_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(20, 4)).astype(np.float32))
    gain = LabelGain(features, one_hot(torch.arange(20) % 2, 2), [4])
    pool = Pool(wanted=2, criterion="solve", gain=gain)
    rows = rng.normal(size=(12, 4)).astype(np.float32)
    files = [write(tmp_path, f"{n}.png", n) for n in range(12)]
    for n, (file, row) in enumerate(zip(files, rows, strict=True)):
        pool.add(file, 1.0 + n / 100, row)
    every = torch.from_numpy(rows)
    worth = gain.change(every, every) * (1 + torch.arange(12) / 100)
    chosen = pool.choose(None)
    assert chosen[0][0] == files[int(worth.argmax())]
    assert chosen[0][1] == pytest.approx(float(worth.max()))
    assert len(chosen) == 2
