"""Exported models: each opened by the runtime of its format, without a run folder."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.backbones.engine import Engine, open_session, torch_runner
from transferkit.backbones.head import Classifier
from transferkit.data.loader import ViewMaker
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.reading import reading_from
from transferkit.errors import UserError, usage_error
from transferkit.files.foreign_files import parse_json, require_regular
from transferkit.inference.deployed import METADATA
from transferkit.inference.predict import LoadedRun
from transferkit.inference.weights_file import open_weights
from transferkit.runs.description import check_description

OPSET = 17
MOST_ONNX_BYTES = 2 << 30  # the limit of protobuf
MOST_XML_BYTES, MOST_BIN_BYTES = 100_000_000, 16 << 30
"""Of an OpenVINO model; the largest of timm's have 10 GB of weights."""

Opened = tuple[Callable[[Tensor], Tensor], str]


def open_onnx(path: Path) -> Opened:
    """Open an ONNX model in ONNX Runtime. Raises ValueError for one with external data."""
    require_regular(path, MOST_ONNX_BYTES)
    model = path.read_bytes()
    refuse_other_files(model)
    run, metadata = open_session(model)
    return run, metadata[METADATA]


def refuse_other_files(model: bytes) -> None:
    """Raise ValueError for an ONNX model with external tensors, whose paths can lead anywhere.

    Source: the ONNX specification, "External Data".
    """
    import onnx

    loaded = onnx.load_from_string(model)
    graphs: list[Any] = [loaded.graph, *loaded.functions]
    while graphs:
        graph = graphs.pop()
        tensors = [*getattr(graph, "initializer", ())]  # a function has none
        for sparse in getattr(graph, "sparse_initializer", ()):
            tensors += [sparse.values, sparse.indices]
        for attribute in (a for node in graph.node for a in node.attribute):
            tensors += [attribute.t, *attribute.tensors]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs
        if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors):
            raise ValueError("it has tensors in other files")


def open_torchscript(path: Path) -> Opened:
    """Open a TorchScript archive, which is code: open only what you trust."""
    return open_archive(lambda extra: torch.jit.load(path, map_location="cpu", _extra_files=extra))


def open_torch_export(path: Path) -> Opened:
    """Open an archive of torch.export, which unpickles parts of it: open only what you trust."""
    return open_archive(lambda extra: torch.export.load(path, extra_files=extra).module())


def open_archive(load: Callable[[dict[str, Any]], Any]) -> Opened:
    """Return a call that runs the loaded module without gradients, and the metadata."""
    extra = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = load(extra)
    text: Any = extra[METADATA]  # some versions of torch return bytes
    return torch.no_grad()(module.__call__), text.decode() if isinstance(text, bytes) else text


def openvino_parts(path: Path) -> tuple[bytes, bytes]:
    """Return the bytes of an OpenVINO model's .xml and .bin.

    They are read here, not by OpenVINO, so that the model cannot name another file. Raises
    ValueError where the .bin is missing, no regular file, a link out of the folder, or too large.
    """
    require_regular(path, MOST_XML_BYTES)
    weights = path.with_suffix(".bin")
    if not os.path.lexists(weights):
        raise ValueError(f"its weights are missing: {weights.name} belongs beside it")
    if os.path.islink(weights) and not is_inside(os.path.realpath(weights), path):
        raise ValueError(f"{weights.name} is a link out of its folder")
    try:
        require_regular(weights, MOST_BIN_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(f"{weights.name}: {error}") from None
    return path.read_bytes(), weights.read_bytes()


def is_inside(target: str, model: Path) -> bool:
    """Whether a file lies in the folder of a model's path, or of its resolved path."""
    folders = {os.path.realpath(model.parent), os.path.dirname(os.path.realpath(model))}
    return os.path.dirname(target) in folders


def import_openvino(user: str) -> Any:
    """Import openvino. Raises a usage error if what uses it (`user`) needs it installed."""
    try:
        import openvino
    except ImportError:
        remedy = "install it: pip install 'transferkit[openvino]'"
        raise usage_error(f"{user} needs the package openvino", "", remedy) from None
    return openvino


def open_openvino(path: Path) -> Opened:
    """Open an OpenVINO model; its .bin lies beside it."""
    parts = openvino_parts(path)
    openvino = import_openvino(str(path))
    core, options = openvino.Core(), {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = core.read_model(*parts)
    compiled = core.compile_model(model, "CPU", options)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(np.array(compiled(images.numpy())[0]))

    return run, str(model.get_rt_info([METADATA]).astype(str))


def open_safetensors(path: Path) -> Opened:
    """Open a file of weights: the network is built by timm and run by torch."""
    network, text = open_weights(path)
    return torch_runner(network, torch.device("cpu")), text


OPENERS: dict[str, tuple[str, Callable[[Path], Opened]]] = {
    ".onnx": ("onnx", open_onnx),
    ".ts": ("torchscript", open_torchscript),
    ".pt2": ("torch-export", open_torch_export),
    ".xml": ("openvino", open_openvino),
    ".safetensors": ("safetensors", open_safetensors),
}

PROGRAMS = (".ts", ".pt2")
"""Archives of torch, which hold code."""


def require_trust(path: Path, trusted: bool) -> None:
    """Raise a usage error for an untrusted archive of code, or for needless trust."""
    if path.suffix in PROGRAMS and not trusted:
        raise usage_error(
            f"{path} may hold arbitrary code, which would run here",
            "a TorchScript or torch.export archive is code; .onnx and .safetensors hold none",
            "add --trust for a file that you made, or ask for one of the other formats",
        )
    if trusted and path.suffix not in PROGRAMS:
        what = f"--trust has no effect on {path}: it holds no code"
        raise usage_error(what, "", "leave it out")


def is_exported(path: Path) -> bool:
    """Whether a path is an exported model, not a run folder."""
    return path.suffix in OPENERS and path.is_file()


def open_exported(path: Path, trusted: bool = False) -> tuple[LoadedRun, Engine]:
    """Open an exported model: its description, and an engine that turns bytes (N, 3, H, W) into
    logits (N, K). The classifier is the identity: logits count as features.

    trusted: see `require_trust`. Raises UserError for a file that is damaged or
    was not exported by transferkit.
    """
    if path.suffix in PROGRAMS:
        require_trust(path, trusted)
    name, opener = OPENERS[path.suffix]
    try:
        require_regular(path)
        run, text = opener(path)
        about = check_description(parse_json(text))
        classes = tuple(str(c) for c in about["classes"])
        size = Preprocessing.from_dict(about["preprocessing"])
        maker = ViewMaker(size, reading=reading_from(about))
        identity = Classifier(nn.Identity(), nn.Identity(), size.mean, size.std)
        temperature = float(about["temperature"])
    except UserError:
        raise
    except Exception as error:  # every runtime raises errors of other types
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"{path} is not a model that transferkit exported, or it is damaged",
            f"{type(error).__name__}: {''.join(reason)[:200]}",
            "export it again: transferkit export RUN",
        ) from None
    loaded = LoadedRun(identity, classes, maker, about, temperature, num_features=len(classes))
    return loaded, Engine(name, run)
