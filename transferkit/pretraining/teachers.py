"""Self-supervised methods whose targets come from a momentum copy of the network.

The copy (BYOL: target, DINO: teacher) gets no gradients: its parameters are an exponential moving
average of the trained network's. It is part of `networks`, so that checkpoints hold it. Losses and
heads are lightly's.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator

import torch
from lightly.loss import DINOLoss, NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, DINOProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from transferkit.backbones.synchronized import gathered
from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase

MOMENTUM = 0.99
"""Initial momentum, for runs of some thousand steps; longer ones take 0.996."""
GLOBAL_VIEWS = 2


def momentum_at(start: float, progress: float) -> float:
    """Return the momentum of the moving average: from `start` to 1 along a cosine.

    progress: 0..1. Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, section 3.2.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def follow(trained: nn.Module, target: nn.Module, start: float) -> Callable[[float], None]:
    """Return a function that updates the copy's parameters after a step: p' = m p' + (1 - m) p."""
    return lambda progress: update_momentum(trained, target, momentum_at(start, progress))


def byol(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict a momentum copy's projection of the other view.

    Source: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
    NeurIPS 2020.
    """
    width, wide = encoder.num_features, options.projection or 256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = BYOLProjectionHead(width, 2 * width, wide)
        predictor = BYOLPredictionHead(wide, 2 * width, wide)
    online = nn.Sequential(encoder, head)
    target = copy.deepcopy(online)
    trained = nn.ModuleDict({"encoder": encoder, "head": head, "predictor": predictor})
    networks = nn.ModuleDict({**trained, "target": target})
    compare = NegativeCosineSimilarity()

    def learn(batch: Batch) -> Iterator[Objective]:
        images = torch.cat(batch.views)
        with torch.no_grad():
            targets = target(images).roll(len(batch.labels), 0)  # (2 N, P), of the other views
        yield Objective(compare(predictor(online(images)), targets))

    after_step = follow(online, target, options.target_momentum or MOMENTUM)
    phase = Phase("bootstrap", {"network": trained}, learn, after_step=after_step)
    return Method(networks, (phase,))


class CentredLoss(DINOLoss):
    """lightly's DINO loss, its centre computed from the given outputs alone.

    These are gathered from all processes before; lightly's collective would wait for processes that
    do not evaluate.
    """

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Update the moving average of the teacher's outputs (V, N, P)."""
        mean, kept = teacher_out.mean(dim=(0, 1), keepdim=True), self.center_momentum
        self.center.data = self.center * kept + mean * (1 - kept)


def dino(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Match, on large and small crops, the output of a momentum teacher on the large ones.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
    """
    width, wide = encoder.num_features, options.projection or 1024
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head, copied = dino_head(width, wide), dino_head(width, wide)
    copied.load_state_dict(head.state_dict())  # deepcopy refuses weight normalisation
    student = nn.Sequential(encoder, head)
    teacher = nn.Sequential(copy.deepcopy(encoder), copied)
    compare = CentredLoss(
        wide,
        warmup_teacher_temp=options.teacher_temperature,
        teacher_temp=options.teacher_temperature,
        student_temp=options.temperature or 0.1,
    )
    parts = {"encoder": encoder, "head": head, "teacher": teacher, "compare": compare}
    networks = nn.ModuleDict(parts)
    fixed = head.last_layer.weight_g  # the last layer's rows keep unit length
    trained = [p for p in student.parameters() if p is not fixed]

    def learn(batch: Batch) -> Iterator[Objective]:
        large = torch.cat(batch.views[:GLOBAL_VIEWS])
        with torch.no_grad():
            targets = tuple(map(gathered, teacher(large).chunk(GLOBAL_VIEWS)))
        outputs = list(student(large).chunk(GLOBAL_VIEWS))
        if small := batch.views[GLOBAL_VIEWS:]:
            outputs += student(torch.cat(small)).chunk(len(small))
        outputs = list(map(gathered, outputs))
        center = compare.center.clone()
        loss = compare(list(targets), outputs)
        if batch.held_out:
            compare.center.copy_(center)  # undo the loss's update
        figures = {"entropy": entropy(targets, center, options.teacher_temperature)}
        yield Objective(loss, figures=figures)

    after_step = follow(student, teacher, options.target_momentum or MOMENTUM)
    phase = Phase("distill", {"network": trained}, learn, after_step=after_step)
    return Method(networks, (phase,))


def dino_head(width: int, wide: int) -> DINOProjectionHead:
    """Build a projection head from features (N, width) to outputs (N, wide)."""
    with warnings.catch_warnings():  # lightly uses torch's deprecated weight_norm
        warnings.simplefilter("ignore", FutureWarning)
        return DINOProjectionHead(width, 2 * width, min(256, width), wide)


@torch.no_grad()
def entropy(targets: tuple[Tensor, ...], center: Tensor, temperature: float) -> float:
    """Return the mean entropy of the teacher's outputs (N, P), relative to the maximum.

    It falls to 0 if one output dominates, and stays at 1 if the outputs are uniform: the two ways
    in which DINO collapses (Caron et al., section 5.3).
    """
    log_p = torch.log_softmax((torch.cat(targets) - center[0]) / temperature, dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean() / math.log(log_p.shape[1]))


def takes_half_size(encoder: Encoder) -> bool:
    """Whether an encoder takes pictures of half its input size."""
    size = encoder.preprocessing
    half = torch.zeros(2, 3, max(1, size.height_px // 2), max(1, size.width_px // 2))
    mode = encoder.training
    try:
        with torch.no_grad():
            features: Tensor = encoder.eval()(half)
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        encoder.train(mode)
    return features.shape == (2, encoder.num_features)


def dino_views(encoder: Encoder, options: Pretraining) -> tuple[str, ...]:
    """Return two large views and the small ones, at half the size if the backbone takes that.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020, section 3.2 (multi-crop).
    """
    small = "local" if takes_half_size(encoder) else "part"
    return ("strong",) * GLOBAL_VIEWS + (small,) * options.local_views
