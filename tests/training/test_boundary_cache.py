import errno
import os
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.cli import environment_error
from transferkit.errors import UserError
from transferkit.files.cache_dir import default_cache_dir
from transferkit.training.boundary_cache import (
    BoundaryCache,
    CacheParts,
    cache_key,
    make_room,
    part_name,
    weights_digest,
)

SHAPE = (3, 2, 5)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def filled(root: Path, name: str, megabytes: int = 1, used: int = 0) -> Path:
    """A complete cache of so many MB, last used so many seconds after the epoch."""
    with BoundaryCache(root / name, megabytes, (2**18,), "float32") as cache:
        cache.append(torch.zeros(megabytes, 2**18))
    os.utime(root / name, (used, used))
    return root / name


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    data = rows(10)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, dtype) as cache:
        assert (cache.rows_done, cache.complete) == (0, False)
        for start in (0, 4, 8):
            cache.append(data[start : start + 4])
        assert cache.complete
        assert (
            cache.nbytes
            == (tmp_path / "c" / "rows.bin").stat().st_size
            == 300 * cache.dtype.itemsize
        )
    with BoundaryCache(tmp_path / "c", 10, SHAPE, dtype) as again:
        assert again.complete
        picks = np.array([7, 0, 7, 9])
        found = again.read(picks)
        assert found.dtype == torch.float32
        expected = data if dtype == "float32" else data.half().float()
        assert torch.equal(found, expected[picks])


@pytest.mark.parametrize(("file", "row_bytes"), [("rows.bin", 4 * 30), ("sums.bin", 4)])
def test_a_damaged_row_and_all_after_it_are_computed_again(
    tmp_path: Path, file: str, row_bytes: int
) -> None:
    data = rows(10)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        cache.append(data)
    path = tmp_path / "c" / file
    damaged = bytearray(path.read_bytes())
    damaged[6 * row_bytes + 1] ^= 4  # one bit
    path.write_bytes(damaged)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as again:
        assert (again.rows_done, again.complete) == (6, False)
        again.append(data[6:])
        assert torch.equal(again.read(np.arange(10)), data)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as mended:
        assert mended.complete


@pytest.mark.parametrize("file", ["rows.bin", "sums.bin"])
def test_what_was_cut_off_is_computed_again(tmp_path: Path, file: str) -> None:
    data = rows(10)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        cache.append(data)
    path = tmp_path / "c" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as again:
        assert again.rows_done == 5


def test_pages_are_given_back_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferkit.training.boundary_cache.FORGET_BYTES", 100)
    data = rows(10)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        cache.append(data)
        for _ in range(3):
            assert torch.equal(cache.read(np.arange(10)), data)


def test_a_fill_goes_on_where_it_ended(tmp_path: Path) -> None:
    data = rows(10)
    with BoundaryCache(tmp_path / "whole", 10, SHAPE, "float16") as whole:
        whole.append(data)
    for start in (0, 3, 6, 9):  # opened anew every time
        with BoundaryCache(tmp_path / "parts", 10, SHAPE, "float16") as parts:
            assert parts.rows_done == start
            parts.append(data[start : start + 3])
    names = ("rows.bin", "state.json")
    assert all(
        (tmp_path / "whole" / n).read_bytes() == (tmp_path / "parts" / n).read_bytes()
        for n in names
    )


SAME = '"shape": [3, 2, 5], "num_rows": 10, "dtype": "float32"'


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[]", '{"shape": [1], "num_rows": 10, "rows_done": 10}'),
        *(f'{{"rows_dond": 10, {SAME}}}', f'{{"rows_done": "10", {SAME}}}'),
        *(f'{{"rows_done": 90, {SAME}}}', f'{{"rows_done": -1, {SAME}}}'),
    ],
)
def test_a_state_that_does_not_fit_starts_anew(tmp_path: Path, damage: str) -> None:
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        cache.append(rows(10))
    (tmp_path / "c" / "state.json").write_text(damage)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        assert cache.rows_done == 0


