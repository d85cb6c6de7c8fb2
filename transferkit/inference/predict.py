"""A run's model, rebuilt from its folder: the backbone as an engine, and the head."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.create import blank_backbone
from transferkit.backbones.engine import Engine, choose_engine, make_engine
from transferkit.backbones.head import Classifier, HeadDesign, make_head
from transferkit.backbones.models import least_parameters
from transferkit.backbones.scratch import NETWORKS
from transferkit.backbones.structure import Structure
from transferkit.closed_form.depths import Depth, num_columns
from transferkit.closed_form.result import DepthClassifier
from transferkit.data.loader import ViewMaker
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.reading import reading_from
from transferkit.errors import UserError, usage_error
from transferkit.runs.folder import RunFolder


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready to predict. maker: preprocesses pictures.

    temperature: fitted on validation; divides the logits. num_features: D.
    """

    classifier: Classifier
    classes: tuple[str, ...]
    maker: ViewMaker
    description: dict[str, Any]
    temperature: float = 1.0
    num_features: int = 0


def is_pretraining(description: Mapping[str, Any]) -> bool:
    """Whether a model.json is of a pretraining run, whose backbone has no classifier."""
    return description.get("task") == "pretraining"


def load_run(folder: RunFolder, drop_path: float | None = None) -> LoadedRun:
    """Rebuild the classifier of a run folder. Raises UserError when there is none or it is damaged.

    drop_path: rate of stochastic depth, which only sampling uses; None takes that of the training.
    """
    loaded = load_backbone(folder, drop_path)
    if is_pretraining(loaded.description):
        raise usage_error(
            f"{folder.path} is a pretraining run: it has a backbone, but no classifier",
            "",
            f"train one: transferkit finetune DATA --from {folder.path}\n"
            f"or take its features: transferkit embed {folder.path} IMAGES -o features.safetensors",
        )
    return loaded


def blank_classifier(
    description: Mapping[str, Any], drop_path: float | None = None
) -> tuple[Classifier, int]:
    """Build the network that a model.json describes, for weights to be loaded, and its D.

    The head of a pretraining run is the identity. drop_path: see `load_run`.
    Raises KeyError, TypeError or ValueError where entries are missing or wrong.
    """
    backbone = blank_backbone(
        description["backbone"],
        description["image_size"],
        description.get("drop_path", 0.0) if drop_path is None else drop_path,
        Structure.from_dict(description["structure"]),
    )
    depths = tuple(Depth(**depth) for depth in description.get("depths", ()))
    num_features = num_columns(depths) or backbone.num_features
    head: nn.Module = nn.Identity()
    if not is_pretraining(description):
        design = HeadDesign.from_dict(description["head"])
        head = make_head(num_features, len(description["classes"]), design)
    preprocessing = Preprocessing.from_dict(description["preprocessing"])
    scale = (preprocessing.mean, preprocessing.std)
    if depths:
        mirror = bool(description.get("mirror", False))
        return DepthClassifier(backbone.model, head, *scale, depths, mirror), num_features
    return Classifier(backbone.model, head, *scale), num_features


def refuse_larger(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, before anything is built, if the network is larger than its weights.

    A short description could demand more memory than there is.
    """
    there = sum(tensor.numel() for tensor in tensors.values())
    widths = [*description.get("head", {}).get("hidden", ()), len(description.get("classes", ()))]
    needed = sum(a * b for a, b in pairwise(widths))
    needed += widths[0] * sum(depth["columns"] for depth in description.get("depths", ()))
    scratch = description["structure"].get("scratch")
    if scratch is not None:
        needed += (scratch["depth"] - 1) * scratch["width"] ** 2
    elif description["backbone"] not in NETWORKS:
        whole = not description["structure"].get("drop_top_blocks")
        needed += least_parameters(description["backbone"]) if whole else 0
    if needed > 2 * there:  # folded batch norms are not in the file
        raise ValueError(f"it describes {needed:,} weights or more, the file holds {there:,}")


def load_backbone(folder: RunFolder, drop_path: float | None = None) -> LoadedRun:
    """Load a run like `load_run`; also a pretraining run, which has no classes and no head."""
    description, tensors = folder.load_model()
    pretrained_only = is_pretraining(description)
    try:
        refuse_larger(description, tensors)
        classifier, num_features = blank_classifier(description, drop_path)
        if pretrained_only:
            tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        classifier.load_state_dict(tensors)
        classes = tuple(
            description.get("classes", ()) if pretrained_only else description["classes"]
        )
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        temperature = float(description.get("temperature", 1.0))
        maker = ViewMaker(preprocessing, reading=reading_from(description))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder.path} holds a model that does not fit its description",
            f"{type(error).__name__}: {str(error)[:300]}",
            "the folder was changed or damaged; train again, or restore it from a copy",
        ) from None
    return LoadedRun(classifier.eval(), classes, maker, description, temperature, num_features)


class FeatureNetwork(nn.Module):
    """The part of a classifier below its head: pictures (N, 3, H, W) -> features (N, D)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D) of images (N, 3, H, W), values 0..255."""
        return self.classifier.features(images)


def head_logits(classifier: Classifier, features: Tensor) -> Tensor:
    """Return logits (N, K) on the CPU of features (N, D)."""
    classifier.head.eval()
    with torch.no_grad():
        return classifier.head(features.to(classifier.mean.device)).float().cpu()


def picture_engine(
    classifier: Classifier, maker: ViewMaker, num_pictures: int, wanted: str, device: torch.device
) -> Engine:
    """Prepare a backbone for a number of pictures: (N, 3, H, W) bytes -> features (N, D)."""
    size = maker.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, size.height_px, size.width_px)
    example = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    name = choose_engine(wanted, device, num_pictures)
    return make_engine(FeatureNetwork(classifier), example, name, device)
