"""What a field of the configuration says of itself."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Option:
    """How a field looks on the command line. flag: long option; help: one sentence.

    default: what happens without the option, where the field's default is None and says nothing.
    usual: whether it is on the first page of `--help`; the rest is shown by `--help-all`.
    """

    flag: str
    help: str
    default: str = ""
    usual: bool = False


class Section:
    """Marks a dataclass as a recipe table; unknown keys and NaN or infinite numbers are refused."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