def test_a_full_disk_is_told_and_leaves_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real = rows(10), os.pwrite
    room = [100]

    def short(file: int, content: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(room[0], len(content))
        room[0] -= taken
        return real(file, content[:taken], offset)

    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        cache.append(data[:4])
        monkeypatch.setattr(os, "pwrite", short)
        with pytest.raises(UserError) as caught:
            cache.append(data[4:8])
    assert "the disk is full" in str(caught.value)
    assert "--cache-dir" in caught.value.remedy
    monkeypatch.setattr(os, "pwrite", real)
    with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
        assert cache.rows_done == 4
        cache.append(data[4:])
        assert torch.equal(cache.read(np.arange(10)), data)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
    data = rows(5)
    with BoundaryCache(tmp_path / "c", 5, SHAPE, "float32") as cache:
        cache.append(data)
        assert torch.equal(cache.read(np.arange(5)), data)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = rows(4)
    data[2, 0, 0, 0] = 70_000
    with BoundaryCache(tmp_path / "half", 4, SHAPE, "float16") as cache:
        with pytest.raises(UserError, match="up to 70000, too large for float16"):
            cache.append(data)
        assert cache.rows_done == 0
    with BoundaryCache(tmp_path / "full", 4, SHAPE, "float32") as cache:
        cache.append(data)
        assert cache.read(np.array([2]))[0, 0, 0, 0] == 70_000
    data[1] = float("nan")
    with (
        BoundaryCache(tmp_path / "nan", 4, SHAPE, "float32") as cache,
        pytest.raises(UserError, match="not numbers"),
    ):
        cache.append(data)


def test_an_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the cache in"):
        BoundaryCache(tmp_path / "file" / "c", 4, SHAPE, "float32")


def test_a_complete_cache_is_shared_at_once(tmp_path: Path) -> None:
    filled(tmp_path, "c")
    opened: list[BoundaryCache] = []

    def open_it() -> None:
        opened.append(BoundaryCache(tmp_path / "c", 1, (2**18,), "float32"))

    open_it()
    second = threading.Thread(target=open_it, daemon=True)
    second.start()
    second.join(5)
    assert [cache.complete for cache in opened] == [True, True]
    for cache in opened:
        cache.close()


def test_a_second_run_waits_for_the_one_that_fills(tmp_path: Path) -> None:
    first = BoundaryCache(tmp_path / "c", 10, SHAPE, "float32")
    first.append(rows(4))
    opened: list[int] = []

    def open_it() -> None:
        with BoundaryCache(tmp_path / "c", 10, SHAPE, "float32") as cache:
            opened.append(cache.rows_done)

    second = threading.Thread(target=open_it, daemon=True)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    first.append(rows(6))  # now it is complete
    second.join(5)
    assert opened == [10]
    first.close()


def test_keys_change_with_every_part() -> None:
    parts = {"data": "a", "size": [3, 4], "maker": {"level": "light", "seed": 0}}
    key = cache_key(parts)
    assert cache_key(dict(reversed(parts.items()))) == key  # whatever the order
    changed = [
        {**parts, "data": "b"},
        {**parts, "size": [4, 3]},
        {**parts, "maker": {"level": "light", "seed": 1}},
        {**parts, "more": None},
    ]
    assert len({key, *map(cache_key, changed)}) == 5


def test_weights_digest_sees_every_bit() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.tensor(7), "c": torch.zeros(4, 2, 3, 3)}
    digest = weights_digest(tensors)
    assert weights_digest(dict(reversed(tensors.items()))) == digest
    laid_out = tensors["c"].to(memory_format=torch.channels_last)
    assert weights_digest({**tensors, "c": laid_out}) == digest
    changed = [
        {**tensors, "a": torch.zeros(3, 2)},
        {**tensors, "a": torch.zeros(2, 3).half()},
        {**tensors, "a": torch.full((2, 3), -0.0)},
        {**tensors, "b": torch.tensor(8)},
        {"a": tensors["a"], "d": tensors["b"], "c": tensors["c"]},
        {"a": tensors["a"], "b": tensors["b"]},
    ]
    assert len({digest, *map(weights_digest, changed)}) == 7


