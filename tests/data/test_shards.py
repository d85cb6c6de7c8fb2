import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_iterator

from transferkit.data.decode import decode
from transferkit.data.index import ScanOptions, scan
from transferkit.data.listing import Listing
from transferkit.data.named_pictures import list_images
from transferkit.data.shards import is_shards, read_shard, read_shards, split_key
from transferkit.data.unlabeled import scan_unlabeled
from transferkit.errors import UserError

Pack = Callable[..., Path]


def picture(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def labelled(start: int, labels: str) -> Mapping[str, bytes]:
    members = {}
    for number, label in enumerate(labels, start=start):
        members |= {f"{number:04d}.png": picture(number), f"{number:04d}.cls": label.encode()}
    return members


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_shards(source)
    return str(caught.value).replace(f"{source.parent}/", "")


def rows(listing: Listing) -> list[tuple[str, str, str]]:
    return [(entry.path, entry.label, entry.split) for entry in listing.entries]


def test_index_name_and_json_tell_the_class(tmp_path: Path, pack: Pack) -> None:
    members = {
        "1.jpg": b"", "1.cls": b"7\n",
        "2.jpg": b"", "2.cls": b"red fox",
        "3.jpg": b"", "3.json": b'{"caption": "x", "label": "hare"}',
        "4.jpg": b"", "4.json": b'{"class": 7}',
        "5.jpg": b"", "5.json": b'{"label": "not this"}', "5.cls": b"hare",
        "n/6.jpg": b"", "n/6.cls": b"red fox", "n/6.mask.png": b"", "n/6.txt": b"",
    }  # fmt: skip
    found = read_shards(pack(tmp_path / "x.tar", members))
    assert [(path, label) for path, label, _ in rows(found)] == [
        ("x.tar/1.jpg", "7"), ("x.tar/2.jpg", "red fox"), ("x.tar/3.jpg", "hare"),
        ("x.tar/4.jpg", "7"), ("x.tar/5.jpg", "hare"), ("x.tar/n/6.jpg", "red fox"),
    ]  # fmt: skip
    assert set(found.classes) == {"7", "red fox", "hare"}
    assert found.others["", ""] == {".txt": 1}
    kept = read_shards(tmp_path / "x.tar", exclude=("hare",))
    assert kept.excluded == {"hare"}
    assert len(kept.entries) == 4


def test_webdatasets_own_reader_agrees(tmp_path: Path, pack: Pack) -> None:
    first = {"__meta__": b"skipped", **labelled(0, "abca"), "s/0005.tif.JPEG": b"", "README": b""}
    pack(tmp_path / "a-00.tar", first)
    pack(tmp_path / "a-01.tar", {**labelled(7, "cb"), "d.x/0.PNG": picture(50), "d.x/0.cls": b"a"})
    pattern = tmp_path / "a-{00..01}.tar"
    theirs = []
    for url in expand_urls(str(pattern)):
        with open(url, "rb") as stream:
            files = ({"__url__": url, **file} for file in tar_file_iterator(stream))
            for sample in group_by_keys(files):
                suffix = next((name for name in ("png", "tif.jpeg") if name in sample), None)
                if suffix is not None:
                    label = sample.get("cls", b"").decode()
                    theirs.append((Path(url).name, sample["__key__"], label, sample[suffix]))
    ours = []
    for file in (tmp_path / "a-00.tar", tmp_path / "a-01.tar"):
        for sample in read_shard(file).samples:
            member, key = sample.member, split_key(sample.member.name)[0]
            with file.open("rb") as shard:
                shard.seek(member.offset)
                content = shard.read(member.size)
                label = ""
                if "cls" in sample.labels:
                    shard.seek(sample.labels["cls"].offset)
                    label = shard.read(sample.labels["cls"].size).decode()
            ours.append((file.name, key, label, content))
    assert ours == theirs
    assert len(ours) == 8
    assert list_images([pattern])[0] == tmp_path / "a-00.tar" / "0000.png"


def test_the_index_is_that_of_the_same_files_in_folders(tmp_path: Path, pack: Pack) -> None:
    pack(tmp_path / "s" / "0.tar", labelled(0, "abab" * 3))
    pack(tmp_path / "s" / "1.tar", {**labelled(20, "ccab" * 3), "x.jpg": b"damaged", "x.cls": b"a"})
    lines = ["path,label"]
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / "s" / name) as tar:
            tar.extractall(tmp_path / "f" / name, filter="data")
        for file in sorted((tmp_path / "f" / name).glob("*.*g")):
            lines.append(f"{name}/{file.name},{file.with_suffix('.cls').read_text()}")
    (tmp_path / "f" / "m.csv").write_text("\n".join(lines))
    ours = scan(tmp_path / "s" / "{0,1}.tar", ScanOptions(seed=3))
    theirs = scan(None, ScanOptions(manifest=tmp_path / "f" / "m.csv", seed=3))
    assert ours.fingerprint == theirs.fingerprint
    assert ours.root == tmp_path / "s"
    assert (ours.sizes == theirs.sizes).all()
    assert (ours.dhashes == theirs.dhashes).all()
    assert ours.unreadable == theirs.unreadable
    assert [u.path for u in ours.unreadable] == ["1.tar/x.jpg"]
    for position in range(len(ours)):
        pixels = [np.asarray(decode(index.file(position))) for index in (ours, theirs)]
        assert (pixels[0] == pixels[1]).all()


