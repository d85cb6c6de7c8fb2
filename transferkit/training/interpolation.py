"""WiSE-FT: between the weights before unfreezing and those after it."""

from collections.abc import Collection, Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from transferkit import processes
from transferkit.events import Event, Notice
from transferkit.training.averaging import copy_
from transferkit.training.loop import validate
from transferkit.training.run import Run, ranked, under_l1
from transferkit.training.sources import open_source
from transferkit.training.stages import PlannedStage

AUTO = "auto"
SHARES = tuple(step / 10 for step in range(11))
"""What auto tries: 0 is as before unfreezing, 1 as after it."""


def interpolated(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    share: float,
    sparse: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return (1 - share) * before + share * after, by name; whole numbers are those after.

    share: 0..1, both ends exact. sparse: names of weights under L1; what is zero after stays zero
    on the way.
    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 4.
    """
    found = {
        name: torch.lerp(before[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in after.items()
    }
    for name in sparse if share else ():
        found[name] = found[name] * (after[name] != 0)
    return found


def interpolate(run: Run) -> Generator[Event, None, None]:
    """Put the weights at the wanted share of the way into the classifier, and say which.

    With "auto" the share of `SHARES` that validation likes best; of equal ones the lower loss.
    """
    kept = run.folder.load_checkpoint("start")
    stage = lowest_trained(run)
    if kept is None or stage is None:
        return
    source = yield from open_source(run.parts, stage, run.state.base)
    current = run.classifier.state_dict()
    before = {name: t.to(current[name].device) for name, t in kept["model"].items()}
    after = {name: current[name].clone() for name in before}
    sparse = [name for name in under_l1(run) if name in after]
    wanted = run.settings.wise_ft
    rows: list[dict[str, Any]] = []
    for share in SHARES if wanted == AUTO else (float(wanted or 0), 1.0):
        copy_(current, interpolated(before, after, share, sparse))
        rows.append({"share": share, **processes.agreed(validate(run, source, source.network))})

    metric = run.settings.metric
    chosen = max(rows, key=lambda row: ranked(row, metric)) if wanted == AUTO else rows[0]
    copy_(current, interpolated(before, after, chosen["share"], sparse))
    run.interpolation = rows
    run.interpolated = chosen["share"]
    yield Notice(
        f"weights {chosen['share']:g} of the way from before unfreezing to after it: accuracy "
        f"{chosen['val_accuracy']:.1%}, loss {chosen['val_loss']:.4f} (all of the way: "
        f"{rows[-1]['val_accuracy']:.1%}, {rows[-1]['val_loss']:.4f})"
    )


def lowest_trained(run: Run) -> PlannedStage | None:
    """Return the stage that reached deepest of those that ran; None when all trained the head."""
    ran = {int(row["stage"]) for row in run.state.rows}
    stages = [run.plan.stages[number] for number in ran]
    unfreezing = [stage for stage in stages if stage.boundary < len(run.plan.groups)]
    return min(unfreezing, key=lambda stage: stage.boundary, default=None)
