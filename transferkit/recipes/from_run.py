"""`--from RUN`: start from the backbone that an earlier run ended with."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transferkit.config import BackboneOptions, Config
from transferkit.errors import usage_error
from transferkit.files.foreign_files import path_problem
from transferkit.runs.folder import RunFolder, open_run

KEY = "from_run"
OF_THE_RUN_ALONE = (
    *("pretrained", "weights", "drop_path", "dropout", "dropout_kind"),
    *("reuse_blocks", KEY),
)
"""What a new run decides for itself; all other options of a backbone give it its tensors."""

SEEN = ("image_size", "crop", "crop_share")
"""What a new run may change: how pictures are seen, not the tensors."""


def start_from(raw: dict[str, Any], config_of: Callable[[RunFolder], Config]) -> dict[str, Any]:
    """Replace `backbone.from_run`, in nested dicts, by that run's backbone and its weights.

    config_of: run -> how it was configured. Raises a usage error where the options say otherwise,
    and UserError where the run holds no model yet.
    """
    section = raw.get("backbone")
    if not isinstance(section, dict) or not section.get(KEY):
        return raw
    place = str(section.pop(KEY))
    if why := path_problem(place):
        raise usage_error(f"backbone.{KEY} {why}: {place[:60]!r}...")
    run = open_run(Path(place))
    if section.get("weights") is not None:
        raise usage_error("--from and --weights contradict each other: leave one out")
    weights = run.weights_file()
    config = config_of(run)
    usual = BackboneOptions()
    own = {
        name: value
        for name, value in asdict(config.backbone).items()
        if name not in OF_THE_RUN_ALONE and value != getattr(usual, name)
    }
    own["name"] = config.backbone.name
    if section.get("crop") not in (None, own.get("crop")):
        own.pop("crop_share", None)
    for name in (f.name for f in fields(BackboneOptions)):
        given = section.get(name)
        given = tuple(given) if isinstance(given, list) else given  # a list in TOML
        if name in own and given not in (None, own[name]) and name not in SEEN:
            raise usage_error(
                f"backbone.{name} = {given} contradicts --from {run.path}",
                f"the backbone there has {name} = {own[name]}",
                "leave it out",
            )
    return {**raw, "backbone": {**own, **section, "weights": str(weights), "pretrained": True}}
