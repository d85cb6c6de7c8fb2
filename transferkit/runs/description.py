"""The schema of model.json: what a description may hold before anything is built from it."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Len
from typing_extensions import TypedDict

Text = Annotated[str, Len(0, 10_000)]
Side = Annotated[int, Interval(ge=1, le=4096)]
Width = Annotated[int, Interval(ge=1, le=1_000_000)]
Rate = Annotated[float, Interval(ge=0, le=1)]
Three = Annotated[list[Annotated[float, Interval(ge=-1e9, le=1e9)]], Len(3, 3)]


class PreprocessingEntry(TypedDict, total=False):
    """See `transferkit.data.preprocessing.Preprocessing`."""

    height_px: Side
    width_px: Side
    crop_pct: Annotated[float, Interval(ge=0.01, le=1)]
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Text
    mean: Three
    std: Annotated[list[Annotated[float, Interval(gt=0, le=1e9)]], Len(3, 3)]


class HeadEntry(TypedDict, total=False):
    """See `transferkit.backbones.head.HeadDesign`."""

    hidden: Annotated[list[Width], Len(0, 1000)]
    activation: Text
    slope: float | None
    initializer: Text | None
    classifier_initializer: Text
    batchnorm: list[Text]
    dropout: Annotated[list[Rate], Len(1, 1001)]
    dropout_kind: Text
    selu_features: bool


class ScratchEntry(TypedDict, total=False):
    """See `transferkit.backbones.scratch.ScratchDesign`."""

    depth: Annotated[int, Interval(ge=1, le=10_000)]
    width: Width
    activation: Text
    slope: float | None
    initializer: Text | None
    batchnorm: list[Text]
    dropout: Rate
    dropout_kind: Text
    skip: bool


class StructureEntry(TypedDict, total=False):
    """See `transferkit.backbones.structure.Structure`."""

    scratch: ScratchEntry | None
    pooling: Text | None
    drop_top_blocks: Annotated[int, Ge(0)]
    replace_activations: Text | None
    slope: float | None


class DepthEntry(TypedDict):
    """See `transferkit.closed_form.depths.Depth`."""

    name: Text
    module: Text
    kind: Literal["maps", "maps, channels last", "tokens", "vector"]
    prefix: Annotated[int, Interval(ge=0, le=1000)]
    columns: Width


class Description(TypedDict, total=False):
    """The entries that code reads; there may be others. Which ones are needed, their reader says.

    max_pixels and temperature, head and classes are there in runs with a classifier.
    """

    format_version: Annotated[int, Ge(0)]
    task: Text
    backbone: Annotated[str, Len(1, 200)]
    image_size: Side | None
    structure: StructureEntry
    head: HeadEntry
    depths: list[DepthEntry]
    mirror: bool
    drop_path: Annotated[float, Interval(ge=0, lt=1)]
    classes: Annotated[list[Text], Len(1, 10_000_000)]
    preprocessing: PreprocessingEntry
    background: Text
    max_pixels: Annotated[int, Ge(1)]
    depth_range: Annotated[list[Annotated[float, Interval(ge=-1e300, le=1e300)]], Len(2, 2)] | None
    bands: Annotated[list[Annotated[int, Interval(ge=1, le=100_000)]], Len(0, 3)]
    temperature: Annotated[float, Interval(gt=0, le=1e9)]
    started_from: Text
    license: Text
    data: dict[str, Any]
    validation: dict[str, Any]
    versions: dict[str, Any]


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Description)


def as_written_now(description: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the first releases did not write.

    They had no structure but timm's, one dropout rate for all layers, and no batch norm in new
    layers. Their runs have the same format version: what they wrote means the same.
    """
    filled = {**({"structure": {}} if "backbone" in description else {}), **description}
    if isinstance(head := description.get("head"), Mapping):
        rate = head.get("dropout")
        rates = {"dropout": [rate]} if isinstance(rate, int | float) else {}
        filled["head"] = {"batchnorm": [], **head, **rates}
    return filled


def check_description(description: Any) -> dict[str, Any]:
    """Return a description that keeps to the schema. Raises ValueError that names what does not."""
    from pydantic import ValidationError

    if not isinstance(description, Mapping):
        raise ValueError("it is not a JSON object")
    description = as_written_now(description)
    try:
        _adapter().validate_python(description, strict=True)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc']))} {item['msg'].replace('Input should', 'must')}, "
            f"not {repr(item['input'])[:40]}"
            for item in error.errors()[:5]
        ]
        raise ValueError("; ".join(problems)) from None
    classes = description.get("classes", ())
    if len(set(classes)) < len(classes):
        raise ValueError("classes names one class twice")
    return description