def test_without_labels_only_the_pictures_count(tmp_path: Path, pack: Pack) -> None:
    for name in ("1", "0"):
        pack(tmp_path / f"{name}.tar", {f"{n}.png": picture(10 * int(name) + n) for n in range(9)})
    index = scan_unlabeled(tmp_path / "*.tar", holdout=0.25)
    assert index.paths == tuple(f"{s}.tar/{n}.png" for s in "01" for n in range(9))
    assert index.classes == ("",)
    assert index.counts == {"": {"train": 13, "val": 5, "test": 0}}
    with pytest.raises(UserError, match="no folder for each identity"):
        scan_unlabeled(tmp_path / "*.tar", by_folder=True)


def test_a_shards_name_or_folder_tells_its_split(tmp_path: Path, pack: Pack) -> None:
    for number, name in enumerate(("train-0", "train-1", "val-0", "testing-0")):
        pack(tmp_path / f"{name}.tar", labelled(2 * number, "ab"))
        pack(tmp_path / "f" / name.split("-")[0] / f"{number}.tar", labelled(2 * number, "ab"))
    found = read_shards(tmp_path / "{train-{0,1},val-0,testing-0}.tar")
    splits = [split for _, _, split in rows(found)]
    assert splits == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert not found.lacks_val
    assert [split for _, _, split in rows(read_shards(tmp_path / "f" / "*" / "*.tar"))] == [
        *["test"] * 2, *["train"] * 4, *["val"] * 2,
    ]  # fmt: skip
    alone = read_shards(tmp_path / "train-*.tar")  # a part of these is drawn for validation
    assert {split for _, _, split in rows(alone)} == {""}
    assert alone.lacks_val
    assert {split for _, _, split in rows(read_shards(tmp_path / "val-0.tar"))} == {""}
    pack(tmp_path / "more.tar", labelled(9, "ab"))
    assert refusal(tmp_path / "{train-0,more}.tar").startswith("more.tar belongs to no split")


def test_what_is_wrong_with_shards_is_one_line_that_names_them(tmp_path: Path, pack: Pack) -> None:
    pack(tmp_path / "ok.tar", labelled(0, "ab"))
    pack(tmp_path / "none.tar", {"1.txt": b"", "1.cls": b"a"})
    assert refusal(tmp_path / "none.tar").startswith("none.tar holds no picture")
    pack(
        tmp_path / "bare.tar",
        {"1.png": b"", "2.png": b"", "2.cls": b" ", "3.png": b"", "3.cls": b"a"},
    )
    said = refusal(tmp_path / "bare.tar")
    assert said.startswith("2 pictures of bare.tar without a label\n")
    assert "bare.tar/1.png\n       bare.tar/2.png\n" in said
    pack(tmp_path / "two.tar", {"1.png": b"", "1.jpg": b""})
    assert refusal(tmp_path / "two.tar").startswith(
        "two.tar has 2 pictures of the key 1: 1.png and 1.jpg\n"
    )
    for name, content, reason in (
        ("1.json", b"{", "Expecting property name"),
        ("1.cls", b"\xff", "'utf-8' codec can't decode"),
        ("1.cls", b"a\nb", "it has several lines or odd characters"),
        ("1.cls", b"a" * (1 << 20) + b"a", "too large"),
    ):
        pack(tmp_path / "bad.tar", {"1.png": b"", name: content})
        assert refusal(tmp_path / "bad.tar").startswith(f"bad.tar/{name} is no label: {reason}")
    for content in (b"[1]", b'{"label": true}', b'{"label": null}', b"{}"):
        pack(tmp_path / "bad.tar", {"1.png": b"", "1.json": content})
        assert "1 picture of bad.tar without a label" in refusal(tmp_path / "bad.tar")
    assert refusal(tmp_path / "{ok,gone,lost}.tar").startswith("2 shards of 3 not found\n")
    assert refusal(tmp_path / "{ok.tar") == "{ok.tar: the braces do not match"
    assert refusal(tmp_path / "*z.tar") == "*z.tar matches no file"
    assert "compressed (gzip)" in refusal(zipped(tmp_path / "z.tar.gz"))


def zipped(archive: Path) -> Path:
    with tarfile.open(archive, "w:gz"):
        return archive


def test_links_and_unreadable_kinds_are_left_out_with_a_warning(tmp_path: Path, pack: Pack) -> None:
    archive = pack(tmp_path / "x.tar", {**labelled(0, "aabb"), "8.jxl": b"", "8.cls": b"a"})
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo("9.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        label = tarfile.TarInfo("9.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"b"))
    index = scan(archive)
    assert [(u.path, u.reason) for u in index.unreadable] == [
        ("x.tar/8.jxl", "JPEG XL (not supported)"),
        ("x.tar/9.png", "a link or a device, no plain file"),
    ]
    assert len(index) == 4


def test_what_names_shards(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    assert not is_shards(tmp_path / "folder.tar")
    assert not is_shards(tmp_path / "a.csv")
    for name in ("a.tar", "a-{0..3}.TAR", "*.tar", "a.tgz"):
        assert is_shards(tmp_path / name)
    assert is_shards(Path("s3://bucket/a-{0..3}.tar"))


def test_pictures_are_named_in_the_order_of_shards_and_members(tmp_path: Path, pack: Pack) -> None:
    pack(tmp_path / "b.tar", {"10.png": b"", "9.png": b"", "9.cls": b""})
    pack(tmp_path / "a.tar", {"x.png": b""})
    b, a = tmp_path / "b.tar", tmp_path / "a.tar"
    assert list_images([tmp_path / "{b,a}.tar"]) == [b / "10.png", b / "9.png", a / "x.png"]
    assert list_images([b / "9.png", tmp_path / "*.tar"]) == [
        b / "9.png", a / "x.png", b / "10.png",
    ]  # fmt: skip
    with pytest.raises(UserError, match="holds no picture"):
        list_images([pack(tmp_path / "c.tar", {"1.txt": b""})])
