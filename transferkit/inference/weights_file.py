"""An exported model as plain weights in a safetensors file: under timm's names, zeros left out."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from transferkit.backbones.folding import fold_, foldable_pairs
from transferkit.backbones.head import Classifier
from transferkit.backbones.structure import Structure
from transferkit.files.foreign_files import parse_json
from transferkit.inference.deployed import DTYPES, METADATA, Deployed
from transferkit.inference.predict import blank_classifier, refuse_larger
from transferkit.runs.description import check_description

Tensors = dict[str, Tensor]

VALUES, MASK = "::values", "::mask"
"""Suffixes of the two parts of a tensor that is stored without its zeros."""
REBUILDS = ("backbone", "image_size", "structure", "head", "drop_path", "depths", "mirror")
"""Entries of model.json that describe the network."""
NEW_LAYERS = "new_layers."


def weights_bytes(classifier: Classifier, about: Mapping[str, Any], sparse: bool) -> bytes:
    """Return the file: `about` as its metadata, the weights under timm's names.

    about: with "network", the entries `REBUILDS`, and "folded_batchnorms". sparse: leave zeros out
    where that makes a tensor smaller. "timm" is added: the model that loads the weights, or "".
    """
    names = names_in_file(classifier, about)
    tensors = classifier.state_dict()
    stored = {names[name]: tensor.contiguous() for name, tensor in tensors.items()}
    shapes: dict[str, list[int]] = {}
    if sparse:
        stored, shapes = without_zeros(stored)
    new_layers = any(name.startswith(NEW_LAYERS) for name in names.values())
    loadable = not shapes and not new_layers and unchanged(about)
    full = {**about, "sparse": shapes, "timm": about["network"]["backbone"] if loadable else ""}
    return safetensors.torch.save(stored, metadata={METADATA: json.dumps(full), "format": "pt"})


def open_weights(path: Path) -> tuple[Deployed, str]:
    """Build the network of a file of weights; return it in evaluation mode, and its metadata."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {})[METADATA]
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = parse_json(text)
    whole = check_description({**about["network"], **about})
    refuse_larger(whole, with_zeros(stored, about["sparse"]))
    classifier, _ = blank_classifier(whole)
    network: Any = Deployed(classifier, torch.float32).eval()
    if about["folded_batchnorms"]:
        size = about["preprocessing"]
        example = torch.zeros(2, 3, size["height_px"], size["width_px"], dtype=torch.uint8)
        fold_(network, about.get("folded") or foldable_pairs(network, example))  # of earlier files
    network = Deployed(network.classifier, DTYPES[about["precision"]]).eval()
    tensors = with_zeros(stored, about["sparse"])
    names = names_in_file(network.classifier, about)
    network.classifier.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()})
    return network, text


def names_in_file(classifier: Classifier, about: Mapping[str, Any]) -> dict[str, str]:
    """Return name in the classifier -> name in the file.

    Backbones have timm's names, so do heads of one layer if timm's classifier is one layer; other
    layers begin with `NEW_LAYERS`.
    """
    config = getattr(classifier.backbone, "pretrained_cfg", None) or {}
    last = config.get("classifier")
    tensors = classifier.state_dict()
    head = [name for name in tensors if name.startswith("head.")]
    plain = isinstance(last, str) and last and unchanged(about) and len(head) == 2
    plain = plain and not about["network"].get("depths")
    names = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        if part == "backbone":
            names[name] = rest
        else:
            names[name] = f"{last}.{rest.rpartition('.')[2]}" if plain else NEW_LAYERS + rest
    return names


def unchanged(about: Mapping[str, Any]) -> bool:
    """Whether the backbone has the layers of timm's model of that name, batch norms included."""
    structure = Structure.from_dict(about["network"]["structure"])
    return structure == Structure() and not about["folded_batchnorms"]


def without_zeros(tensors: Tensors) -> tuple[Tensors, dict[str, list[int]]]:
    """Return tensors with their zeros left out where that is smaller, and the shapes of those.

    In place of NAME there are NAME::values (n,), what is not zero in row-major order, and
    NAME::mask, a bit for each entry, the first in the highest bit of the first byte.
    """
    stored: Tensors = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        kept = tensor != 0
        mask = torch.from_numpy(np.packbits(kept.numpy()))
        values = tensor[kept]
        if values.nbytes + mask.nbytes < tensor.nbytes:
            stored |= {name + VALUES: values, name + MASK: mask}
            shapes[name] = list(tensor.shape)
        else:
            stored[name] = tensor
    return stored, shapes


def with_zeros(stored: Tensors, shapes: Mapping[str, list[int]]) -> Tensors:
    """Undo `without_zeros`. Raises ValueError where the shapes are larger than the masks."""
    ends = (VALUES, MASK)
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(ends)}
    for name, shape in shapes.items():
        count = math.prod(shape)
        if not 0 <= count <= 8 * stored[name + MASK].numel():
            raise ValueError(f"{name} has {count:,} entries, more than its mask")
        bits = np.unpackbits(stored[name + MASK].numpy(), count=count)
        full = torch.zeros(count, dtype=stored[name + VALUES].dtype)
        full[torch.from_numpy(bits).bool()] = stored[name + VALUES]
        tensors[name] = full.view(shape)
    return tensors
