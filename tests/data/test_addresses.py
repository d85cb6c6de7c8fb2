import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from transferkit import processes
from transferkit.config import Config
from transferkit.data import addresses
from transferkit.data.addresses import address_of, expand, fetch, local_path
from transferkit.data.index import scan
from transferkit.data.shards import root_of
from transferkit.errors import UserError
from transferkit.events import Event, Notice
from transferkit.recipes.reading import to_toml, validate
from transferkit.runs.life import absolute_paths

Pack = Callable[..., Path]


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    """An object store that lives in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def fetched(source: Path | str) -> list[str]:
    """Fetch, and return what was announced."""
    events: list[Event] = []
    fetch([None, "folder", source], events.append)
    return [event.text for event in events if isinstance(event, Notice)]


def refusal(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        fetched(source)
    return str(caught.value)


def test_an_address_survives_being_a_path(own_cache: Path) -> None:
    assert address_of(Path("s3://bucket/a/{0..1}.tar")) == "s3://bucket/a/{0..1}.tar"
    assert address_of("s3://bucket/a.tar") == address_of("s3:/bucket/a.tar") == "s3://bucket/a.tar"
    for plain in ("a/b.tar", "/a:b/c.tar", "C:/a.tar", "file:///a.tar"):
        assert address_of(plain) is None
    assert local_path(Path("file:///a/b.tar")) == Path("/a/b.tar")
    assert local_path("s3://bucket/../a.tar") == own_cache / "shards/s3/bucket/a.tar"


def test_braces_expand_as_in_a_shell_and_patterns_in_natural_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in expand(tmp_path / "{b,a}-{08..10}.tar")]
    assert names == ["b-08.tar", "b-09.tar", "b-10.tar", "a-08.tar", "a-09.tar", "a-10.tar"]
    for name in ("10.tar", "9.tar", "{0..3}.tar"):
        (tmp_path / name).touch()
    assert [path.name for path in expand(tmp_path / "*[09].tar")] == ["9.tar", "10.tar"]
    assert [path.name for path in expand(tmp_path / "{10,9,10}.tar")] == ["10.tar", "9.tar"]
    assert expand(tmp_path / "{0..3}.tar") == [tmp_path / "{0..3}.tar"]  # there is such a file
    with pytest.raises(UserError, match="more than 1,000,000 shards"):
        expand("{0..999999999}.tar")
    monkeypatch.setattr(addresses, "MOST_SHARDS", 100)
    with pytest.raises(UserError, match="more than 100 shards"):
        expand("{0..9}-{0..10}.tar")


def test_shards_at_an_address_are_copied_once(
    store: fsspec.AbstractFileSystem, tmp_path: Path, own_cache: Path
) -> None:
    for number in range(3):
        store.pipe(f"/bucket/s/{number}.tar", b"%d" % number * 1_000_000)
    source = Path("memory://bucket/s/{0..2}.tar")
    folder = own_cache / "shards/memory/bucket/s"
    assert fetched(source) == [f"fetching memory://bucket/s/0.tar and 2 more: 3 MB to {folder}"]
    assert expand(source) == [folder / f"{number}.tar" for number in range(3)]
    assert [file.read_bytes()[:1] for file in expand(source)] == [b"0", b"1", b"2"]
    assert root_of(source) == folder
    assert fetched(source) == []
    store.pipe("/bucket/s/1.tar", b"x" * 2_000_000)
    assert fetched(source) == [
        f"fetching memory://bucket/s/1.tar: 2 MB to {folder}; 2 shards fetched before"
    ]
    assert (folder / "1.tar").read_bytes() == b"x" * 2_000_000
    (folder / "2.tar").write_bytes(b"cut short")
    assert len(fetched(source)) == 1
    assert (folder / "2.tar").stat().st_size == 1_000_000


def test_the_index_of_fetched_shards_is_that_of_local_ones(
    store: fsspec.AbstractFileSystem, pictures: Path, tmp_path: Path, pack: Pack
) -> None:
    members = {}
    for number, file in enumerate(sorted((pictures / "train").rglob("*.png"))):
        members |= {f"{number}.png": file.read_bytes(), f"{number}.cls": file.parent.name.encode()}
    local = pack(tmp_path / "a.tar", members)
    store.pipe("/bucket/a.tar", local.read_bytes())
    fetched("memory://bucket/a.tar")
    assert scan(Path("memory://bucket/a.tar")).fingerprint == scan(local).fingerprint


def test_of_several_processes_each_copies_its_share(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        store.pipe(f"/b/{number}.tar", b"x")
    monkeypatch.setattr(processes, "share", lambda items: items[3:])
    fetched("memory://b/{0..4}.tar")
    assert [file.exists() for file in expand("memory://b/{0..4}.tar")] == [False] * 3 + [True] * 2


def test_what_cannot_be_fetched_is_named(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe("/b/1.tar", b"x" * 5_000_000)
    assert refusal("memory://b/{1..3}.tar") == (
        "2 shards of 3 not found\n       memory://b/2.tar\n       memory://b/3.tar"
    )
    assert "patterns are for local files" in refusal("memory://b/*.tar")
    assert "at an address only shards are read" in refusal("memory://b/folder")
    assert refusal("nosuch://b/1.tar").startswith(
        "nosuch://b/1.tar cannot be read: Protocol not known"
    )
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "size", broken)
        assert refusal("memory://b/1.tar") == (
            "memory://b/1.tar cannot be read: Unable to locate credentials\n"
            "       check the address, your credentials, and the network"
        )
    with monkeypatch.context() as patch:
        patch.setattr(addresses.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        assert refusal("memory://b/1.tar").startswith("5 MB are to be fetched; ")
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "size", lambda *_: 7)
        said = refusal("memory://b/1.tar")
        assert "5,000,000 bytes came, 7 were announced" in said
    assert len(fetched("memory://b/1.tar")) == 1  # the copy that did not fit counts for nothing


def test_copies_that_cannot_be_kept_are_told_of_with_advice(
    store: fsspec.AbstractFileSystem, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe("/b/1.tar", b"x")

    def refuse(path: Path, write: object) -> None:
        raise PermissionError(13, "Permission denied", str(path.with_name(".1.tar.tmp")))

    with monkeypatch.context() as patch:
        patch.setattr(addresses, "write_atomically", refuse)
        said = refusal("memory://b/1.tar")
    assert said.startswith(f"cannot write to {own_cache}/shards/memory/b: Permission denied")
    assert "TRANSFERKIT_CACHE" in said
    (own_cache / "shards" / "memory" / "b").rmdir()
    (own_cache / "shards" / "memory" / "b").write_text("a file in the way")
    assert "TRANSFERKIT_CACHE" in refusal("memory://b/1.tar")


def broken(*_: object) -> int:
    raise RuntimeError("Unable to locate credentials")


def test_an_address_in_a_configuration_stays_one(tiny_config: Config) -> None:
    source = Path("s3://bucket/{0..3}.tar")
    config = replace(tiny_config, data=replace(tiny_config.data, path=source))
    assert absolute_paths(config).data.path == source
    written = to_toml(config)
    assert 'path = "s3://bucket/{0..3}.tar"' in written
    assert validate(tomllib.loads(written)).data.path == source
