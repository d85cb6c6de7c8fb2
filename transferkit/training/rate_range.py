"""The learning-rate range test: the loss while the rate rises, and the rate that it suggests."""

import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from transferkit.backbones.devices import to_device
from transferkit.data.loader import epoch_order, epoch_views
from transferkit.errors import UserError
from transferkit.events import Event, Progress
from transferkit.training.monitor import Monitor
from transferkit.training.optimizers import set_rates
from transferkit.training.parts import Parts
from transferkit.training.picks import batches
from transferkit.training.run import make_objective, pretrained_parameters
from transferkit.training.settings import Settings, loop_settings
from transferkit.training.sources import open_source
from transferkit.training.stages import apply_stage
from transferkit.training.updates import make_updater
from transferkit.units import rate_text

Floats = NDArray[np.float64]

DIVERGED = 4.0
"""Times the lowest smoothed loss at which the test ends, as in fastai."""
SMOOTHING_DECADES = 0.25
"""Standard deviation of the Gaussian that smooths the loss, in decades of the rate."""
LEAST_STEPS = 10
BELOW_THE_LOWEST = 10.0
"""How far below the rate of the lowest loss a whole stage trains well."""
LEAST_FALL = 0.02
"""Share of the first loss by which it has to fall somewhere, for a suggestion to mean anything."""


@dataclass(frozen=True)
class Range:
    """Which rates are tried. lowest < highest: the head's rates. steps: >= 20 between them."""

    lowest: float = 1e-6
    highest: float = 10.0
    steps: int = 200

    def rates(self) -> Floats:
        """Return the rates (steps,), evenly spaced on a logarithmic axis."""
        return np.geomspace(self.lowest, self.highest, self.steps)


@dataclass(frozen=True)
class RangeTest:
    """What the range test saw.

    stage: its name. rates, losses, smoothed: (n,) per step until it ended; the losses are of
    single batches. suggestion: the rate to train at. steepest, lowest: where the smoothed loss
    falls fastest and is lowest. diverged: whether the test ended because the loss exploded.
    """

    stage: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float
    lowest: float
    suggestion: float
    diverged: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def range_test(parts: Parts, base: int | None, tried: Range) -> Generator[Event, None, RangeTest]:
    """Train the first stage while its rate rises from step to step; return what the loss did.

    Everything but the rate and a cycling momentum is as the stage would have it: batches, views,
    optimiser, penalties, clipping. The weights are the same afterwards. base: see `choose_base`.
    Raises UserError where there is nothing to suggest.
    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.
    """
    settings, objective = loop_settings(parts.config), make_objective(parts)
    stage = next(stage for stage in parts.plan.stages if not stage.solves)
    rules = settings.rules
    source = yield from open_source(parts, stage, base)
    before = {name: t.detach().clone() for name, t in parts.classifier.state_dict().items()}
    apply_stage(parts.classifier, parts.column_of, stage)
    start = pretrained_parameters(parts, rules)
    updater = make_updater(
        parts.classifier, source.network, parts.column_of, stage, rules, start, parts.fabric
    )
    labels = parts.index.labels[parts.material.train]
    picks = batches_without_end(labels, settings, source.num_views, tried.steps)
    inputs = source.train_inputs(picks)
    generator = np.random.default_rng([settings.seed, 4])
    rates, losses = tried.rates(), []
    monitor = Monitor([])  # reads nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for step, ((pick, _), batch) in enumerate(zip(picks, inputs, strict=True)):
            set_rates(updater.optimizer, float(rates[step]))
            target = to_device(torch.from_numpy(labels[pick]), parts.device)
            batch = to_device(batch, parts.device)
            loss, _ = objective.loss(updater.network, batch, target, generator)
            losses.append(loss.item())
            if has_diverged(losses):
                break
            updater.begin()
            updater.backward(loss)
            updater.step(monitor)
            yield Progress("learning-rate range test", step + 1, tried.steps)
    parts.classifier.load_state_dict(before)
    return read_range(stage.name, rates, losses, has_diverged(losses))


def read_range(stage: str, rates: Floats, losses: list[float], diverged: bool) -> RangeTest:
    """Find the suggestion: a tenth of the rate at which the smoothed loss is lowest.

    rates: of the test's steps; losses: (n,) of the steps that it took. The last one is left out if
    the test diverged there. Raises UserError where the loss never fell, or all was too fast.
    Source: Bengio, "Practical Recommendations for Gradient-Based Training of Deep Architectures",
    2012 (just below the largest rate that does not diverge); Howard and Gugger, "fastai", 2020 (a
    tenth of the rate at the minimum).
    """
    count = len(losses) - diverged
    logs = np.log10(rates[:count])
    if count < LEAST_STEPS:
        raise nothing_found(rates, "the loss explodes at once", "lower --from-lr")
    width = SMOOTHING_DECADES / (logs[1] - logs[0])
    smoothed = gaussian_filter1d(np.asarray(losses[:count]), width, mode="nearest")
    lowest = int(smoothed.argmin())
    if smoothed[0] - smoothed[lowest] < LEAST_FALL * abs(smoothed[0]):
        raise nothing_found(rates, "the loss falls nowhere", "widen --from-lr and --to-lr")
    steepest = int(np.gradient(smoothed, logs)[: lowest + 1].argmin())
    return RangeTest(
        stage=stage,
        rates=tuple(rates[:count].tolist()),
        losses=tuple(losses[:count]),
        smoothed=tuple(smoothed.tolist()),
        steepest=float(rates[steepest]),
        lowest=float(rates[lowest]),
        suggestion=two_digits(float(rates[lowest]) / BELOW_THE_LOWEST),
        diverged=diverged,
    )


def nothing_found(rates: Floats, what: str, remedy: str) -> UserError:
    """Return what is told when the range shows no rate that trains."""
    tried = f"{rate_text(rates[0])} to {rate_text(rates[-1])}"
    return UserError(
        f"the learning-rate range test suggests nothing: {what}",
        f"tried {tried} in {len(rates)} steps",
        f"{remedy}, or choose the rate yourself: --lr 3e-3",
    )


def two_digits(rate: float) -> float:
    """Round a rate to two significant digits, as it is printed and written into recipes."""
    return float(f"{rate:.1e}")


def batches_without_end(
    labels: np.ndarray, settings: Settings, num_views: int | None, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the positions and views (n,) of so many batches, epoch after epoch."""
    picks: list[tuple[np.ndarray, np.ndarray]] = []
    epoch = 0
    while len(picks) < count:
        order = epoch_order(labels, settings.balance, settings.seed, epoch)
        views = epoch_views(len(labels), num_views, settings.seed, epoch)
        picks += [(pick, views[pick]) for pick in batches(order, settings.batch_size)]
        epoch += 1
    return picks[:count]


def has_diverged(losses: list[float]) -> bool:
    """Whether the last loss is no number, or too far above the lowest."""
    return not math.isfinite(losses[-1]) or losses[-1] > DIVERGED * min(losses)
