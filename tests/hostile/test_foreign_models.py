"""Models and runs that others made: nothing in them runs, and odd ones are refused in a line."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from attack import attack, command
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from transferkit.errors import UserError
from transferkit.inference import exported
from transferkit.inference.exported import (
    open_exported,
    openvino_parts,
    refuse_other_files,
    require_trust,
)
from transferkit.inference.predict import load_run
from transferkit.inference.weights_file import with_zeros
from transferkit.runs.folder import open_run


class Runs:
    """Pickles to a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize(
    "name", ["checkpoints/last.pt", "model.safetensors", "reference.safetensors"]
)
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_a_run_folder_runs_nothing(
    own_run: Path, tmp_path: Path, name: str, how: str
) -> None:
    mark = tmp_path / "ran"
    if how == "torch":
        torch.save({"model": {"a": Runs(mark)}}, own_run / name)
    else:
        (own_run / name).write_bytes(pickle.dumps(Runs(mark)))
    folder = open_run(own_run)
    with pytest.raises(UserError, match="cannot read"):
        {
            "last.pt": lambda: folder.load_checkpoint("last"),
            "model.safetensors": lambda: load_run(folder),
            "reference.safetensors": folder.load_reference,
        }[Path(name).name]()
    assert not mark.exists()


def test_a_pickle_given_as_weights_runs_nothing(tmp_path: Path, pictures: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": {"a": Runs(mark)}}, tmp_path / "w.pth")
    command("plan", pictures, "--weights", tmp_path / "w.pth", codes=(1,))()
    assert not mark.exists()


@pytest.fixture
def archive(tiny_run: Path, tmp_path: Path) -> Path:
    """A torch.export archive whose example inputs are a pickle that runs something."""
    sound, path = tmp_path / "sound.pt2", tmp_path / "m.pt2"
    command("export", tiny_run, "--format", "torch-export", "-o", sound, codes=(0,))()
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if "sample_inputs" in item.filename:
                buffer = io.BytesIO()
                torch.save({"x": Runs(tmp_path / "ran")}, buffer)
                data = buffer.getvalue()
            target.writestr(item.filename, data)
    return path


def test_an_archive_that_is_a_program_needs_trust(
    archive: Path, tmp_path: Path, pictures: Path
) -> None:
    command("predict", archive, pictures / "val", codes=(2,))()
    with pytest.raises(UserError, match="may hold arbitrary code"):
        open_exported(archive)
    assert not (tmp_path / "ran").exists()
    command("predict", tmp_path / "sound.pt2", pictures / "val", "--trust", codes=(0,))()


def test_trust_that_nothing_needs_is_refused(tiny_run: Path, pictures: Path) -> None:
    command("predict", tiny_run, pictures / "val", "--trust", codes=(2,))()
    for name in ("m.ts", "m.pt2"):
        require_trust(Path(name), trusted=True)
    for name in ("m.onnx", "m.safetensors"):
        require_trust(Path(name), trusted=False)
        with pytest.raises(UserError, match="no effect"):
            require_trust(Path(name), trusted=True)


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function", "sparse"])
@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "beside.bin"])
def test_an_onnx_model_that_names_other_files_is_refused(place: str, location: str) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    thin = helper.make_node("Constant", [], ["c"])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    thin.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    thin.attribute[0].sparse_tensor.CopyFrom(helper.make_sparse_tensor(tensor, indices, [1]))
    nodes = {"attribute": [constant], "subgraph": [node], "sparse": [thin]}.get(place, [])
    weights = [tensor] if place == "initializer" else []
    opset = [helper.make_opsetid("", 17)]
    functions = [helper.make_function("d", "f", [], ["c"], [constant], opset)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [], [], weights),
        functions=functions if place == "function" else [],
    )
    with pytest.raises(ValueError, match="other files"):
        refuse_other_files(model.SerializeToString())
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    sound = onnx.helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    refuse_other_files(sound.SerializeToString())


def a_folder(folder: Path) -> None:
    (folder / "m.bin").unlink()
    (folder / "m.bin").mkdir()


