import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("onnx", "onnx"),
        ("torchscript", "ts"),
        ("torch-export", "pt2"),
        ("safetensors", "safetensors"),
    ],
)
def test_an_exported_model_predicts_like_its_run(
    run: Path, pictures: Path, cli: Cli, name: str, suffix: str
) -> None:
    out = Path(f"m.{suffix}").absolute()
    result = cli("export", run, "--format", name, "-o", out, "--json")
    assert result.code == 0, result.err
    assert result.json["largest_difference"] < 1e-4
    assert result.json["agreement"] == 1
    assert result.json["bytes_after"] == out.stat().st_size
    val = pictures / "val"
    known = cli("predict", run, val, "--json").json["predictions"]
    program = ("--trust",) if suffix in ("ts", "pt2") else ()
    found = cli("predict", out, val, "--json", *program).json["predictions"]
    assert [r["path"] for r in found] == [r["path"] for r in known]
    for a, b in zip(found, known, strict=True):
        assert a["label"] == b["label"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


def test_an_onnx_model_says_what_it_is(run: Path, cli: Cli) -> None:
    assert cli("export", run).code == 0
    path = run / "exports" / "model.onnx"
    about = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert about["classes"] == ["disc", "square", "stripes"]
    assert about["transferkit"]["preprocessing"]["height_px"] == 32
    assert about["transferkit"]["folded_batchnorms"] > 0
    assert cli("export", run, "--no-fold-batchnorm", "-o", "u.onnx").code == 0
    unfolded = {p.key: json.loads(p.value) for p in onnx.load("u.onnx").metadata_props}
    assert unfolded["transferkit"]["folded_batchnorms"] == 0
    shutil.rmtree(run / "exports")


def test_half_precision_is_half_the_size(run: Path, cli: Cli) -> None:
    sizes = [
        cli("export", run, "--precision", p, "-o", f"{p}.onnx", "--json").json["bytes_after"]
        for p in ("fp32", "fp16")
    ]
    assert sizes[1] < 0.75 * sizes[0]


def test_int8_is_calibrated_and_a_great_loss_is_refused(run: Path, cli: Cli) -> None:
    few = ("--precision", "int8", "--calibration-pictures", "16")
    allowed = cli("export", run, *few, "--max-accuracy-drop", "1", "-o", "q.onnx", "--json")
    assert allowed.code == 0, allowed.err
    nodes = onnx.load("q.onnx").graph.node
    assert "QuantizeLinear" in {node.op_type for node in nodes}
    made = {name for n in nodes if n.op_type == "DequantizeLinear" for name in n.output}
    in_8_bits = [made >= set(n.input[:2]) for n in nodes if n.op_type == "Conv"]
    assert in_8_bits[:2] == [False, False]
    assert all(in_8_bits[2:])
    assert len(in_8_bits) > 2
    assert not made & set(next(n for n in nodes if n.op_type == "Gemm").input)
    assert allowed.json["largest_difference"] > 0


def test_pruned_weights_are_small_on_disk_and_zero(run: Path, pictures: Path, cli: Cli) -> None:
    given = ("--format", "safetensors", "--max-accuracy-drop", "1", "--json")
    sizes = []
    for sparsity in ("0.5", "0.9"):
        out = f"s{sparsity}.safetensors"
        result = cli("export", run, *given, "--sparsity", sparsity, "-o", out)
        assert result.code == 0, result.err
        assert result.json["sparsity"] == pytest.approx(float(sparsity), abs=0.001)
        assert result.json["bytes_after"] == Path(out).stat().st_size
        sizes.append(result.json["bytes_after"] / result.json["bytes_before"])
    assert sizes[1] < 0.75 * sizes[0] < 0.75
    assert cli("predict", "s0.9.safetensors", pictures / "val", "--json").code == 0
    tuned = cli("export", run, *given, "--sparsity", "0.9", "--sparse-epochs", "1", "-o", out)
    assert tuned.json["sparsity"] == pytest.approx(0.9, abs=0.001)
    assert tuned.json["largest_difference"] != result.json["largest_difference"]


def test_folded_weights_predict_the_same(run: Path, pictures: Path, cli: Cli) -> None:
    given = ("--format", "safetensors", "-o", "f.safetensors", "--json")
    assert cli("export", run, "--fold-batchnorm", *given).json["largest_difference"] < 1e-4
    half = cli("export", run, "--precision", "bf16", "--max-accuracy-drop", "1", *given).json
    assert half["bytes_after"] < 0.75 * half["bytes_before"]
    assert cli("predict", "f.safetensors", pictures / "val", "--json").code == 0


def test_too_much_loss_keeps_no_file(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from transferkit.verbs import export as verb

    def worse(*arguments: Any) -> Any:
        result = compare(*arguments)
        return type(result)(**{**vars(result), "accuracy_after": result.accuracy_before - 0.02})

    compare = verb.compare
    monkeypatch.setattr(verb, "compare", worse)
    result = cli("export", run, "-o", "m.onnx")
    assert result.code == 1
    assert result.message[0].startswith("error: not exported: accuracy falls from")
    assert not Path("m.onnx").exists()
    assert cli("export", run, "-o", "m.onnx", "--max-accuracy-drop", "0.03").code == 0
    assert Path("m.onnx").exists()


def test_what_cannot_be_is_refused(run: Path, pictures: Path, cli: Cli) -> None:
    result = cli("export", run, "--format", "torchscript", "--precision", "int8")
    assert result.code == 2
    assert result.message[0] == "error: --format torchscript has no --precision int8"
    for given, said in (
        (("--sparsity", "0.5"), "error: --sparsity has no effect with --format onnx"),
        (("--sparse-epochs", "1"), "error: --sparse-epochs has no effect without --sparsity"),
    ):
        result = cli("export", run, *given)
        assert result.code == 2
        assert result.message[0] == said
    assert cli("export", run, "-o", "m.txt").code == 2
    Path("m.onnx").write_bytes(b"no model")
    damaged = cli("predict", "m.onnx", pictures / "val")
    assert damaged.code == 1
    assert "not a model that transferkit exported" in damaged.message[0]


def test_an_exported_model_streams_rows_and_refuses_what_needs_the_run(
    run: Path, pictures: Path, cli: Callable[..., Any]
) -> None:
    assert cli("export", run, "-o", "m.onnx").code == 0
    assert cli("predict", "m.onnx", pictures / "val", "-o", "rows.csv", "--top-k", "2").code == 0
    lines = Path("rows.csv").read_text().splitlines()
    assert lines[0] == "path,label,probability,label_2,probability_2,entropy,margin,error"
    whole = Path("rows.csv").read_bytes()
    Path("rows.csv").write_text("\n".join(lines[:3]) + "\n" + lines[3][:5])
    again = ("-o", "rows.csv", "--top-k", "2", "--skip-existing")
    assert cli("predict", "m.onnx", pictures / "val", *again).code == 0
    assert Path("rows.csv").read_bytes() == whole
    options = (("--mc-dropout", "5"), ("--set", "predict.tta=3"), ("--engine", "onnx"))
    for given in (*options, ("--saliency", "maps")):
        refused = cli("predict", "m.onnx", pictures / "val", *given)
        assert refused.code == 2
        assert "has no effect on an exported model" in refused.message[0]
