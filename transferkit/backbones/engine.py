"""Run a network on many pictures: ONNX Runtime or torch behind one call."""

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.backbones.devices import to_device
from transferkit.backbones.waiting import ONNX_RUNTIME

TOLERANCE = 1e-3
"""Largest difference to torch that ONNX Runtime may show, relative to the largest activation.

Both sum in float32 but in other orders; measured differences are about 1e-5. A wrong export (an
operator in training mode, a baked-in batch size) differs by far more than 1e-3.
"""
ROWS_AT_ONCE = 4
"""Inputs that ONNX Runtime takes at a time. It holds the activations of all of them: 64 pictures of
224 px took 2.4 GB more than 4, and no less time on a CPU."""
WORTH_EXPORTING = 256
"""Fewer pictures than this are done by torch before an export would have paid for itself."""


@dataclass(frozen=True)
class Engine:
    """`run` maps a batch (N, ...) to the network's output (N, ...), without gradients, on the CPU.

    name: "onnx" or "torch". notice: why it is not the one asked for, or empty.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    notice: str = ""


def choose_engine(wanted: str, device: torch.device, num_inputs: int) -> str:
    """Resolve "auto": ONNX Runtime on the CPU for `WORTH_EXPORTING` inputs or more, else torch.

    The rule does not look at a clock, so that the same run always computes the same bits.
    """
    if wanted != "auto":
        return wanted
    return "onnx" if device.type == "cpu" and num_inputs >= WORTH_EXPORTING else "torch"


def make_engine(network: nn.Module, example: Tensor, name: str, device: torch.device) -> Engine:
    """Prepare `network` (in evaluation mode) for inputs like `example` (N, ...), N >= 2.

    ONNX Runtime is checked against torch on the example; if the export fails or differs by more
    than `TOLERANCE`, torch runs the network and the engine's notice says why.
    """
    network.eval()
    if name == "torch":
        return Engine("torch", torch_runner(network, device))
    try:
        run = onnx_runner(network, example)
    except Exception as error:  # an exporter fails in too many ways to list; torch always works
        reason = str(error).strip().splitlines()[:1]
        notice = f"ONNX export failed ({''.join(reason)[:120]}); torch runs the network, slower"
        return Engine("torch", torch_runner(network, device), notice)
    with torch.inference_mode():
        expected = network(example.to(device)).float().cpu()
    difference = (run(example) - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not difference <= TOLERANCE:
        notice = f"ONNX Runtime differs from torch by {difference:.1e}; torch runs the network"
        return Engine("torch", torch_runner(network, device), notice)
    return Engine("onnx", run)


def torch_runner(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a call that runs a network in torch, channels last where the input is a picture."""
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(to_device(inputs, device)).float().cpu().contiguous()

    return run


def onnx_runner(network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Export a network with a free batch size and return a call that runs it in ONNX Runtime."""
    run, _ = open_session(onnx_model(network, example, ("inputs", "outputs")))
    return run


def onnx_model(
    network: nn.Module, example: Tensor, names: tuple[str, str], opset: int | None = None
) -> bytes:
    """Return a network as an ONNX model with a free batch size.

    names: of its input and its output. opset: version of the operators; None is torch's choice.
    """
    entry, result = names
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations and traces
        torch.onnx.export(
            network,
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,  # five times faster to export than the newer exporter, same speed to run
            opset_version=opset,
            input_names=[entry],
            output_names=[result],
            dynamic_axes={entry: {0: "N"}, result: {0: "N"}},
        )
    return buffer.getvalue()


def open_session(model: bytes) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    """Open an ONNX model of one input in ONNX Runtime: a call that runs it, and its metadata."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    for key, value in ONNX_RUNTIME.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name

    def run_few(inputs: Tensor) -> Tensor:
        outputs: np.ndarray = session.run(None, {entry: np.ascontiguousarray(inputs.numpy())})[0]
        return torch.from_numpy(outputs)

    def run(inputs: Tensor) -> Tensor:
        return torch.cat([run_few(few) for few in inputs.split(ROWS_AT_ONCE)])

    return run, session.get_modelmeta().custom_metadata_map
