"""What is changed of a backbone's structure before its weights are used; kept in a run folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transferkit.backbones.scratch import ScratchDesign


@dataclass(frozen=True)
class Structure:
    """How a backbone differs from timm's model of that name.

    scratch: the design of a network of our own, None for a timm model. pooling: see `set_pooling`;
    drop_top_blocks: block groups taken off; replace_activations: another activation in all blocks,
    slope: its slope.
    What is None or 0 stays as it is.
    """

    scratch: ScratchDesign | None = None
    pooling: str | None = None
    drop_top_blocks: int = 0
    replace_activations: str | None = None
    slope: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Structure":
        """Read what `to_dict` wrote. Raises TypeError for unknown names."""
        scratch = values.get("scratch")
        if scratch is not None:
            scratch = ScratchDesign(**{**scratch, "batchnorm": tuple(scratch["batchnorm"])})
        return Structure(**{**values, "scratch": scratch})
