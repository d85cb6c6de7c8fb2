"""A run on disk: the only module that knows the names of the files inside.

Every file except the log is replaced as a whole, so a run folder is readable at any moment.
torch and safetensors are imported where tensors are read or written, so that looking at a run
folder stays cheap.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from transferkit.errors import UserError
from transferkit.files.atomic_write import (
    disk_error,
    make_inside,
    open_to_add,
    png_of,
    write_atomically,
)
from transferkit.files.csv_rows import as_number, from_csv, to_csv
from transferkit.files.foreign_files import parse_json, read_text, require_regular
from transferkit.files.strict_json import strict_json
from transferkit.redaction import redacted
from transferkit.runs.description import check_description

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

FORMAT_VERSION = 1

RECIPE = "recipe.toml"
MODEL = "model.safetensors"
DESCRIPTION = "model.json"
METRICS = "metrics.csv"
MONITORING = "monitoring.csv"
PREDICTIONS = "predictions.csv"
CALIBRATION = "calibration.json"  # see transferkit.inference.calibration.Calibration
VALIDATION = "validation.safetensors"  # logits (N, K), labels (N,), features (N, D)
SOLVE = "solve.safetensors"  # what a solve has seen, see transferkit.training.kept_solve
REFERENCE = "reference.safetensors"  # features (M, D), labels (M,) of training pictures
LOG = "log.txt"
REPORT = "report.html"
CARD = "README.md"  # the model card
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
PROFILE = "profile"
PRETRAINING = "pretraining"  # a run of its own, where a plan begins with one

BEGINNINGS = (RECIPE, "data.json", "budget.json", LOG)
"""What is written before training begins; the recipe last, with it a run can be taken up."""

RECIPE_HEADER = re.compile(r"# transferkit run folder, format (\d+)\n")
TEXT_COLUMNS = ("stage_name", "group")  # never read as numbers

CheckpointKind = Literal["last", "best", "start", "solved"]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Methods raise UserError when it cannot be written or read.

    made: the folders that were made for it, outermost first; none for an earlier run.
    """

    path: Path
    made: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def has_model(self) -> bool:
        """Whether a finished or best-so-far model is there."""
        return (self.path / MODEL).is_file() and (self.path / DESCRIPTION).is_file()

    @property
    def files(self) -> dict[str, Path]:
        """What there is to look at: name for a person -> path of an existing file or folder."""
        names = {"report": REPORT, "model card": CARD, "model": MODEL, "description": DESCRIPTION}
        names |= {"recipe": RECIPE, "metrics": METRICS, "monitoring": MONITORING}
        names |= {"predictions": PREDICTIONS, "calibration": CALIBRATION, "plots": PLOTS}
        names |= {"profile": PROFILE, "log": LOG}
        paths = {name: self.path / file for name, file in names.items()}
        return {name: path for name, path in paths.items() if path.exists()}

    def write_recipe(self, toml_text: str) -> None:
        """Write the resolved configuration. The file's first line tells the folder's format."""
        self._write_text(RECIPE, f"# transferkit run folder, format {FORMAT_VERSION}\n{toml_text}")

    def read_recipe(self) -> str:
        """Return the text given to `write_recipe`."""
        return RECIPE_HEADER.sub("", self._read_text(RECIPE), count=1)

    def save_model(self, description: Mapping[str, Any], tensors: Mapping[str, "Tensor"]) -> None:
        """Write weights and, last, the description that makes them usable.

        The same tensors always give the same bytes in `model.safetensors`.
        """
        self._save_tensors(MODEL, tensors)
        self.write_json(DESCRIPTION, {"format_version": FORMAT_VERSION, **description})

    def deciding_files(self) -> list[Path]:
        """Return the files that predictions depend on."""
        names = (MODEL, DESCRIPTION, CALIBRATION, VALIDATION, REFERENCE)
        return [self.path / name for name in names if (self.path / name).is_file()]

    def weights_file(self) -> Path:
        """Return the file that holds the model's tensors. Raises UserError when there is none."""
        if not self.has_model:
            remedy = (
                f"finish the run first: transferkit finetune (or pretrain) --resume {self.path}"
            )
            raise UserError(f"{self.path} holds no model yet", remedy=remedy)
        return self.path / MODEL

    def load_model(self) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
        """Return the description and the tensors (on the CPU) of `save_model`."""
        tensors = self._load_tensors(self.weights_file().name)
        description = self.read_description()
        description.pop("format_version", None)
        return description, tensors

    def read_description(self) -> dict[str, Any]:
        """Return the description of `save_model`. Raises UserError where it breaks its schema."""
        try:
            return check_description(self.read_json(DESCRIPTION))
        except ValueError as error:
            raise self._damaged(DESCRIPTION, error) from error

    def save_validation(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Write the final model's outputs for the validation pictures, in their order.

        tensors: logits (N, K), before any temperature; labels (N,); features (N, D); where these
        are few, left_out_logits (M, K) and left_out_labels (M,) of training pictures.
        """
        self._save_tensors(VALIDATION, tensors)

    def load_validation(self) -> dict[str, "Tensor"] | None:
        """Return the tensors of `save_validation`; None for a run that has none."""
        return self._load_tensors(VALIDATION) if (self.path / VALIDATION).is_file() else None

    def save_solve(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Write what the first solve has seen, so that another run can extend it."""
        self._save_tensors(SOLVE, tensors)

    def load_solve(self) -> dict[str, "Tensor"] | None:
        """Return the tensors of `save_solve`; None for a run that has none."""
        return self._load_tensors(SOLVE) if (self.path / SOLVE).is_file() else None

    def save_reference(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Write features (M, D), labels (M,) of training pictures, to detect unlike ones."""
        self._save_tensors(REFERENCE, tensors)

    def load_reference(self) -> dict[str, "Tensor"] | None:
        """Return the tensors of `save_reference`; None for a run that has none."""
        return self._load_tensors(REFERENCE) if (self.path / REFERENCE).is_file() else None

    def save_sampled(self, name: str, tensors: Mapping[str, "Tensor"]) -> None:
        """Write logits (N, S, K) of the validation pictures, sampled in a way called `name`."""
        with contextlib.suppress(OSError, UserError):  # of somebody else: then sampled again
            self._save_tensors(f"sampled-{name}.safetensors", tensors)

    def load_sampled(self, name: str) -> dict[str, "Tensor"] | None:
        """Return the tensors of `save_sampled`; None where there are none."""
        file = f"sampled-{name}.safetensors"
        return self._load_tensors(file) if (self.path / file).is_file() else None

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one row per epoch; columns are the union over the rows."""
        self._write_text(METRICS, to_csv(rows))

    def write_monitoring(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one row per epoch and block group; columns are the union over the rows."""
        self._write_text(MONITORING, to_csv(rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of `write_metrics`, numbers as int and float; [] when there are none."""
        return _with_numbers(self._read_table(METRICS))

    def read_monitoring(self) -> list[dict[str, Any]]:
        """Return the rows of `write_monitoring` likewise."""
        return _with_numbers(self._read_table(MONITORING))

    def _read_table(self, name: str) -> list[dict[str, str]]:
        try:
            return from_csv(self._read_text(name)) if (self.path / name).exists() else []
        except ValueError as error:
            raise self._damaged(name, error) from error

    def save_checkpoint(self, kind: CheckpointKind, state: Mapping[str, Any]) -> None:
        """Write nested dicts and lists of tensors, numbers, strings and None."""
        import torch

        self._write(_checkpoint(kind), lambda file: torch.save(dict(state), file))

    def load_checkpoint(self, kind: CheckpointKind) -> dict[str, Any] | None:
        """Return the state of `save_checkpoint`, tensors on the CPU; None when there is none."""
        import torch

        from transferkit.files.tensor_files import require_intact

        path = self.path / _checkpoint(kind)
        if not path.exists():
            return None
        try:
            require_regular(path)
            require_intact(path)
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged pickle or archive can raise anything
            raise self._damaged(_checkpoint(kind), error) from error

    def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one row per picture of the validation set."""
        self._write_text(PREDICTIONS, to_csv(rows))

    def read_predictions(self) -> list[dict[str, str]]:
        """Return the rows of `write_predictions` as text; [] when there are none."""
        return self._read_table(PREDICTIONS)

    def write_page(self, name: str, text: str) -> Path:
        """Write a text for people, `REPORT` or `CARD`; return its path."""
        self._write_text(name, text)
        return self.path / name

    def plot_path(self, name: str) -> Path:
        """Return where the plot called `name` lies: plots/<name>.png."""
        return self.path / PLOTS / f"{name}.png"

    def save_plot(self, name: str, figure: "Figure") -> Path:
        """Draw `figure` as a PNG; return its path."""
        self._write(f"{PLOTS}/{name}.png", png_of(figure))
        return self.plot_path(name)

    def save_trace(self, name: str, trace: bytes) -> None:
        """Write what a profiler recorded, in Chrome's format."""
        self._write(f"{PROFILE}/{name}.json", lambda file: file.write(trace))

    def plots(self) -> list[Path]:
        """Return the plots that are there, by name."""
        return sorted((self.path / PLOTS).glob("*.png"))

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as strict JSON. name: "inspection", "summary", "split"; .json is added."""
        self._write_text(_json_file(name), strict_json(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Return what `write_json` wrote under `name`; None when there is none."""
        file = _json_file(name)
        try:
            return parse_json(self._read_text(file)) if (self.path / file).exists() else None
        except ValueError as error:
            raise self._damaged(file, error) from error

    def discard_unstarted(self) -> None:
        """Remove a run that has no checkpoint yet, and the folders that were made for it."""
        begun = (CHECKPOINTS, PRETRAINING)
        if any(os.path.exists(self.path / name) for name in begun):  # False: a name is too long
            return
        for name in BEGINNINGS:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        for folder in reversed(self.made):
            with contextlib.suppress(OSError):  # missing, or something else lies in it
                folder.rmdir()

    def log(self, line: str) -> None:
        """Append `line`, with the time of day, to the log."""
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"{stamp} {redacted(line)}".replace("\n", "\n    ") + "\n"
        with self._disk_errors(), open_to_add(self.path / LOG) as file:
            file.write(text.encode(errors="backslashreplace"))

    def _save_tensors(self, name: str, tensors: Mapping[str, "Tensor"]) -> None:
        from transferkit.files.tensor_files import to_safetensors

        # serialised at once, not by save_file: that one leaves a temporary file behind on failure
        data = to_safetensors(tensors)
        self._write(name, lambda file: file.write(data))

    def _load_tensors(self, name: str) -> dict[str, "Tensor"]:
        from safetensors import SafetensorError

        from transferkit.files.tensor_files import from_safetensors

        try:
            require_regular(self.path / name)
            return from_safetensors(self.path / name)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(name, error) from error

    def _write_text(self, name: str, text: str) -> None:
        data = redacted(text).encode(errors="backslashreplace")
        self._write(name, lambda file: file.write(data))

    def _write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        path = self.path / name
        with self._disk_errors():
            make_inside(self.path, path.parent)
            write_atomically(path, write)

    def _read_text(self, name: str) -> str:
        try:
            return read_text(self.path / name)
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> UserError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        again = f"transferkit finetune (or pretrain) --recipe {self.path}"
        remedy = f"put back a copy of it, or begin a run like this one: {again}"
        return UserError(f"cannot read {self.path / name}", where=reason, remedy=remedy)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn a failure of the disk into a UserError."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save hides the OSError behind its own
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError):
                raise disk_error(self.path, cause) from error
            raise


def open_run(path: Path) -> RunFolder:
    """Open the folder of an earlier run, finished or not.

    Raises UserError if it is none, or if a newer release of transferkit made it.
    """
    if not (path / RECIPE).is_file() and not (path / DESCRIPTION).is_file():
        reason = "there is no such folder" if not path.exists() else f"it holds no {RECIPE}"
        remedy = "give the folder that transferkit finetune printed (by default below runs/)"
        raise UserError(f"{path} is not a run folder", reason, remedy)
    run = RunFolder(path)
    version = _format_of(run)
    if version > FORMAT_VERSION:
        where = f"its format is {version}; this release reads up to {FORMAT_VERSION}"
        what = f"{path} was made by a newer release of transferkit"
        raise UserError(what, where, "upgrade: pip install --upgrade transferkit")
    return run


def _format_of(run: RunFolder) -> int:
    versions = [FORMAT_VERSION]  # a recipe whose first line someone took out is taken as ours
    if (run.path / RECIPE).is_file():
        header = RECIPE_HEADER.match(run._read_text(RECIPE))
        versions += [int(header[1][:9])] if header else []  # of more digits: newer in any case
    description = run.read_json(DESCRIPTION)
    if isinstance(description, dict) and isinstance(description.get("format_version"), int):
        versions.append(description["format_version"])
    return max(versions)


def _with_numbers(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{n: c if n in TEXT_COLUMNS else as_number(c) for n, c in row.items()} for row in rows]


def _checkpoint(kind: CheckpointKind) -> str:
    return f"{CHECKPOINTS}/{kind}.pt"


def _json_file(name: str) -> str:
    return f"{name.removesuffix('.json')}.json"
