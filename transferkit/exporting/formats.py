"""The formats of exported models: their writers and precisions."""

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.engine import onnx_model
from transferkit.inference.deployed import METADATA
from transferkit.inference.exported import OPSET, import_openvino
from transferkit.inference.weights_file import weights_bytes

Files = dict[str, bytes]


def onnx_bytes(network: nn.Module, example: Tensor, about: dict[str, Any]) -> bytes:
    """Return an ONNX model with a dynamic batch size and `about` as its metadata."""
    import onnx

    model = onnx.load_from_string(onnx_model(network, example, ("images", "logits"), OPSET))
    return with_metadata(model, about)


def with_metadata(model: Any, about: dict[str, Any]) -> bytes:
    """Add metadata to an ONNX model: `about` as one JSON text, and the classes separately."""
    import onnx

    entries = {METADATA: json.dumps(about), "classes": json.dumps(about["classes"])}
    onnx.helper.set_model_props(model, entries)
    data: bytes = model.SerializeToString()
    return data


def write_onnx(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return the files of an ONNX model."""
    return {".onnx": onnx_bytes(network, example, about)}


def write_torchscript(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return a traced and frozen TorchScript archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about tracing; the comparison checks the result
        frozen = torch.jit.freeze(torch.jit.trace(network, (example,), check_trace=False))
        torch.jit.save(frozen, buffer, _extra_files={METADATA: json.dumps(about)})
    return {".ts": buffer.getvalue()}


def write_torch_export(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return an archive of torch.export with a dynamic batch size."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = {"images": {0: torch.export.Dim("N", min=1, max=4096)}}
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(about)})
    return {".pt2": buffer.getvalue()}


def write_openvino(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return the two files of an OpenVINO model, converted from ONNX."""
    return openvino_files(onnx_bytes(network, example, about), about, about["precision"] == "fp16")


def write_weights(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return a safetensors file of the weights, without the zeros of a pruned model."""
    classifier: Any = network.classifier
    return {".safetensors": weights_bytes(classifier, about, about["sparsity"] > 0)}


def openvino_files(onnx_model: bytes, about: dict[str, Any], half: bool) -> Files:
    """Convert an ONNX model; half: store the weights in 16 bits."""
    openvino = import_openvino("the format openvino")
    with tempfile.TemporaryDirectory() as folder:
        model = openvino.Core().read_model(onnx_model)
        model.set_rt_info(json.dumps(about), [METADATA])
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return {s: path.with_suffix(s).read_bytes() for s in (".xml", ".bin")}


@dataclass(frozen=True)
class Format:
    """A file format. write: (network, example, about) -> suffix -> bytes.

    folds: whether batch norms are folded by default. sparse: whether it can omit zeros.
    """

    write: Callable[[nn.Module, Tensor, dict[str, Any]], Files]
    precisions: tuple[str, ...]
    folds: bool = True
    sparse: bool = False


FORMATS = {
    "onnx": Format(write_onnx, ("fp32", "fp16", "int8")),
    "torchscript": Format(write_torchscript, ("fp32", "fp16", "bf16")),
    "torch-export": Format(write_torch_export, ("fp32", "fp16", "bf16")),
    "openvino": Format(write_openvino, ("fp32", "fp16", "int8")),
    "safetensors": Format(write_weights, ("fp32", "fp16", "bf16"), folds=False, sparse=True),
}
