"""Tokens and passwords are found nowhere: not in what is shown, not in any file that is kept."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

Cli = Callable[..., Any]
PASSWORD, TOKEN = "open-sesame", "hf_" + "Zy98XwVu" * 4
SOURCE = f"memory://ali:{PASSWORD}@bucket/{{train,val}}.tar"
OPTIONS = (
    *("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32"),
    *("--stages", "1:1, all:1", "--views", "1", "--batch-size", "6", "--engine", "torch"),
)


@pytest.fixture
def store(pictures: Path, pack: Callable[..., Path], tmp_path: Path) -> Iterator[None]:
    """Shards that lie at an address with a name and a password in it."""
    system = fsspec.filesystem("memory")
    for split in ("train", "val"):
        members: dict[str, bytes] = {}
        for number, file in enumerate(sorted((pictures / split).rglob("*.png"))):
            members[f"{number:03d}.png"] = file.read_bytes()
            members[f"{number:03d}.cls"] = file.parent.name.encode()
        data = pack(tmp_path / f"{split}.tar", members).read_bytes()
        system.pipe(f"/ali:{PASSWORD}@bucket/{split}.tar", data)
    yield
    system.store.clear()


def holding(*folders: Path) -> list[str]:
    """Return the files below folders that hold a secret, in their contents or their names."""
    secrets = [secret.encode() for secret in (PASSWORD, TOKEN, "ali:")]
    files = [file for folder in folders for file in folder.rglob("*")]
    texts = {file: file.read_bytes() if file.is_file() else b"" for file in files}
    return [
        str(file)
        for file, data in texts.items()
        if any(secret in data + os.fsencode(file) for secret in secrets)
    ]


@pytest.mark.usefixtures("store")
def test_a_password_in_an_address_is_kept_nowhere(
    cli: Cli, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    results = [cli("finetune", SOURCE, *OPTIONS, "--out", "run")]
    assert (
        'path = "memory://REDACTED@bucket/{train,val}.tar"' in Path("run/recipe.toml").read_text()
    )
    weights = Path("run/model.safetensors").read_bytes()
    fsspec.filesystem("memory").store.clear()
    Path("run/checkpoints/last.pt").unlink()
    results += [
        cli("finetune", "--resume", "run"),  # from the copy, whose address is not needed
        cli("finetune", "--recipe", "run", "--out", "again"),
        cli("report", "run", "again", "--output", "both.html"),
        cli("inspect", "memory://REDACTED@bucket/{train,val}.tar"),
        cli("predict", "run", "memory://REDACTED@bucket/val.tar", "-o", "rows.csv"),
        cli("export", "run", "--output", "model.onnx", "--pictures", "4"),
    ]
    assert [result.code for result in results] == [0] * len(results)
    assert Path("again/model.safetensors").read_bytes() == weights
    assert holding(Path(), own_cache) == []
    assert not any(s in r.out + r.err for r in results for s in (PASSWORD, TOKEN, "ali:"))


@pytest.mark.usefixtures("store")
def test_an_address_without_its_password_is_refused_where_no_copy_is_left(cli: Cli) -> None:
    result = cli("inspect", "memory://REDACTED@bucket/train.tar")
    assert result.code == 2
    assert result.message[0].endswith("memory://REDACTED@bucket/train.tar were not kept")
    absent = cli("inspect", f"memory://ali:{PASSWORD}@bucket/none.tar", "--json")
    assert absent.code == 2
    assert absent.json["error"]["where"] == "memory://REDACTED@bucket/none.tar"


@pytest.mark.parametrize("more", [(), ("--debug",), ("--json",)])
def test_messages_and_tracebacks_hide_secrets(more: tuple[str, ...]) -> None:
    address = f"nosuch://ali:{PASSWORD}@host/a.tar?X-Amz-Signature={TOKEN}.tar"
    done = subprocess.run(
        [sys.executable, "-m", "transferkit", "inspect", address, *more],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_TOKEN": TOKEN},
    )
    assert done.returncode in (1, 2)
    told = done.stdout + done.stderr
    assert "nosuch://REDACTED@host/a.tar?X-Amz-Signature=REDACTED" in told
    assert not any(secret in told for secret in (PASSWORD, TOKEN, "ali:"))
    assert ("Traceback" in told) == ("--debug" in more)