def not_beside(folder: Path) -> None:
    (folder / "m.bin").unlink()


def a_pipe(folder: Path) -> None:
    (folder / "m.bin").unlink()
    os.mkfifo(folder / "m.bin")


def a_link_to(target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "m.bin").unlink()
        (folder / "m.bin").symlink_to(target)

    return make


BAD_BIN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (not_beside, "its weights are missing: m.bin belongs beside it"),
    "a pipe": (a_pipe, "m.bin: it is not a regular file"),
    "a folder": (a_folder, "m.bin: it is not a regular file"),
    "a link out": (a_link_to("../outside.bin"), "m.bin is a link out of its folder"),
    "a device": (a_link_to("/dev/zero"), "m.bin is a link out of its folder"),
    "a loop": (a_link_to("m.bin"), "m.bin"),
}


@pytest.mark.parametrize("how", BAD_BIN)
def test_the_weights_of_an_openvino_model_lie_beside_it(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"secret")
    (folder / "m.xml").write_bytes(b"<net/>")
    (folder / "m.bin").write_bytes(b"weights")
    assert openvino_parts(folder / "m.xml") == (b"<net/>", b"weights")
    spoil, told = BAD_BIN[how]
    spoil(folder)
    with pytest.raises(ValueError, match=told):
        openvino_parts(folder / "m.xml")
    assert attack(command("predict", folder / "m.xml", folder, codes=(1, 2))) == ""


def test_links_of_a_cache_that_keeps_contents_elsewhere_are_followed(tmp_path: Path) -> None:
    """As the hub's cache does: names in one folder, contents in another, all of a model in it."""
    for name in ("names", "contents"):
        (tmp_path / name).mkdir()
    for name, content in (("m.xml", b"<net/>"), ("m.bin", b"weights")):
        (tmp_path / "contents" / content.hex()).write_bytes(content)
        (tmp_path / "names" / name).symlink_to(f"../contents/{content.hex()}")
    assert openvino_parts(tmp_path / "names" / "m.xml") == (b"<net/>", b"weights")


def test_parts_of_an_openvino_model_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.xml").write_bytes(b"<net/>")
    (tmp_path / "m.bin").write_bytes(b"weights")
    monkeypatch.setattr(exported, "MOST_BIN_BYTES", 6)
    with pytest.raises(ValueError, match=r"m\.bin: it is larger than 6 bytes"):
        openvino_parts(tmp_path / "m.xml")
    monkeypatch.setattr(exported, "MOST_XML_BYTES", 5)
    with pytest.raises(ValueError, match="it is larger than 5 bytes"):
        openvino_parts(tmp_path / "m.xml")


