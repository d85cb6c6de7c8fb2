"""What a backbone was trained on: input size, crop, interpolation, normalisation."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become a backbone's input.

    height_px, width_px: input size. crop_pct: share of the resized picture that the centre crop
    keeps, 0..1. crop_mode: "center", "squash" or "border". mean, std: per channel, of values 0..1.
    """

    height_px: int
    width_px: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Preprocessing":
        """Read what `to_dict` wrote."""
        lists = {"mean": tuple(values["mean"]), "std": tuple(values["std"])}
        return Preprocessing(**{**values, **lists})
