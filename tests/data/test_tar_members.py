import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transferkit.data.decode import DecodeError, probe
from transferkit.data.tar_members import archive_of, list_members, read_member
from transferkit.errors import UserError

Pack = Callable[..., Path]
MEMBERS = {"a/1.jpg": b"first", "2.jpg": b"x" * 2000, "n.txt": b""}


def failure(archive: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_members(archive)
    assert str(archive) in caught.value.what
    return str(caught.value).replace(str(archive), "A")


def test_members_are_read_by_their_path(tmp_path: Path, pack: Pack) -> None:
    archive = pack(tmp_path / "x.tar", MEMBERS)
    assert [member.name for member in list_members(archive)] == list(MEMBERS)
    for name, content in MEMBERS.items():
        assert read_member(archive / name) == content
    with pytest.raises(FileNotFoundError):
        read_member(archive / "3.jpg")
    with pytest.raises(FileNotFoundError):
        read_member(tmp_path / "y.tar" / "2.jpg")


def test_the_reader_of_the_standard_library_finds_the_same(tmp_path: Path, pack: Pack) -> None:
    long = {"d" * 90 + "/" + "n" * 200 + ".jpg": b"long", "ü.jpg": b"unicode", **MEMBERS}
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        archive = tmp_path / f"{kind}.tar"
        with tarfile.open(archive, "w", format=kind) as tar:
            for name, content in long.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        with tarfile.open(archive) as tar:
            for info in tar:
                opened = tar.extractfile(info)
                assert opened is not None
                assert read_member(archive / info.name) == opened.read() == long[info.name]


def test_a_changed_archive_is_read_anew(tmp_path: Path, pack: Pack) -> None:
    archive = pack(tmp_path / "x.tar", {"1.jpg": b"old"})
    assert read_member(archive / "1.jpg") == b"old"
    pack(archive, {"0.jpg": b"0" * 600, "1.jpg": b"new"})
    assert read_member(archive / "1.jpg") == b"new"


def test_dots_and_doubled_slashes_in_names_mean_nothing(tmp_path: Path, pack: Pack) -> None:
    archive = pack(tmp_path / "x.tar", {"./1.jpg": b"1", "a//./2.jpg": b"2"})
    assert [member.name for member in list_members(archive)] == ["1.jpg", "a/2.jpg"]
    assert read_member(archive / "a/2.jpg") == b"2"


def test_links_and_devices_are_listed_but_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    archive = tmp_path / "x.tar"
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    with tarfile.open(archive, "w") as tar:
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "../secret.jpg"
            tar.addfile(info)
    assert [member.is_file for member in list_members(archive)] == [False] * 5
    for number in range(5):
        with pytest.raises(DecodeError, match="missing"):
            probe(archive / f"{number}.jpg")


@pytest.mark.parametrize("name", ["../1.jpg", "a/../../1.jpg", "/tmp/1.jpg", "a/.."])
def test_a_name_that_leads_outside_refuses_the_archive(
    name: str, tmp_path: Path, pack: Pack
) -> None:
    archive = pack(tmp_path / "x.tar", {"0.jpg": b"0", name: b"1"})
    assert failure(archive).startswith(f"A holds a name that leads outside of it: {name}\n")
    with pytest.raises(UserError):
        read_member(archive / "0.jpg")


def test_what_is_no_whole_plain_archive_is_named(tmp_path: Path, pack: Pack) -> None:
    archive = pack(tmp_path / "x.tar", {"1.jpg": b"1" * 5000, "2.jpg": b"2" * 100})
    whole = archive.read_bytes()
    second = 512 + 5120
    for content, said in (
        (whole[: second - 1000], "A is cut short"),
        (whole[:second], "A is cut short"),
        (whole[: second + 100], "A is cut short"),
        (whole[: second + 512 + 50], "A is cut short"),
        (whole[: second + 1024], "A is cut short"),
        (
            whole[:second] + b"?" * 512 + whole[second + 512 :],
            f"A is damaged: header at byte {second:,}",
        ),
        (whole + whole, "A goes on after its end: it was joined of several archives"),
        (b"", "A is not a tar archive: empty file"),
        (b"no archive" * 100, "A is not a tar archive: "),
        (b"\x1f\x8b" + whole, "A is compressed (gzip): single pictures cannot be read from it"),
    ):
        archive.write_bytes(content)
        assert failure(archive).startswith(said)
    archive.unlink()
    assert failure(archive) == "A does not exist"


def test_a_member_twice_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("1.jpg", "./1.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    assert failure(archive).startswith("A holds 1.jpg twice")


def test_a_member_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    archive, size = tmp_path / "x.tar", (1 << 30) + 1
    info = tarfile.TarInfo("1.jpg")
    info.size = size
    with archive.open("wb") as file:  # a hole: it takes no space
        file.write(info.tobuf())
        file.seek(512 + (size + 511) // 512 * 512 + 1023)
        file.write(b"\0")
    with pytest.raises(DecodeError, match="larger than 1 GiB"):
        probe(archive / "1.jpg")


def test_only_a_file_called_tar_has_an_inside(tmp_path: Path) -> None:
    (tmp_path / "d.tar").mkdir()
    (tmp_path / "f.txt").write_bytes(b"x")
    assert archive_of(tmp_path / "d.tar" / "1.jpg") is None
    assert archive_of(tmp_path / "f.txt" / "1.jpg") is None
    assert archive_of(Path("/")) is None
    os.rmdir(tmp_path / "d.tar")


def test_any_damage_is_read_or_refused_with_a_message(tmp_path: Path, pack: Pack) -> None:
    long = "d" * 90 + "/" + "n" * 120 + ".jpg"
    whole = pack(tmp_path / "whole.tar", {long: b"1", "ü.jpg": b"2", "3.jpg": b"3"}).read_bytes()
    generator = np.random.default_rng(0)
    archive = tmp_path / "x.tar"
    refused = 0
    for _ in range(1000):
        content = bytearray(whole)
        start = 512 * int(generator.integers(0, 7))
        for at in generator.integers(start, start + 512, int(generator.integers(1, 4))):
            content[at] = generator.integers(0, 256)
        block = bytes(content[start : start + 512])
        if generator.random() < 0.8:  # a header whose checksum is right is looked at
            total = sum(block[:148]) + sum(block[156:]) + 8 * 32
            content[start + 148 : start + 156] = b"%06o\0 " % total
        archive.write_bytes(content)
        try:
            list_members(archive)
        except UserError:
            refused += 1
    assert 100 < refused < 1000
