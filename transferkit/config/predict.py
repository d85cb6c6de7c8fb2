"""Options of a finished run: how it predicts, and how sure it has to be.

A run keeps them in its recipe; `transferkit predict` and `evaluate` start from there.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.option import Option, Section

SECTION = "predict"
DECIDING = ("top_k", "abstain_above", "target_accuracy", "select", "by")
"""Fields that `evaluate` has no use for."""


@dataclass(frozen=True)
class Predict(Section):
    """How pictures are predicted, what is sampled, and what is decided from it."""

    top_k: Annotated[
        int,
        Ge(1),
        Option("--top-k", "Number of most probable classes shown per picture.", usual=True),
    ] = 3
    engine: Annotated[
        Literal["auto", "torch", "onnx"],
        Option("--engine", "Inference engine; auto: ONNX Runtime on a CPU, else PyTorch."),
    ] = "auto"
    batch_size: Annotated[
        int, Ge(1), Le(4096), Option("--batch-size", "Pictures per batch.", usual=True)
    ] = 64
    seed: Annotated[
        int,
        Ge(0),
        Lt(2**32),
        Option("--seed", "Random seed of the samples; results do not depend on the batch size."),
    ] = 0
    temperature: Annotated[
        bool,
        Option("--temperature/--no-temperature", "Apply the temperature fitted on validation."),
    ] = True
    mc_dropout: Annotated[
        int,
        Ge(0),
        Le(10_000),
        Option("--mc-dropout", "Monte Carlo dropout samples; 0 is off, 30 typical.", usual=True),
    ] = 0
    mc_scope: Annotated[
        Literal["head", "all"],
        Option("--mc-scope", "Keep dropout active in the head only (fast) or in the backbone too."),
    ] = "head"
    enable_dropout: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Option("--enable-dropout", "Dropout rate, for a model trained without dropout."),
    ] = None
    tta: Annotated[
        int,
        Ge(0),
        Le(64),
        Option("--tta", "Test-time augmentation: views; 0 is off, 8 is typical.", usual=True),
    ] = 0
    ood: Annotated[
        Literal["auto", "none", "knn", "mahalanobis", "energy"],
        Option("--ood", "How out-of-distribution pictures are detected; auto: knn."),
    ] = "auto"
    coverage: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Option("--coverage", "Conformal sets that contain the truth this often.", usual=True),
    ] = None
    conformal: Annotated[
        Literal["lac", "class", "aps", "raps"],
        Option("--conformal", "Method of conformal prediction."),
    ] = "lac"
    abstain_above: Annotated[
        float | None,
        Ge(0),
        Option("--abstain-above", "Abstain if the uncertainty exceeds this threshold."),
    ] = None
    abstain_by: Annotated[
        Literal["entropy", "confidence", "margin", "mutual_information", "variation_ratio"],
        Option("--abstain-by", "Uncertainty measure that decides on abstaining."),
    ] = "entropy"
    target_accuracy: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Option("--target-accuracy", "Abstain to reach this accuracy on validation.", usual=True),
    ] = None
    select: Annotated[
        int | None,
        Ge(1),
        Option("--select", "Only list the N pictures most worth labelling.", usual=True),
    ] = None
    by: Annotated[
        Literal["entropy", "margin", "bald", "diverse", "solve"],
        Option("--by", "Active learning: how pictures are ranked."),
    ] = "entropy"


def predict_problems(options: Predict) -> list[str]:
    """Find options that contradict each other or would have no effect."""
    found = []
    samples = options.mc_dropout >= 2 or options.tta >= 2
    if options.mc_dropout == 1 or options.tta == 1:
        found.append("predict.mc_dropout and predict.tta: one sample varies in nothing; take 2")
    if not options.mc_dropout:
        found += [
            f"predict.{name} has no effect without predict.mc_dropout: add --mc-dropout"
            for name, default in (("mc_scope", "head"), ("enable_dropout", None))
            if getattr(options, name) != default
        ]
    if options.coverage is None and options.conformal != "lac":
        found.append("predict.conformal has no effect without predict.coverage: add --coverage 0.9")
    if options.abstain_above is not None and options.target_accuracy is not None:
        found.append("--abstain-above and --target-accuracy contradict each other: leave one out")
    abstains = options.abstain_above is not None or options.target_accuracy is not None
    if options.abstain_by != "entropy" and not abstains:
        found.append("predict.abstain_by has no effect without abstaining: add --abstain-above")
    if options.by != "entropy" and options.select is None:
        found.append("predict.by has no effect without predict.select: add --select 50")
    if options.select is not None and (abstains or options.coverage is not None):
        found.append("--select names pictures to label: leave --coverage and abstaining out")
    if not samples and options.abstain_by in ("mutual_information", "variation_ratio"):
        found.append(f"predict.abstain_by = {options.abstain_by} needs samples: add --mc-dropout")
    return found
