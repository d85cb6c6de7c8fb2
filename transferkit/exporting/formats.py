"""The formats of an exported model: how each is written, in which precisions."""

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
from transferkit.errors import usage_error
from transferkit.inference.deployed import METADATA
from transferkit.inference.exported import OPSET
from transferkit.inference.weights_file import weights_bytes

Files = dict[str, bytes]


def onnx_bytes(network: nn.Module, example: Tensor, about: dict[str, Any]) -> bytes:
    """Return an ONNX model with a free batch size and what it is in its metadata."""
    import onnx

    model = onnx.load_from_string(onnx_model(network, example, ("images", "logits"), OPSET))
    return with_metadata(model, about)


def with_metadata(model: Any, about: dict[str, Any]) -> bytes:
    """Write what an ONNX model is into it: as one JSON text, and its classes on their own."""
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
        warnings.simplefilter("ignore")  # of what it cannot generalise; the comparison tells
        frozen = torch.jit.freeze(torch.jit.trace(network, (example,), check_trace=False))
        torch.jit.save(frozen, buffer, _extra_files={METADATA: json.dumps(about)})
    return {".ts": buffer.getvalue()}


def write_torch_export(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return an archive of torch.export with a free batch size."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = {"images": {0: torch.export.Dim("N", min=1, max=4096)}}
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(about)})
    return {".pt2": buffer.getvalue()}


def write_openvino(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return the two files of an OpenVINO model, made from the ONNX model."""
    return openvino_files(onnx_bytes(network, example, about), about, about["precision"] == "fp16")


def write_weights(network: nn.Module, example: Tensor, about: dict[str, Any]) -> Files:
    """Return a safetensors file of the weights, the zeros of a pruned model left out."""
    classifier: Any = network.classifier
    return {".safetensors": weights_bytes(classifier, about, about["sparsity"] > 0)}


def openvino_files(onnx_model: bytes, about: dict[str, Any], half: bool) -> Files:
    """Convert an ONNX model; half: keep the weights in 16 bits."""
    openvino = require_openvino()
    with tempfile.TemporaryDirectory() as folder:
        model = openvino.Core().read_model(onnx_model)
        model.set_rt_info(json.dumps(about), [METADATA])
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=half)
        return {s: path.with_suffix(s).read_bytes() for s in (".xml", ".bin")}


def require_openvino() -> Any:
    """Import openvino, or raise a usage error that says how to get it."""
    try:
        import openvino
    except ImportError:
        remedy = "install it: pip install 'transferkit[openvino]'"
        raise usage_error("the format openvino needs the package openvino", "", remedy) from None
    return openvino


@dataclass(frozen=True)
class Format:
    """A file format. write: (network, example, about) -> suffix -> bytes.

    folds: whether batch norms are folded if nothing else is said. sparse: whether it can leave
    zeros out.
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
