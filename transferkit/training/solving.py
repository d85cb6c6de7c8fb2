"""The closed-form stage: features of several depths, one ridge regression, judged out of sample."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.backbones.head import HeadDesign, make_head
from transferkit.closed_form.depths import Depth, num_columns
from transferkit.closed_form.judge import (
    accuracy_interval,
    disagree,
    fit_temperature,
    judge,
    log_losses,
    misses,
)
from transferkit.closed_form.left_out import Problem, Solution, left_out_scores, solve, solve_for
from transferkit.closed_form.result import DepthClassifier, put_into
from transferkit.closed_form.similar import what_similar_hide
from transferkit.closed_form.sums import one_hot
from transferkit.config import Solve
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event, Notice, StageEnded, StageStarted
from transferkit.files.foreign_files import ODD
from transferkit.training.blending import blend_
from transferkit.training.checkpoints import save_last, tensors_above, unfit, write_unsaved
from transferkit.training.depth_features import USUAL_DEPTHS, at_size
from transferkit.training.end_check import recorded
from transferkit.training.kept_solve import keep_solve
from transferkit.training.run import Run, measured, ranked
from transferkit.training.solve_features import Seen, see
from transferkit.training.solved import Solved
from transferkit.training.stages import PlannedStage
from transferkit.training.supervised import accuracies

CLEARLY = 2.0
"""Standard errors by which the last depth alone, or all, have to be better than the usual ones."""
FEW = 2
"""A class of one picture is never seen while that picture is left out."""
UNCHANGED = "the backbone has not changed since the previous solve"


@dataclass(frozen=True)
class Chosen:
    """A solution on the top depths. scores: (N, K) of pictures that it has not seen; labels: (N,).

    left_out: the same of the training pictures by leave-one-out, which a backbone that has learned
    their labels makes too good.
    """

    depths: tuple[Depth, ...]
    solution: Solution
    scores: Tensor
    labels: Tensor
    left_out: Tensor

    @property
    def misses(self) -> Tensor:
        """1 for each of those pictures that it gets wrong, else 0; (N,)."""
        return misses(self.scores, self.labels)


def solve_stage(run: Run, stage: PlannedStage) -> Iterator[Event]:
    """Solve a head on the backbone as it is, and keep it if it is the best solve so far.

    The classifier that the other stages train is left as it is. The row of metrics.csv has
    leave-one-out figures of the training pictures in the place of those of training.
    """
    state, material = run.state, run.material
    started = time.perf_counter()
    total = sum(p.numel() for p in run.classifier.parameters())
    learned = has_learned(run)
    yield StageStarted(state.stage, stage.name, 1, 0.0, 0, total, False)
    seen = yield from see(run, stage.side_px)
    with run.watch.on("training"):
        chosen = choose(run.settings.solve, seen, learned)
        temperature = fit_temperature(chosen.scores, chosen.labels)
    top = seen.on_top(len(chosen.depths))
    classifier, _ = make_solved(run, chosen.depths)
    assert isinstance(classifier.head, nn.Sequential)
    put_into(classifier.head, chosen.solution.spectrum, chosen.solution.penalty, temperature)
    share = blended(run, classifier.head, top) if learned else 0.0
    with torch.no_grad():
        logits = classifier.head.eval()(top.val_features)
    out_of_fold = None
    if run.parts.index.folds is not None:  # every picture trains, and is judged without its fold
        logits = out_of_fold = fold_scores(run, top.problem, chosen.solution) / temperature
    row: dict[str, Any] = {
        "stage": state.stage,
        "stage_name": stage.name,
        "epoch": 1,
        "train_loss": float(log_losses(chosen.left_out, seen.labels, temperature).mean()),
        "train_accuracy": 1 - float(misses(chosen.left_out, seen.labels).mean()),
        "seconds": time.perf_counter() - started,
        "cached": 0,
        **accuracies(logits, seen.val_labels),
        "seconds_validation": 0.0,
    }
    row |= processes.agreed(row)  # the clock differs
    if not learned:
        processes.from_first(keep_solve, run, seen)
        with run.watch.on("training"):
            state.left_out = left_out_figures(run, top, chosen, logits)
    reference = np.searchsorted(seen.positions, material.reference)
    features = torch.cat([top.val_features, top.problem.features[reference]])
    trusted = not learned and state.left_out is not None and not state.left_out["differs"]
    left_out = to_calibrate(chosen, seen.labels, temperature) if trusted else None
    further = {"side_px": stage.side_px, "left_out": left_out, "out_of_fold": out_of_fold}
    is_best = keep(run, row, classifier, features, further)
    state.rows.append(row | {"best": 0})
    state.epoch = 1
    yield EpochEnded(state.stage, stage.name, 1, row, is_best)
    averaged = f"; averaged with {share:.0%} of the trained head" if share else ""
    yield Notice(description(chosen, seen, learned) + averaged)
    if not learned and state.left_out:
        yield from doubts(state.left_out, row["val_accuracy"])
    state.next_stage()
    save_last(run)
    write_unsaved(run)
    seconds = time.perf_counter() - started
    yield StageEnded(state.stage - 1, stage.name, 1, measured(row, "accuracy"), seconds, "finished")


def fold_scores(run: Run, problem: Problem, solution: Solution) -> Tensor:
    """Return scores (N, K) of the pictures of a problem by the solve without their fold."""
    folds = run.parts.index.folds
    assert folds is not None
    groups = torch.from_numpy(folds[run.material.judged])
    apart = replace(problem, groups=groups)
    return left_out_scores(solution.spectrum, apart, solution.penalty)


def blended(run: Run, head: nn.Sequential, seen: Seen) -> float:
    """Average a solved head with the trained one, as is best on validation; return its share."""
    labels, metric = seen.val_labels, run.settings.metric

    def rank(logits: Tensor) -> tuple[float, float]:
        return ranked(accuracies(logits, labels), metric)

    return blend_(head, run.classifier.head, seen.val_features, labels, rank)


def is_solved(run: Run, stage: PlannedStage) -> bool:
    """Whether a solve of the same input size has solved on the backbone as it is."""
    ran = {row["stage"] for row in run.state.rows}
    solves = [run.plan.stages[number] for number in ran if run.plan.stages[number].solves]
    return not has_learned(run) and any(each.side_px == stage.side_px for each in solves)


def has_learned(run: Run) -> bool:
    """Whether a stage before this one has trained blocks of the backbone on the labels."""
    ran = {row["stage"] for row in run.state.rows}
    stages = [run.plan.stages[number] for number in ran]
    return any(not s.solves and s.boundary < len(run.plan.groups) for s in stages)


def choose(options: Solve, seen: Seen, learned: bool) -> Chosen:
    """Solve on the depths that are wanted, or on those that are better out of sample.

    learned: the backbone has seen the labels, so validation judges and not leave-one-out.
    """
    every = len(seen.depths)
    numbers = [options.depths] if isinstance(options.depths, int) else [USUAL_DEPTHS]
    numbers += [1, every] if options.depths == "auto" else []
    chosen: Chosen | None = None  # of two at most the matrices are held
    penalty = None if options.penalty == "auto" else float(options.penalty)
    for number in dict.fromkeys(min(number, every) for number in numbers):
        top = seen.on_top(number)
        widths = [depth.columns for depth in top.depths]
        if learned and penalty is None:
            val_targets = one_hot(seen.val_labels, seen.problem.targets.shape[1])
            solution = solve_for(top.problem, widths, top.val_features, val_targets)
        else:
            solution = solve(top.problem, widths, penalty)
        left_out = left_out_scores(solution.spectrum, top.problem, solution.penalty)
        if learned:
            scores = solution.spectrum.predict(top.val_features, solution.penalty)
            rival = Chosen(top.depths, solution, scores, seen.val_labels, left_out)
        else:
            rival = Chosen(top.depths, solution, left_out, seen.labels, left_out)
        if chosen is None or judge([c.misses for c in (chosen, rival)], CLEARLY).chosen:
            chosen = rival
        del solution, rival
    assert chosen is not None
    return chosen


def description(chosen: Chosen, seen: Seen, learned: bool) -> str:
    """Say what was solved, and what judged it."""
    depths, penalty = len(chosen.depths), chosen.solution.penalty
    text = f"solved on {depths} depths, {num_columns(chosen.depths):,} features, penalty "
    if learned:
        return f"{text}{penalty:.1e}, chosen by validation"
    accuracy = 1 - float(misses(chosen.left_out, seen.labels).mean())
    counts = seen.labels.bincount()
    lone = int(((counts > 0) & (counts < FEW)).sum())
    text += f"{penalty:.1e}; leave-one-out accuracy {accuracy:.1%} of {len(seen.labels):,} pictures"
    return text + (f"; {lone} classes of one picture are always missed there" if lone else "")


def to_calibrate(chosen: Chosen, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return logits (N, K) and labels (N,) of the pictures whose class has others beside them."""
    seen = labels.bincount()[labels] >= FEW
    return {"logits": (chosen.left_out[seen] / temperature).float(), "labels": labels[seen]}


