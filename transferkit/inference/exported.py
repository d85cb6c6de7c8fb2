"""Models that `transferkit export` wrote: each opened by its own runtime, without a run folder."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.data.loader import ViewMaker
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError, usage_error
from transferkit.inference.deployed import METADATA
from transferkit.inference.engine import Engine, open_session, torch_runner
from transferkit.inference.weights_file import open_weights
from transferkit.units import parse_colour

OPSET = 17


@dataclass(frozen=True)
class Exported:
    """An exported model. engine: bytes (N, 3, H, W) -> logits (N, K). about: its metadata."""

    engine: Engine
    classes: tuple[str, ...]
    maker: ViewMaker
    temperature: float
    about: dict[str, Any]


Opened = tuple[Callable[[Tensor], Tensor], str]


def open_onnx(path: Path) -> Opened:
    """Open an ONNX model in ONNX Runtime."""
    run, metadata = open_session(path.read_bytes())
    return run, metadata[METADATA]


def open_torchscript(path: Path) -> Opened:
    """Open a TorchScript archive. Such an archive is code: open only what you trust."""
    extra = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    return module_runner(module), text_of(extra[METADATA])


def open_torch_export(path: Path) -> Opened:
    """Open an archive of torch.export."""
    extra = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path, extra_files=extra).module()
    return module_runner(module), text_of(extra[METADATA])


def open_openvino(path: Path) -> Opened:
    """Open an OpenVINO model; its .bin lies beside it."""
    try:
        import openvino
    except ImportError:
        remedy = "install it: pip install 'transferkit[openvino]'"
        raise usage_error(f"{path} needs the package openvino", "", remedy) from None
    core = openvino.Core()
    model = core.read_model(path)
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", options)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(np.array(compiled(images.numpy())[0]))

    return run, str(model.get_rt_info([METADATA]).astype(str))


def open_safetensors(path: Path) -> Opened:
    """Open a file of weights: the network is built by timm and run by torch."""
    network, text = open_weights(path)
    return torch_runner(network, torch.device("cpu")), text


def module_runner(module: Any) -> Callable[[Tensor], Tensor]:
    """Return a call that runs a torch module without gradients."""

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def text_of(value: str | bytes) -> str:
    """Return text that an archive may give back as bytes."""
    return value.decode() if isinstance(value, bytes) else value


OPENERS: dict[str, tuple[str, Callable[[Path], Opened]]] = {
    ".onnx": ("onnx", open_onnx),
    ".ts": ("torchscript", open_torchscript),
    ".pt2": ("torch-export", open_torch_export),
    ".xml": ("openvino", open_openvino),
    ".safetensors": ("safetensors", open_safetensors),
}


def is_exported(path: Path) -> bool:
    """Whether a path names an exported model and not a run folder."""
    return path.suffix in OPENERS and path.is_file()


def open_exported(path: Path) -> Exported:
    """Open an exported model. Raises UserError when it is none of ours, or damaged."""
    name, opener = OPENERS[path.suffix]
    try:
        run, text = opener(path)
        about = json.loads(text)
        classes = tuple(str(c) for c in about["classes"])
        maker = ViewMaker(
            Preprocessing.from_dict(about["preprocessing"]),
            background=parse_colour(about["background"]),
            max_pixels=int(about["max_pixels"]),
        )
        temperature = float(about["temperature"])
    except UserError:
        raise
    except Exception as error:  # every runtime has its own ways to refuse a file
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"{path} is not a model that transferkit exported, or it is damaged",
            f"{type(error).__name__}: {''.join(reason)[:200]}",
            "write it anew: transferkit export RUN",
        ) from None
    return Exported(Engine(name, run), classes, maker, temperature, about)
