import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.loader import CLEAN, ViewMaker, ahead, epoch_order, epoch_views
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.views import clean_view, varied_view
from transferkit.errors import UserError

SIZE = Preprocessing(24, 24, 0.9, "center", "bicubic", (0.5,) * 3, (0.5,) * 3)


def picture(path: Path, side: int = 40) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_ahead_keeps_the_order() -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(ahead(slow_at_first, range(200))) == [i * i for i in range(200)]
    assert list(ahead(slow_at_first, [])) == []


def test_ahead_holds_few_results_and_ends_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    taken = []

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    threads = threading.active_count()
    results = ahead(lambda i: i, items())
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 4 * 2
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_ahead_passes_an_error_on_in_its_place() -> None:
    def fail_at_three(item: int) -> int:
        return 1 // (3 - item) if item == 3 else item

    results = ahead(fail_at_three, range(50))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_views_are_those_of_seed_picture_and_number(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    maker = ViewMaker(SIZE, "strong", True, seed=7)
    made = maker.views(path, 11, (2, CLEAN, 1))
    image = Image.open(path).convert("RGB")
    expected = [
        varied_view(image, SIZE, "strong", True, np.random.default_rng([7, 11, 2])),
        clean_view(image, SIZE),
        varied_view(image, SIZE, "strong", True, np.random.default_rng([7, 11, 1])),
    ]
    assert made.shape == (3, 3, 24, 24)
    assert np.array_equal(made, np.stack(expected))
    assert np.array_equal(maker.views(path, 11, (1,))[0], made[2])  # alone or with others
    assert not np.array_equal(maker.views(path, 12, (1,))[0], made[2])
    assert not np.array_equal(ViewMaker(SIZE, "strong", True, 8).views(path, 11, (1,))[0], made[2])


def test_a_lost_picture_is_a_user_error(tmp_path: Path) -> None:
    maker = ViewMaker(SIZE)
    with pytest.raises(UserError, match=r"gone\.png can no longer be read"):
        maker.views(tmp_path / "gone.png", 0, (CLEAN,))
    path = picture(tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut\.png can no longer be read"):
        maker.views(path, 0, (CLEAN,))


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_an_epoch_visits_every_picture_once_in_an_order_of_its_own(balance: str) -> None:
    labels = np.arange(50) % 3
    orders = [epoch_order(labels, balance, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(epoch_order(labels, balance, 1, 1), orders[3])


def test_the_sampler_makes_classes_equally_likely() -> None:
    labels = np.repeat([0, 1, 2], [500, 90, 10])
    drawn = np.concatenate([epoch_order(labels, "sampler", 0, epoch) for epoch in range(20)])
    counts = np.bincount(labels[drawn])
    deviation = np.sqrt(len(drawn) * 1 / 3 * 2 / 3)
    assert abs(counts - len(drawn) / 3).max() < 4 * deviation
    within = np.bincount(drawn, minlength=600)[590:]  # pictures of one class: alike as well
    assert abs(within - 400).max() < 4 * np.sqrt(400)
    assert len(epoch_order(labels, "sampler", 0, 0)) == 600


@pytest.mark.parametrize("num_views", [1, 2, 4])
def test_every_picture_shows_each_view_once_per_cycle(num_views: int) -> None:
    for cycle in range(3):
        epochs = range(cycle * num_views, (cycle + 1) * num_views)
        shown = np.stack([epoch_views(30, num_views, 5, epoch) for epoch in epochs])
        assert np.array_equal(
            np.sort(shown, axis=0), np.repeat(np.arange(num_views), 30).reshape(-1, 30)
        )
    first = epoch_views(30, 4, 5, 0)
    assert len(np.unique(first)) == 4  # not all pictures show the same view
    assert not np.array_equal(first, epoch_views(30, 4, 5, 4))
    assert not np.array_equal(first, epoch_views(30, 4, 6, 0))


def test_without_a_number_of_views_every_epoch_has_new_ones() -> None:
    shown = [epoch_views(5, None, 0, epoch) for epoch in range(4)]
    assert [view.tolist() for view in shown] == [
        [k] * 5 for k in (1, 2, 3, 4)
    ]  # 0 is the clean one
