"""The Python interface: `import transferkit as tk`; the same options and errors as the commands.

An option is named as its flag, with underscores: `image_size=288` for `--image-size 288`, or by its
key in a recipe, `**{"training.lr": 1e-3}`.
"""

import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from transferkit import console
from transferkit.config import Config, option_fields
from transferkit.config.data import Data
from transferkit.data.names import did_you_mean
from transferkit.errors import usage_error
from transferkit.evaluation.measured import Measured
from transferkit.events import Show, silent
from transferkit.finetuning.backbone_choice import Choice
from transferkit.finetuning.wrong_labels import WrongLabels
from transferkit.inference.outputs import Outputs
from transferkit.recipes.reading import find_recipe, load_config, predict_options, read_recipe
from transferkit.runs.folder import REPORT, RunFolder, open_run
from transferkit.verbs import choose as choose_verb
from transferkit.verbs import embed as embed_verb
from transferkit.verbs import evaluate as evaluate_verb
from transferkit.verbs import finetune as finetune_verb
from transferkit.verbs import labels as labels_verb
from transferkit.verbs import predict as predict_verb

Picture = str | Path | Image.Image | np.ndarray
"""A file, an image, or pixels (H, W, 3) uint8."""


@dataclass(frozen=True)
class Run:
    """A finished run. path: its folder."""

    path: Path

    @property
    def folder(self) -> RunFolder:
        """The run's files."""
        return open_run(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json says: metrics, stages, times."""
        found: dict[str, Any] = self.folder.read_json("summary") or {}
        return found

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / REPORT

    def predict(self, pictures: Picture | Sequence[Picture], **options: Any) -> Any:
        """Classify pictures; a row for each: a pandas frame where that is installed, else dicts.

        options: those of `transferkit predict`, such as mc_dropout=30. Raises UserError.
        """
        with files_of(pictures) as files:
            outputs = Outputs(None)
            flags = keyed(options, ("predict",))
            chosen = predict_verb.read_options([self.folder], (), flags, outputs)
            job = predict_verb.open_job([self.folder], (files, io.StringIO()), chosen)
            return framed(predict_verb.predict(job, outputs, silent))

    def embed(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """Return the features (N, D) of pictures; NaN for one that cannot be read."""
        from safetensors.numpy import load_file

        with files_of(pictures) as files, TemporaryDirectory() as place:
            output = Path(place) / "features.safetensors"
            embed_verb.embed(self.path, [*map(Path, files)], output, "auto", silent)
            found: np.ndarray = load_file(output)["features"]
            return found

    def evaluate(
        self,
        data: str | Path | None = None,
        folds: bool = False,
        split: str = "auto",
        **options: Any,
    ) -> Measured:
        """Compare predictions with labels. folds: what `finetune(folds=...)` said, without data."""
        if folds:
            return evaluate_verb.evaluate_folds(self.folder)
        given = Data(path=None if data is None else Path(data))
        chosen = predict_options(self.folder, (), keyed(options, ("predict",)))
        return evaluate_verb.evaluate([self.folder], given, split, chosen, silent)

    def _repr_html_(self) -> str:
        """Show the report in a notebook."""
        page = html.escape(self.report.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" width="100%" height="800"></iframe>'


def finetune(
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    stages: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Train a classifier on a folder of pictures, as `transferkit finetune` does.

    out: the run folder to make. recipe: a file or the name of a shipped one. progress: show it.
    Raises UserError.
    """
    config = configured(data, recipe, {**options, **({"stages": stages} if stages else {})})
    with shown(progress) as show:
        return Run(finetune_verb.finetune(config, None if out is None else Path(out), show).run)


def load(path: str | Path) -> Run:
    """Open a finished run. Raises UserError where there is none."""
    return Run(open_run(Path(path)).path)


def choose(
    data: str | Path,
    *,
    backbones: Iterable[str] = (),
    budget: str | None = None,
    plot: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Choice:
    """Compare backbones, input sizes and framings. plot: a .png. Raises UserError."""
    config = configured(data, None, options)
    with shown(progress) as show, TemporaryDirectory() as place:
        path = Path(plot) if plot else Path(place) / "choice.png"
        return choose_verb.choose(config, [*backbones], budget, path, show)[0]


def labels(
    data: str | Path | None = None,
    *,
    run: str | Path | None = None,
    select: int | None = None,
    progress: bool = True,
    **options: Any,
) -> WrongLabels:
    """List the labels that are probably wrong, of a data set or of what a run has kept."""
    config = configured(data, None, options)
    with shown(progress) as show:
        return labels_verb.labels(config, None if run is None else Path(run), select, None, show)


def configured(
    data: str | Path | None, recipe: str | Path | None, options: Mapping[str, Any]
) -> Config:
    """Return the checked configuration of a fine-tuning."""
    sections = {item.key.split(".")[0] for item in option_fields()} - {"predict", "pretraining"}
    given = {"data.path": str(data)} if data is not None else {}
    plan = {"stages": options["stages"]} if "stages" in options else {}
    rest = {name: value for name, value in options.items() if name != "stages"}
    raw = None if recipe is None else read_recipe(find_recipe(str(recipe)))
    return load_config(raw, (), given | plan | keyed(rest, sections))


def keyed(options: Mapping[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    """Return options under their keys. Raises a usage error for a name that is none."""
    known: dict[str, str] = {}
    for item in option_fields():
        if item.key.split(".")[0] in sections:
            flag = item.option.flag.split("/")[0].lstrip("-").replace("-", "_")
            known |= {flag: item.key, item.key: item.key}
    for name in options:
        if name not in known:
            what = f"there is no option {name}{did_you_mean(name, known)}"
            raise usage_error(
                what, remedy="options are named as the flags: --image-size: image_size"
            )
    lists = {name: [*v] if isinstance(v, tuple) else v for name, v in options.items()}
    return {known[name]: str(v) if isinstance(v, Path) else v for name, v in lists.items()}


@contextmanager
def shown(progress: bool) -> Iterator[Show]:
    """Show what goes on, as the commands do, or nothing."""
    with console.LiveView(muted=not progress) as view:
        yield view.show


@contextmanager
def files_of(pictures: Picture | Sequence[Picture]) -> Iterator[list[str]]:
    """Give pictures as files; images are written to a folder that is gone afterwards."""
    several = isinstance(pictures, Sequence) and not isinstance(pictures, str)
    items: Sequence[Any] = pictures if several else [pictures]  # type: ignore[assignment]
    with ExitStack() as held:
        place = Path(held.enter_context(TemporaryDirectory()))
        files = []
        for number, item in enumerate(items):
            if isinstance(item, str | Path):
                files.append(str(item))
                continue
            image = Image.fromarray(item) if isinstance(item, np.ndarray) else item
            image.save(place / f"{number:06d}.png")
            files.append(str(place / f"{number:06d}.png"))
        yield files


def framed(rows: Iterable[dict[str, Any]]) -> Any:
    """Return rows as a pandas frame where that is installed."""
    found = [*rows]
    try:
        import pandas
    except ImportError:
        return found
    return pandas.DataFrame(found)