def left_out_figures(run: Run, top: Seen, chosen: Chosen, val_logits: Tensor) -> dict[str, Any]:
    """Return accuracy by leave-one-out, its 95 % interval, and what speaks against it.

    top: what was solved. val_logits: (M, K).
    """
    wrong, val_wrong = misses(chosen.left_out, top.labels), misses(val_logits, top.val_labels)
    every = run.parts.index.groups
    val_groups = None if every is None else torch.from_numpy(every[run.material.val])
    groups, widths = top.problem.groups, [depth.columns for depth in top.depths]
    given = (top.problem, widths, top.labels, chosen.solution, chosen.left_out)
    similar = what_similar_hide(*given)
    low, high = accuracy_interval(wrong, groups)
    return {
        "accuracy": 1 - float(wrong.mean()),
        "low": low,
        "high": high,
        "pictures": len(top.labels),
        "groups": None if groups is None else len(groups.unique()),
        "differs": disagree(wrong, val_wrong, (groups, val_groups)),
        "similar": None if similar is None else asdict(similar),
    }


def doubts(left_out: dict[str, Any], accuracy: float) -> Iterator[Notice]:
    """Say why the figures may be too good. accuracy: on validation."""
    if left_out["differs"]:
        yield Notice(what_differs(left_out, accuracy), warning=True)
    if left_out["similar"]:
        yield Notice(what_is_similar(left_out["similar"]), warning=True)


