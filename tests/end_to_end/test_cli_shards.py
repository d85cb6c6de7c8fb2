import csv
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from safetensors.numpy import load_file

from transferkit.recipes.reading import config_of
from transferkit.reporting.gather import gather
from transferkit.runs.folder import open_run

Cli = Callable[..., Any]
OPTIONS = (
    *("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32"),
    *("--stages", "1:2@1e-2, all:1", "--views", "1", "--batch-size", "6", "--engine", "torch"),
)


@pytest.fixture(scope="session")
def shards(
    pictures: Path, pack: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The labelled pictures in train-0.tar, train-1.tar and val-0.tar, each class in both."""
    root = tmp_path_factory.mktemp("shards")
    for split, parts in (("train", 2), ("val", 1)):
        files = sorted((pictures / split).rglob("*.png"), key=lambda file: (file.stem, file.parent))
        for part in range(parts):
            members: dict[str, bytes] = {}
            for number, file in enumerate(files[part::parts]):
                members[f"{number:03d}.png"] = file.read_bytes()
                members[f"{number:03d}.cls"] = file.parent.name.encode()
            pack(root / f"{split}-{part}.tar", members)
    return root


@pytest.fixture(scope="session")
def unpacked(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files in folders named like the shards, and manifest.csv."""
    root = tmp_path_factory.mktemp("unpacked")
    lines = ["path,label,split"]
    for archive in sorted(shards.glob("*.tar")):
        with tarfile.open(archive) as tar:
            tar.extractall(root / archive.name, filter="data")
        for file in sorted((root / archive.name).glob("*.png")):
            label, split = file.with_suffix(".cls").read_text(), archive.name.split("-")[0]
            lines.append(f"{archive.name}/{file.name},{label},{split}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


def without_times(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith("seconds")}
            for row in csv.DictReader(file)
        ]


def test_finetune_learns_from_shards_what_it_learns_from_files(
    shards: Path, unpacked: Path, cli: Cli
) -> None:
    one = cli("finetune", shards / "{train-{0,1},val-0}.tar", *OPTIONS, "--out", "one")
    assert one.code == 0, one.err
    other = cli("finetune", "--manifest", unpacked / "manifest.csv", *OPTIONS, "--out", "other")
    assert other.code == 0, other.err
    for name in ("metrics.csv", "predictions.csv"):
        assert without_times(Path("one", name)) == without_times(Path("other", name))
    found, expected = load_file("one/model.safetensors"), load_file("other/model.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)
    run = open_run(Path("one"))
    data = gather(run, config_of(run), "")
    assert data.file(data.pictures[0]) == shards / data.pictures[0].path


def test_predict_and_embed_read_shards_in_order(
    shards: Path, unpacked: Path, run: Path, cli: Cli
) -> None:
    names = ("val-0", "train-1")
    result = cli("predict", run, f"{shards}/{{val-0,train-1}}.tar", "-o", "rows.csv")
    assert result.code == 0, result.err
    folders = [unpacked / f"{name}.tar" for name in names]
    assert cli("predict", run, *folders, "-o", "expected.csv").code == 0
    found, expected = without_times(Path("rows.csv")), without_times(Path("expected.csv"))
    assert [row.pop("path") for row in found] == [
        row.pop("path").replace(str(unpacked), str(shards)) for row in expected
    ]
    assert found == expected
    assert len(found) == 21
    one = cli("predict", run, shards / "val-0.tar" / "001.png", "--json").json["predictions"][0]
    assert one["label"] == found[1]["label"]
    assert cli("embed", run, shards / "val-0.tar", "-o", "a.safetensors").code == 0
    assert cli("embed", run, unpacked / "val-0.tar", "-o", "b.safetensors").code == 0
    a, b = load_file("a.safetensors")["features"], load_file("b.safetensors")["features"]
    assert a.shape[0] == 12
    assert (a == b).all()


def test_selected_pictures_are_copied_out_of_shards(shards: Path, run: Path, cli: Cli) -> None:
    options = ("--select", "2", "--copy-to", "next", "--json")
    rows = cli("predict", run, shards / "val-0.tar", *options).json["predictions"]
    copies = sorted(Path("next").iterdir())
    assert [copy.name.split("-", 1)[1] for copy in copies] == [Path(r["path"]).name for r in rows]
    with tarfile.open(shards / "val-0.tar") as tar:
        for copy, row in zip(copies, rows, strict=True):
            member = tar.extractfile(Path(row["path"]).name)
            assert member is not None
            assert copy.read_bytes() == member.read()


def test_shards_at_an_address_are_fetched_and_used(shards: Path, run: Path, cli: Cli) -> None:
    store = fsspec.filesystem("memory")
    for archive in shards.glob("*.tar"):
        store.pipe(f"/bucket/{archive.name}", archive.read_bytes())
    try:
        source = "memory://bucket/{train-{0,1},val-0}.tar"
        learnt = cli("finetune", source, *OPTIONS, "--out", "run")
        assert learnt.code == 0, learnt.err
        assert "fetching memory://bucket/train-0.tar and 2 more" in learnt.out + learnt.err
        local = cli("evaluate", run, shards / "val-0.tar", "--json").json
        assert cli("evaluate", run, "memory://bucket/val-0.tar", "--json").json == local
        rows = cli("predict", run, "memory://bucket/val-0.tar", "--json").json["predictions"]
        assert rows[0]["path"].endswith("shards/memory/bucket/val-0.tar/000.png")
        assert cli("inspect", source, "--json").json["pictures"] == 30
        method = ("--method", "simclr", "--epochs", "1", "--backbone", "test_efficientnet")
        more = ("--image-size", "32", "--batch-size", "8", "--out", "pre")
        pretrained = cli("pretrain", source, *method, *more)
        assert pretrained.code == 0, pretrained.err
    finally:
        store.store.clear()


def test_bad_shards_are_refused_before_a_run_folder_is_made(
    tmp_path: Path, pack: Callable[..., Path], run: Path, cli: Cli
) -> None:
    pack(tmp_path / "x.tar", {"1.png": b"", "../2.png": b""})
    for command in (("finetune", tmp_path / "x.tar"), ("predict", run, tmp_path / "x.tar")):
        result = cli(*command)
        assert result.code == 1
        assert result.message[0].endswith("x.tar holds a name that leads outside of it: ../2.png")
    missing = cli("finetune", tmp_path / "{x,y,z}.tar")
    assert missing.code == 2
    assert missing.message[0] == "error: 2 shards of 3 not found"
    assert not Path("runs").exists() or not list(Path("runs").iterdir())