def test_an_openvino_model_with_fewer_weights_than_it_names_is_refused(
    tiny_run: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    model = tmp_path / "m.xml"
    command("export", tiny_run, "--format", "openvino", "--output", model, codes=(0,))()
    command("predict", model, pictures / "val", codes=(0,))()
    weights = model.with_suffix(".bin").read_bytes()
    model.with_suffix(".bin").write_bytes(weights[: len(weights) // 2])
    assert attack(command("predict", model, pictures / "val", codes=(1,))) == ""


def test_sizes_are_checked_before_they_are_allocated() -> None:
    stored = {"a::values": torch.zeros(1), "a::mask": torch.zeros(4, dtype=torch.uint8)}
    assert with_zeros(stored, {"a": [4, 8]})["a"].shape == (4, 8)
    with pytest.raises(ValueError, match="more than its mask"):
        with_zeros(stored, {"a": [10**6, 10**6]})


def change(run: Path, key: str, value: object) -> None:
    path = run / "model.json"
    tree = json.loads(path.read_text())
    *way, last = key.split(".")
    place = tree
    for name in way:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(tree))


SCRATCH = {"depth": 2, "width": 60_000, "activation": "relu", "batchnorm": []}
WRONG = {
    "classes": [
        (5, "classes"),
        ([1, 2, 3], "classes.0"),
        ([["a"]], "classes.0"),
        (["a", "a"], "twice"),
    ],
    "image_size": [("x", "image_size"), (10**6, "image_size"), (True, "image_size")],
    "head.hidden": [("abc", "head.hidden"), ([10**9], "hidden.0"), ([200_000, 200_000], "40,000")],
    "preprocessing.height_px": [(0, "height_px"), (20_000, "height_px"), ("3", "height_px")],
    "preprocessing.crop_pct": [(0, "crop_pct"), ("x", "crop_pct")],
    "preprocessing.std": [([0, 1, 1], "std.0"), ([1, 1], "std")],
    "max_pixels": [("x", "max_pixels"), (-1, "max_pixels"), (None, "max_pixels")],
    "backbone": [(5, "backbone"), ("hf-hub:a/b", "unknown"), ("vit_giant_patch14_224", "1,010,")],
    "structure": [("x", "structure"), ({"scratch": 5}, "structure.scratch")],
    "temperature": [(float("nan"), "temperature"), (0, "temperature"), ("x", "temperature")],
    "format_version": [(99, "newer release"), ("9", "format_version"), (99.5, "format_version")],
}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [(key, value, named) for key, rows in WRONG.items() for value, named in rows],
)
def test_a_description_that_breaks_its_schema_names_what_is_wrong(
    own_run: Path, key: str, value: object, named: str
) -> None:
    change(own_run, key, value)
    told: list[str] = []

    def load() -> None:
        try:
            load_run(open_run(own_run))
        except UserError as error:
            told.append(str(error))
            raise

    assert attack(load) == ""
    assert named in told[0]


def test_a_network_from_scratch_is_not_larger_than_its_weights(own_run: Path) -> None:
    change(own_run, "structure.scratch", SCRATCH)
    change(own_run, "backbone", "mlp")
    with pytest.raises(UserError, match="the file holds"):
        load_run(open_run(own_run))


def other_numbers(path: Path) -> None:
    save_file(
        {name: t.to(torch.float64) * float("nan") for name, t in load_file(path).items()}, path
    )


SPOILT: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "a long cell": lambda path: path.write_bytes(b'path,label\n"' + b"a" * 300_000 + b'"\n'),
    "other columns": lambda path: path.write_bytes(b"a,b\n1,2\n"),
    "no numbers": lambda path: path.write_bytes(path.read_bytes().replace(b"0.", b"x")),
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    "name", ["model.json", "recipe.toml", "summary.json", "calibration.json", "metrics.csv",
             "predictions.csv", "monitoring.csv", "data.json"]
)  # fmt: skip
def test_a_spoilt_file_of_a_run_is_told_in_a_line(own_run: Path, name: str, how: str) -> None:
    SPOILT[how](own_run / name)
    assert attack(command("report", own_run)) == ""


@pytest.mark.parametrize("name", ["reference.safetensors", "validation.safetensors"])
def test_features_that_are_no_numbers_are_told(own_run: Path, pictures: Path, name: str) -> None:
    other_numbers(own_run / name)
    asked = ("--ood", "knn", "--target-accuracy", "0.5")
    assert attack(command("predict", own_run, pictures / "val", *asked, codes=(1,))) == ""


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"model": 5},
        {"model": {}, "state": 5, "updater": None},
        {"model": {}, "state": {"stage": "x"}, "updater": {}},
        {"model": {"head.1.weight": torch.zeros(2, 2)}, "state": {}, "updater": {}},
    ],
)
def test_a_checkpoint_of_something_else_is_not_resumed(
    own_run: Path, state: dict[str, Any]
) -> None:
    torch.save(state, own_run / "checkpoints" / "last.pt")
    assert attack(command("finetune", "--resume", own_run, codes=(1,))) == ""


def test_a_recipe_with_a_key_of_many_parts_is_refused_at_once(own_run: Path) -> None:
    (own_run / "recipe.toml").write_text(".".join(["a"] * 50_000) + " = 1")
    assert attack(command("predict", own_run, own_run, codes=(1,))) == ""
    (own_run / "recipe.toml").write_text("# transferkit run folder, format " + "9" * 5000 + "\n")
    assert attack(command("predict", own_run, own_run, codes=(1,))) == ""
