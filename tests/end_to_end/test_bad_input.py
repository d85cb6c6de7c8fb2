"""Whatever is given wrongly: one clear line, the right exit code, and nothing half-written."""

import json
import os
import resource
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from transferkit.runs.lock import only_process

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32)


@pytest.fixture
def flat(pictures: Path) -> Path:
    """A folder per class, three pictures each, free to be spoilt."""
    for kind in ("disc", "square"):
        (Path("flat") / kind).mkdir(parents=True)
        for number in range(3):
            shutil.copy(pictures / "train" / kind / f"{number}.png", Path("flat") / kind)
    return Path("flat")


@pytest.fixture
def refused(cli: Cli) -> Callable[..., list[str]]:
    """Run a command that must fail without leaving anything behind; return its message."""

    def check(code: int, *arguments: object) -> list[str]:
        before = sorted(Path().rglob("*"))
        result = cli(*arguments)
        assert result.code == code, result.err
        assert sorted(Path().rglob("*")) == before
        assert result.message[0].startswith("error: ")
        return [line for line in result.message if not line.startswith("warning: ")]

    return check


def huge_png(path: Path, side: int = 30_000) -> None:
    """Write a PNG of a few hundred bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b""))


Refused = Callable[..., list[str]]


def test_missing_folder(refused: Refused) -> None:
    what, remedy = refused(2, "finetune", "nowhere")
    assert what.endswith("nowhere does not exist")
    assert remedy == "give a folder of pictures, or --manifest FILE"


def test_empty_folder(refused: Refused) -> None:
    Path("empty").mkdir()
    what, remedy = refused(1, "finetune", "empty")
    assert what.endswith("/empty is empty")
    assert remedy.startswith("give a folder with one folder for each class")


def test_file_instead_of_folder(flat: Path, refused: Refused) -> None:
    what, remedy = refused(2, "finetune", flat / "disc" / "0.png")
    assert what.endswith("0.png is a file, not a folder")
    assert remedy == "give the folder that holds the classes"
    Path("table.csv").write_text("path,label\n")
    assert "give it as --manifest" in refused(2, "finetune", "table.csv")[1]


def test_pictures_without_class_folders(flat: Path, refused: Refused) -> None:
    what, remedy = refused(1, "finetune", flat / "disc")
    assert what.endswith("flat/disc holds 3 pictures but no class folders")
    assert "one folder for each class" in remedy


def test_one_class_only(flat: Path, refused: Refused) -> None:
    shutil.rmtree(flat / "square")
    what, remedy = refused(1, "finetune", flat)
    assert what.endswith("flat has only one class: disc")
    assert "two classes or more" in remedy


def test_class_with_one_picture(flat: Path, refused: Refused) -> None:
    for number in (1, 2):
        (flat / "square" / f"{number}.png").unlink()
    what, remedy = refused(1, "finetune", flat)
    assert what == (
        "error: class square cannot be in both training and validation: it has 1 picture"
    )
    assert remedy.startswith("add pictures")


def test_class_folder_without_pictures(flat: Path, refused: Refused) -> None:
    for file in (flat / "square").iterdir():
        file.unlink()
        file.with_suffix(".txt").write_text("no picture")
    what, where, remedy = refused(1, "finetune", flat)
    assert what.endswith("flat/square has no readable picture")
    assert where == "3 files found, none of them a picture: 3 .txt"
    assert remedy == "leave the class out with --exclude square"


def test_two_classes_without_pictures_and_the_advice_works(flat: Path, refused: Refused) -> None:
    for name in ("a", "b"):
        (flat / name).mkdir()
        (flat / name / "note.txt").write_text("x")
    message = refused(1, "finetune", flat)
    assert message[0].endswith("2 classes of " + message[0].split(" of ")[1])
    advice = message[-1].removeprefix("leave the classes out with ")
    assert advice == "--exclude a --exclude b"
    wrong = ("--set", "training.lr=0")  # stops before training: the advice itself is accepted
    assert "training.lr" in refused(2, "finetune", flat, *advice.split(), *wrong)[0]
    assert "only one class" in refused(1, "finetune", flat, *advice.split(), "--exclude", "disc")[0]


def test_train_and_val_with_other_class_names(flat: Path, refused: Refused) -> None:
    shutil.copytree(flat, "d/train")
    shutil.copytree(flat / "disc", "d/val/disc")
    shutil.copytree(flat / "square", "d/val/squares")
    what, where, known, remedy = refused(1, "finetune", "d")
    assert what == "error: 1 class not in train"
    assert where == "val: squares (did you mean square?)"
    assert known == "train has: disc, square"
    assert "--exclude" in remedy


@pytest.fixture
def spoilt(flat: Path) -> Path:
    """Pictures that are corrupt, truncated, empty, huge, and one that is named as another kind."""
    whole = (flat / "disc" / "0.png").read_bytes()
    (flat / "disc" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (flat / "disc" / "corrupt.png").write_bytes(bytes(range(256)) * 2)
    (flat / "disc" / "zero.png").write_bytes(b"")
    huge_png(flat / "square" / "huge.png")
    Image.new("RGB", (40, 40), (9, 200, 30)).save(flat / "square" / "webp.jpg", format="WEBP")
    return flat


REASONS = {
    "disc/corrupt.png": "not an image",
    "disc/truncated.png": "truncated",
    "disc/zero.png": "empty file",
    "square/huge.png": "900,000,000 pixels, more than the limit of 250,000,000 (see --max-pixels)",
}


def test_unreadable_pictures_stop_a_strict_run(spoilt: Path, refused: Refused) -> None:
    message = refused(1, "finetune", spoilt, "--strict")
    assert message[0].startswith("error: 4 unreadable pictures in ")
    assert message[1:5] == [f"{path}: {reason}" for path, reason in REASONS.items()]
    assert message[5].endswith("by running without --strict")


def test_unreadable_pictures_are_left_out_and_counted(spoilt: Path, cli: Cli) -> None:
    result = cli("finetune", spoilt, *TINY, "--stages", "1:1", "--out", "run", "--json")
    assert result.code == 0, result.err
    assert result.json["train_pictures"] + result.json["val_pictures"] == 7  # with the mis-named
    assert "warning: 4 of 11 pictures cannot be read and are left out" in result.err
    left_out = json.loads(Path("run/data.json").read_text())["left_out"]
    assert {item["path"]: item["reason"] for item in left_out} == REASONS


def test_a_huge_picture_costs_no_memory(flat: Path, cli: Cli) -> None:
    for number in range(8):
        huge_png(flat / "square" / f"huge{number}.png")  # 2.7 GB each, decoded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = cli("inspect", flat, "--json")
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(result.json["unreadable"]) == 8
    assert grown_mb < 200


def test_unknown_backbone(flat: Path, refused: Refused) -> None:
    what, near, remedy = refused(2, "finetune", flat, "--backbone", "resnett50")
    assert what == "error: unknown backbone 'resnett50'"
    assert near.startswith("did you mean resnet50 ")
    assert "transferkit models" in remedy


def test_hub_that_cannot_be_reached(
    flat: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferkit.backbones.hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("transferkit.backbones.create.cached_weights", lambda config: None)
    message = refused(1, "finetune", flat, "--backbone", "resnet10t")
    assert message[0] == "error: the weights of resnet10t cannot be downloaded"
    assert message[1].startswith("http://127.0.0.1:9/timm/resnet10t")
    assert "--weights FILE" in message[2]
    assert message[-1] == "or start from random weights with --no-pretrained"


def test_weights_of_another_architecture(flat: Path, refused: Refused) -> None:
    torch.save({"layer.weight": torch.zeros(3, 3)}, "other.pth")
    arguments = ("--backbone", "test_efficientnet", "--weights", "other.pth")
    message = refused(1, "finetune", flat, *arguments)
    assert message[0].endswith("other.pth is of another architecture")
    assert message[1].startswith("0 of ")
    assert message[-1] == "name the backbone that the file was saved from with --backbone"


@pytest.mark.parametrize(
    ("name", "content", "code", "what"),
    [
        ("none.pth", None, 2, "none.pth does not exist"),
        ("empty.pth", b"", 1, "empty.pth is empty"),
        ("text.pth", b"hello there", 1, "cannot be read as safetensors or as a torch state dict"),
    ],
)
def test_weights_that_are_none(
    flat: Path, refused: Refused, name: str, content: bytes | None, code: int, what: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert refused(code, "finetune", flat, "--weights", name)[0].endswith(what)


def test_output_folder_that_cannot_be_made(flat: Path, refused: Refused) -> None:
    Path("file").write_text("x")
    what, remedy = refused(1, "finetune", flat, "--out", "file/run")
    assert what == "error: cannot make the run folder file/run: Not a directory"
    assert remedy == "choose another place with --out"
    assert refused(2, "finetune", flat, "--out", "file")[0].endswith("file is a file, not a folder")


LONG = ("a" * 300, "x" * 5000, "/".join(["abc"] * 2000))
PATHS = (
    ("finetune", "DATA", "--recipe", "PATH"),
    ("finetune", "DATA", "--out", "PATH"),
    ("finetune", "DATA", "--from", "PATH"),
    ("finetune", "DATA", "--weights", "PATH"),
    ("finetune", "DATA", "--cache-dir", "PATH"),
    ("finetune", "--manifest", "PATH"),
    ("finetune", "--resume", "PATH"),
    ("pretrain", "PATH", "--method", "rotation"),
    ("pretrain", "DATA", "--method", "rotation", "--out", "PATH"),
    ("inspect", "DATA", "-o", "PATH"),
    ("predict", "PATH", "DATA"),
    ("report", "PATH"),
    ("compare", "PATH", "DATA"),
)


@pytest.mark.parametrize("bad", [*LONG, "a\0b"], ids=["name", "long name", "path", "NUL"])
@pytest.mark.parametrize("typed", PATHS, ids=lambda typed: " ".join(typed[:-1]))
def test_paths_that_no_system_call_takes(
    flat: Path, refused: Refused, typed: tuple[str, ...], bad: str
) -> None:
    command = [{"PATH": bad, "DATA": str(flat)}.get(word, word) for word in typed]
    message = refused(2, *command)
    assert len(message) <= 2
    assert len(message[0]) < 300


def test_a_long_name_below_a_folder_that_is_still_to_be_made(flat: Path, refused: Refused) -> None:
    (what,) = refused(2, "finetune", flat, "--out", "new/" + "a" * 300)
    assert what.endswith("a name or the path is too long")


def test_paths_in_a_recipe_that_no_system_call_takes(refused: Refused) -> None:
    text = '[data]\npath = "a\\u0000b"\n[backbone]\nweights = "{}"\n[cache]\ndir = "{}"\n'
    Path("recipe.toml").write_text(text.format("x" * 5000, "y" * 256))
    assert refused(2, "finetune", "--recipe", "recipe.toml") == [
        "error: 3 options are wrong",
        "data.path holds a character that no path can hold: 'a\\x00b'",
        f"backbone.weights is too long for a path: '{'x' * 79}...",
        f"cache.dir is too long for a path: '{'y' * 79}...",
    ]


def test_braces_of_shards_may_be_longer_than_a_name(refused: Refused) -> None:
    names = ",".join(f"shard-{number:06}" for number in range(60))
    what = refused(2, "finetune", f"{{{names}}}.tar")[0]
    assert "60" in what
    assert "too long" not in what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_the_right_to_write(flat: Path, refused: Refused) -> None:
    Path("locked").mkdir(mode=0o500)
    assert refused(1, "finetune", flat, "--out", "locked/run")[0].endswith("Permission denied")


def test_output_folder_that_exists(run: Path, flat: Path, refused: Refused) -> None:
    what, remedy = refused(2, "finetune", flat, "--out", run)
    assert what == f"error: {run} already holds a run"
    assert remedy == f"continue it with --resume {run}, or choose another --out"
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    assert refused(2, "finetune", flat, "--out", "full")[0] == "error: full is not empty"


def test_output_folder_among_the_pictures(flat: Path, refused: Refused) -> None:
    what, _, remedy = refused(2, "finetune", flat, "--out", flat / "run")
    assert what == "error: the run folder flat/run would lie among the pictures"
    assert "--out" in remedy
    os.chdir(flat)
    assert "would lie among the pictures" in refused(2, "finetune", ".")[0]  # default: ./runs


@pytest.mark.parametrize("target", ["mine", "deep/er/mine"])
def test_a_failure_takes_away_only_what_was_made(flat: Path, cli: Cli, target: str) -> None:
    Path("deep").mkdir()
    Path("mine").mkdir()  # an empty folder of the user's
    Path("cache").write_text("not a folder")
    arguments = ("--stages", "1:1", "--cache-dir", "cache", "--out", target)
    result = cli("finetune", flat, *TINY, "--augment", "none", *arguments)
    assert result.code == 1
    assert result.message[0].startswith("error: cannot write the cache in ")
    assert sorted(map(str, Path().glob("*"))) == ["cache", "deep", "flat", "mine"]
    assert list(Path("mine").iterdir()) == list(Path("deep").iterdir()) == []


WRONG_OPTIONS = {
    ("--set", "trainig.lr=1"): "unknown key trainig; did you mean training? (known here: data, ",
    ("--set", "training.lrr=1"): "unknown key training.lrr; did you mean training.lr? (known here",
    (
        "--set",
        "lr=1",
    ): "unknown key lr; did you mean training.lr or pretraining.lr or stages.lr? (known here: ",
    ("--set", "lr"): "--set 'lr' is not KEY=VALUE",
    ("--set", "training..lr=1"): "--set 'training..lr=1' is not KEY=VALUE",
    ("--set", "training=1"): "training must be an object, not 1",
    ("--set", "augment.level=medum"): (
        "augment.level must be 'none', 'light', 'medium' or 'strong', not 'medum'; "
        "did you mean medium?"
    ),
    ("--augment", "heavy"): (
        "Invalid value for '--augment': 'heavy' is not one of 'none', 'light', 'medium', 'strong'."
    ),
    ("--lr", "abc"): "training.lr must be a valid number or 'auto', not 'abc'",
    ("--lr", "nan"): "training.lr must be a valid number or 'auto', not 'nan'",
    ("--lr", "0"): "training.lr must be greater than 0 or 'auto', not 0",
    ("--seed", "99999999999999999999"): "training.seed must be less than 4294967296, not 9999",
    (
        "--batch-size",
        "0",
    ): "training.batch_size must be greater than or equal to 1 or 'auto', not 0",
    ("--val-fraction", "1"): "data.val_fraction must be less than 1, not 1.0",
    ("--head-layers", "64,x"): "head.layers.1 must be a valid integer, not 'x'",
    ("--cache-budget", "lots"): "cache.budget must be a size such as 500MB or 8GB, not 'lots'",
    ("--background", "mauvish"): "data.background must be a colour such as white or #808080, not",
    ("--no-pretrained", "--weights", "f"): "--weights and --no-pretrained contradict each other",
    ("--augment", "none", "--views", "3"): "augment.views has no effect with augment.level = none",
    ("--head-activation", "tanh"): "head.activation has no effect without head.layers",
    ("--no-pretrained", "--stages", "head:3"): "stages: the first one trains only the head on rand",
    ("--stages", "head"): "--stages: cannot read 'head'",
    ("--stages", "0:1"): (
        "stages.0.unfreeze must be greater than or equal to 1 or 'head', 'all' or 'solve' or a "
        "method of pretraining, not 0"
    ),
    ("--stages", "head:1?"): "stages: the first stage cannot depend on the one before",
    ("--stages", "99:1"): "a stage unfreezes 99 block groups, but the backbone has 8",
    ("--exclude", "nobody"): "--exclude names no class: nobody",
    ("--recipe", "nope"): "no recipe 'nope'",
    ("--recipe", "linear_prob"): "no recipe 'linear_prob'",
    ("--learning-rate", "1"): "No such option: --learning-rate",
    ("--lrr", "1"): "No such option: --lrr (Possible options: --lr",
    ("more",): "Got unexpected extra argument(s) (more)",
}


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=" ".join)
def test_wrong_options(flat: Path, refused: Refused, options: tuple[str, ...]) -> None:
    assert refused(2, "finetune", flat, *options)[0].startswith(f"error: {WRONG_OPTIONS[options]}")


def test_all_wrong_options_are_told_at_once(flat: Path, refused: Refused) -> None:
    Path("mine.toml").write_text("[training]\nlr = -1\nepochs = 3\n[dta]\n")
    message = refused(2, "finetune", flat, "--recipe", "mine.toml", "--batch-size", "0")
    assert message[0] == "error: 4 options are wrong"
    told = "\n".join(message[1:])
    for part in ("training.lr must be", "training.batch_size must", "training.epochs", "key dta;"):
        assert part in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there(flat: Path, refused: Refused) -> None:
    what, remedy = refused(2, "finetune", flat, "--device", "cuda")
    assert what == "error: --device cuda: this machine has none"
    assert remedy == "use --device auto"


COMMANDS = {
    ("finetune",): (2, "no pictures given"),
    ("finetunee", "flat"): (2, "No such command 'finetunee'. Did you mean 'finetune'?"),
    ("finetune", "--resume", "flat"): (1, "flat is not a run folder"),
    ("finetune", "--resume", "nowhere"): (1, "nowhere is not a run folder"),
    ("finetune", "--resume", "flat", "--lr", "1"): (2, "--resume takes no other option"),
    ("finetune", "flat", "--resume", "flat"): (1, "flat is not a run folder"),
    ("predict",): (2, "Missing argument 'RUN"),
    ("predict", "flat", "flat"): (1, "flat is not a run folder"),
    ("predict", "RUN", "none.png"): (2, "none.png does not exist"),
    ("predict", "RUN", "*.xyz"): (2, "*.xyz matches 0 files, none of them a picture"),
    ("predict", "RUN", "flat", "--top-k", "0"): (
        2,
        "predict.top_k must be greater than or equal to 1",
    ),
    ("predict", "RUN", "flat", "-o", "x.txt"): (2, "--output x.txt: the name must end in one of"),
    ("predict", "RUN", "flat", "-o", "no/x.csv"): (1, "cannot write to no: No such file or direc"),
    ("evaluate", "RUN"): (2, "no data given"),
    ("evaluate", "RUN", "nowhere"): (2, "nowhere does not exist"),
    ("inspect",): (2, "no data given"),
    ("inspect", "flat", "-o", "no/x.json"): (1, "cannot write to no: No such file or directory"),
    ("plan", "nowhere"): (2, "nowhere does not exist"),
    ("models", "xyzzy"): (2, "no backbone matches 'xyzzy'"),
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_wrong_commands(flat: Path, run: Path, refused: Refused, command: tuple[str, ...]) -> None:
    code, what = COMMANDS[command]
    message = refused(code, *[str(run) if part == "RUN" else part for part in command])
    assert what in message[0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("finetune",), 2),
        (("finetune", "flat", "--lrr", "1"), 2),
        (("finetune", "flat", "--lr", "abc"), 2),
        (("finetune", "nowhere"), 2),
        (("nonsense",), 2),
    ],
)
def test_with_json_an_error_is_one_object(cli: Cli, arguments: tuple[str, ...], code: int) -> None:
    result = cli(*arguments, "--json")
    assert result.code == code
    assert result.err == ""
    assert result.json["error"].keys() == {"what", "where", "remedy", "exit_code"}
    assert result.json["error"]["exit_code"] == code


def damage(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize("text", ["lr = = 3", "a = " + "[" * 5000, "[training]\nlr = 'x'\n"])
def test_a_run_folder_whose_recipe_was_damaged(run: Path, cli: Cli, text: str) -> None:
    shutil.copytree(run, "copy")
    damage(Path("copy"), "recipe.toml", text)
    assert cli("finetune", "--resume", "copy").code in (1, 2)
    assert cli("finetune", "--recipe", "copy").code == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"classes": 3}'])
def test_a_run_folder_whose_description_was_damaged(run: Path, cli: Cli, text: str) -> None:
    shutil.copytree(run, "copy")
    damage(Path("copy"), "model.json", text)
    assert cli("predict", "copy", run / "plots").code == 1
    assert cli("evaluate", "copy", run).code == 1


def test_resuming_after_the_pictures_changed(run: Path, pictures: Path, cli: Cli) -> None:
    shutil.copytree(pictures, "d")
    tiny = ("--stages", "1:1", "--augment", "none", "--out", "r")
    assert cli("finetune", "d", *TINY, *tiny).code == 0
    Path("d/train/disc/0.png").unlink()
    result = cli("finetune", "--resume", "r")
    assert result.code == 1
    assert result.message[0] == "error: cannot resume r: the pictures have changed since it started"


def test_a_run_that_another_process_works_on_is_left_alone(
    pictures: Path, cli: Cli, own_folder: Path
) -> None:
    assert cli("finetune", pictures, *TINY, "--stages", "1:1", "--out", "r").code == 0
    before = {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}
    with only_process(own_folder / "r"):
        result = cli("finetune", "--resume", "r")
    assert result.code == 1
    assert "another process is working on" in result.err
    assert {p: p.read_bytes() for p in Path("r").rglob("*") if p.is_file()} == before
