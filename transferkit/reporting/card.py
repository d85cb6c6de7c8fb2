"""The model card of a run: README.md in the format of the Hugging Face hub.

Source: https://huggingface.co/docs/hub/model-cards, the metadata's fields; Mitchell et al., "Model
Cards for Model Reporting", FAT* 2019, what a card tells.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from transferkit.backbones.create import pretrained_config
from transferkit.evaluation.comparison import figure_text
from transferkit.reporting.gather import RunData
from transferkit.reporting.page import environment, share_text

Intervals = Mapping[str, tuple[float, float]]

FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top_3_accuracy": "top-3 accuracy",
    "auroc": "AUROC",
    "log_loss": "log loss (nats)",
    "brier": "Brier score",
    "ece": "expected calibration error",
}
HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "auroc": "roc_auc"}
"""Figures that the hub lists -> their names there."""
HUB_LICENSES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "openrail"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc0-1.0", "gpl-3.0"),
    *("lgpl-3.0", "agpl-3.0", "mpl-2.0", "isc", "unlicense"),
}
FEW_PICTURES = 20  # training pictures of a class below which a card warns
MOST_NAMED = 8  # of them
NOT_FROM_A_MODEL = ("random", "file ")  # how `weights_source` begins where no known model was first


def model_card(run: RunData, intervals: Intervals) -> str:
    """Return the text of the card.

    intervals: figure -> (low, high), see `bootstrap_intervals`. Names of classes and files are
    escaped; no path of this machine is in it, since a card is made to be published.
    """
    description = run.description
    template = _environment().get_template("card.md")
    return template.render(
        metadata=Markup(card_data(run).to_yaml(line_break="\n")),
        run=run,
        d=description,
        scratch=_is_from_scratch(description),
        intervals=intervals,
        figures=_figures(run.summary["metrics"], intervals),
        dataset=dataset_name(run),
        started_from=_started_from(description),
        calibration=run.calibration,
        selective=_selective_accuracy(run.calibration),
        rare=_rare(run),
        confused=run.confused[:3],
    )


def card_data(run: RunData) -> ModelCardData:
    """Return the metadata: licence, library, task, base model, figures."""
    description, metrics = run.description, run.summary["metrics"]
    license_name = str(description.get("license") or "unknown").lower()
    known = license_name in HUB_LICENSES
    named = license_name not in ("unknown", "none: from scratch")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=dataset_name(run),
            dataset_split="validation",
            metric_type=hub_name,
            metric_name=FIGURES[name],
            metric_value=round(metrics[name], 4),
        )
        for name, hub_name in HUB_METRICS.items()
        if metrics.get(name) is not None
    ]
    return ModelCardData(
        license=license_name if known else "other" if named else "unknown",
        license_name=license_name if named and not known else None,
        library_name="transferkit",
        pipeline_tag="image-classification",
        tags=["image-classification", "transfer-learning", "timm", str(description["backbone"])],
        base_model=base_model(description),
        metrics=[str(result.metric_type) for result in results],
        model_name=run.folder.resolve().name,
        eval_results=results,
    )


def base_model(description: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the model that training started from, if any."""
    if _is_from_scratch(description) or _started_from(description) == "unknown":
        return None
    if str(description["started_from"]).startswith(NOT_FROM_A_MODEL):
        return None
    return pretrained_config(str(description["backbone"])).get("hf_hub_id") or None


def dataset_name(run: RunData) -> str:
    """Return the last part of where the pictures came from."""
    data = run.config.data if run.config else None
    source = data and (data.path or data.manifest)
    return source.name if source else "pictures in folders"


def _is_from_scratch(description: Mapping[str, Any]) -> bool:
    return str(description.get("started_from", "")).startswith("random")


def _started_from(description: Mapping[str, Any]) -> str:
    """Return what training started from, without a path of this machine."""
    source = str(description.get("started_from") or "unknown")
    if source.startswith("file "):
        return "a file of weights, " + re.split(r"[/\\]", source)[-1]
    return source


def _figures(metrics: Mapping[str, Any], intervals: Intervals) -> list[tuple[str, str, str]]:
    """Return (label, value, interval) of the figures that the run has."""
    rows = []
    for name, label in FIGURES.items():
        if metrics.get(name) is not None:
            sides = [figure_text(name, side) for side in intervals.get(name, ())]
            rows.append((label, figure_text(name, metrics[name]), " to ".join(sides)))
    return rows


def _selective_accuracy(calibration: Mapping[str, Any] | None) -> float | None:
    """Return the accuracy on the most certain 80 % of validation."""
    points = calibration["risk_coverage"] if calibration else []
    near = min(points, key=lambda p: abs(p["coverage"] - 0.8), default=None)
    return float(near["accuracy"]) if near and abs(near["coverage"] - 0.8) < 0.05 else None


def _rare(run: RunData) -> list[tuple[str, int]]:
    """Return the classes with the fewest training pictures, where they are few."""
    counts = [(name, c.get("train", 0)) for name, c in run.data.get("counts", {}).items()]
    few = [(name, count) for name, count in counts if count < FEW_PICTURES]
    return sorted(few, key=lambda pair: pair[1])[:MOST_NAMED]


def escape_markdown(value: Any) -> Any:
    """Return text escaped for Markdown, on one line; Markup stays as it is."""
    if isinstance(value, Markup):
        return str(value)
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|~!$])", r"\\\1", text)


@cache
def _environment() -> Environment:
    pages = environment()
    templates = Environment(
        loader=pages.loader,
        autoescape=False,  # `finalize` escapes for Markdown
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {
        "share": lambda value: Markup(share_text(value)),
        "figure": lambda value: Markup(figure_text("f1", value)),
    }
    return templates