def test_room_is_made_by_the_least_recently_used(tmp_path: Path) -> None:
    names = ("old", "older", "new")
    old, older, new = (filled(tmp_path, n, 2, t) for n, t in zip(names, (20, 10, 30), strict=True))
    megabyte = 2**20
    assert make_room(tmp_path, 2 * megabyte, 9 * megabyte) == ""
    assert all(path.exists() for path in (old, older, new))  # it fits
    assert make_room(tmp_path, 2 * megabyte, 6 * megabyte + 10**5) == ""
    assert [path.exists() for path in (older, old, new)] == [False, True, True]
    assert make_room(tmp_path, 4 * megabyte, 6 * megabyte + 10**5) == ""
    assert [path.exists() for path in (older, old, new)] == [False, False, True]
    assert make_room(tmp_path / "nowhere" / "yet", megabyte, megabyte) == ""


def test_what_does_not_fit_removes_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path, "a")
    assert make_room(tmp_path, 3 * 10**9, 2 * 10**9) == (
        "the cache would take 3.00 GB of the 2.00 GB allowed"
    )
    assert "and the disk has" in make_room(tmp_path, 10**15, 10**16)
    assert path.exists()


def test_the_cache_that_room_is_made_for_stays(tmp_path: Path) -> None:
    own, other = filled(tmp_path, "own", 2, 10), filled(tmp_path, "other", 2, 20)
    megabyte = 2**20
    assert make_room(tmp_path, 2 * megabyte, 5 * megabyte, frozenset(["own"])) == ""
    assert (own.exists(), other.exists()) == (True, True)  # 4 MB in all
    assert make_room(tmp_path, 2 * megabyte, 3 * megabyte, frozenset(["own"])) == ""
    assert (own.exists(), other.exists()) == (True, False)


def test_a_cache_in_use_is_not_removed(tmp_path: Path) -> None:
    path = filled(tmp_path, "a", 2)
    with BoundaryCache(path, 2, (2**18,), "float32"):
        make_room(tmp_path, 2**20, 2**21)
        assert path.exists()
    make_room(tmp_path, 2**20, 2**21)
    assert not path.exists()


def test_a_folder_that_cannot_be_looked_into_is_told_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", closed)
    with pytest.raises(UserError, match=r"cannot write the cache in .*: Permission denied") as told:
        make_room(tmp_path / "caches", 1, 2)
    assert "--cache-dir" in told.value.remedy
    error = PermissionError(13, "Permission denied", str(tmp_path / "cache" / "shards"))
    assert "--cache-dir" in environment_error(error).remedy
    error.filename = str(tmp_path / "pictures")
    assert environment_error(error).remedy == ""


def test_without_a_home_the_advice_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRANSFERKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="no home folder") as told:
        default_cache_dir()
    assert "--cache-dir" in told.value.remedy


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("TRANSFERKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/transferkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert default_cache_dir() == Path("/h/.cache/transferkit")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_are_read_as_one_cache(tmp_path: Path, count: int) -> None:
    starts = [15 * part // count for part in range(count + 1)]
    rows = torch.randn(15, 2)
    parts = []
    for number, (start, stop) in enumerate(pairwise(starts)):
        name = part_name("key", number, count)
        part = BoundaryCache(tmp_path / name, stop - start, (2,), "float32")
        part.append(rows[start:stop])
        parts.append(part)
    whole = CacheParts(parts, starts)
    wanted = np.array([14, 0, 7, 3, 3, 12])
    assert whole.num_rows == 15
    assert torch.equal(whole.read(wanted), rows[wanted])
    for part in parts:
        part.close()