def what_differs(left_out: dict[str, Any], accuracy: float) -> str:
    """Say in plain words what it means that validation differs from leave-one-out."""
    both = f"leave-one-out accuracy is {left_out['accuracy']:.1%}, validation {accuracy:.1%}"
    if left_out["accuracy"] > accuracy:
        why = (
            "training pictures resemble each other (bursts, visits) or validation is from "
            "elsewhere: trust validation, and keep pictures of one occasion on one side of a split"
        )
    else:
        why = "validation pictures are easier than training ones, or copies of them: inspect both"
    return f"{both}, further apart than chance allows: {why}"


def what_is_similar(similar: dict[str, Any]) -> str:
    """Say what it means that training pictures are nearly the same as others."""
    return (
        f"{similar['in_groups']:,} training pictures are nearly the same as others, in "
        f"{similar['groups']:,} groups: leave-one-out accuracy is {similar['by_picture']:.1%} by "
        f"picture, {similar['by_group']:.1%} by group; where such pictures are on both sides of a "
        "split, its figure is as much too good: --group-by similar"
    )


def make_solved(run: Run, depths: tuple[Depth, ...]) -> tuple[DepthClassifier, HeadDesign]:
    """Return a classifier of the run's backbone and a linear head over depths, and its design."""
    design = HeadDesign(dropout=(run.settings.head_dropout,))
    head = make_head(num_columns(depths), len(run.material.index.classes), design)
    own = run.classifier
    mean, std = (values.flatten().tolist() for values in (own.mean, own.std))
    mirror = run.settings.solve.mirrors
    return DepthClassifier(own.backbone, head, mean, std, depths, mirror).eval(), design


def keep(
    run: Run,
    row: dict[str, Any],
    solved: DepthClassifier,
    features: Tensor,
    further: dict[str, Any],
) -> bool:
    """Write a solve down if it is the best one on validation so far; True if it is.

    features: of `Solved`. further: as there left_out, out_of_fold, and side_px, the input size
    where it is not the run's.
    """
    metric = run.settings.metric
    value = ranked(row, metric)
    if run.state.solved is not None and value <= tuple(run.state.solved):
        return False
    run.state.solved = value
    if not processes.is_first():
        return True
    lowest = min(stage.boundary for stage in run.plan.stages)
    tensors = tensors_above(run, lowest)
    kept = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    kept |= {f"head.{name}": value for name, value in solved.head.state_dict().items()}
    state = {
        "model": kept,
        "depths": [depth.to_dict() for depth in solved.depths],
        "row": row,
        "features": features,
        **further,
    }
    run.folder.save_checkpoint("solved", state)
    return True


def take_solved(run: Run) -> Solved | None:
    """Return the best solve, if validation prefers it to what the other stages ended with.

    Its row is then the best of all in metrics.csv.
    """
    state, metric = run.state, run.settings.metric
    if state.solved is None:
        return None
    trained = [row for row in state.rows if not run.plan.stages[row["stage"]].solves]
    if trained:
        last = recorded(run)
        if ranked(last, metric) >= tuple(state.solved):
            return None
    checkpoint = run.folder.load_checkpoint("solved")
    if checkpoint is None:
        raise UserError(f"{run.folder.path} has no solved checkpoint", "", "start the run again")
    try:
        depths = tuple(Depth(**depth) for depth in checkpoint["depths"])
        classifier, design = make_solved(run, depths)
        classifier.load_state_dict(checkpoint["model"], strict=False)
        row = checkpoint["row"]
    except (*ODD, RuntimeError) as error:
        raise unfit(run, "solved", error) from error
    state.rows = [r | {"best": int(r["stage"] == row["stage"])} for r in state.rows]
    run.folder.write_metrics(state.rows)
    size = at_size(run.parts.backbone.preprocessing, checkpoint.get("side_px"))
    further = (checkpoint.get("left_out"), checkpoint.get("out_of_fold"))
    return Solved(classifier, design, row, checkpoint["features"], size, *further)
