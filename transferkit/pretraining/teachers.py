"""Self-supervised methods whose targets come from a slow copy of the network itself.

The copy (BYOL: target, DINO: teacher) is never trained: after every step it moves a little towards
the trained network. It lies beside that in `networks`, so that checkpoints hold it. Losses and
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
from transferkit.pretraining.method import Batch, Method, Move, Phase

MOMENTUM = 0.99
"""Where the copy's inertia starts; for runs of some thousand steps, longer ones take 0.996."""
GLOBAL_VIEWS = 2


def momentum_at(start: float, progress: float) -> float:
    """Return how much of itself the copy keeps in a step: from `start` to 1 along a cosine.

    progress: 0..1. Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, section 3.2.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def follow(trained: nn.Module, target: nn.Module, start: float) -> Callable[[float], None]:
    """Return what moves the copy's parameters after a step: p' = m p' + (1 - m) p."""

    def stepped(progress: float) -> None:
        update_momentum(trained, target, momentum_at(start, progress))

    return stepped


def byol(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict what a slow copy of the network makes of the other view.

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

    def learn(batch: Batch) -> Iterator[Move]:
        images = torch.cat(batch.views)
        with torch.no_grad():
            targets = target(images).roll(len(batch.labels), 0)  # (2 N, P), of the other views
        yield Move(compare(predictor(online(images)), targets))

    stepped = follow(online, target, options.target_momentum or MOMENTUM)
    return Method(networks, (Phase("bootstrap", {"network": trained}, learn, stepped=stepped),))


class CentredLoss(DINOLoss):
    """The loss of lightly, its centre that of the answers it is given.

    Those of all processes are gathered before; lightly's own would wait for processes that do not
    measure.
    """

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Move the centre towards the mean of answers (V, N, P)."""
        mean, kept = teacher_out.mean(dim=(0, 1), keepdim=True), self.center_momentum
        self.center.data = self.center * kept + mean * (1 - kept)


def dino(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Name views, small ones too, as a slow copy of the network names the large ones.

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
    networks = nn.ModuleDict(
        {"encoder": encoder, "head": head, "teacher": teacher, "compare": compare}
    )
    fixed = head.last_layer.weight_g  # the last layer's rows keep unit length
    moved = [p for p in student.parameters() if p is not fixed]

    def learn(batch: Batch) -> Iterator[Move]:
        large = torch.cat(batch.views[:GLOBAL_VIEWS])
        with torch.no_grad():
            named = tuple(map(gathered, teacher(large).chunk(GLOBAL_VIEWS)))
        answers = list(student(large).chunk(GLOBAL_VIEWS))
        if small := batch.views[GLOBAL_VIEWS:]:
            answers += student(torch.cat(small)).chunk(len(small))
        answers = list(map(gathered, answers))
        center = compare.center.clone()
        loss = compare(list(named), answers)
        if batch.held_out:
            compare.center.copy_(center)  # nothing is learned from these
        yield Move(loss, figures={"entropy": entropy(named, center, options.teacher_temperature)})

    stepped = follow(student, teacher, options.target_momentum or MOMENTUM)
    phase = Phase("distill", {"network": moved}, learn, stepped=stepped)
    return Method(networks, (phase,))


def dino_head(width: int, wide: int) -> DINOProjectionHead:
    """Build a head from features (N, width) to answers (N, wide)."""
    with warnings.catch_warnings():  # the library's weight normalisation is torch's older one
        warnings.simplefilter("ignore", FutureWarning)
        return DINOProjectionHead(width, 2 * width, min(256, width), wide)


@torch.no_grad()
def entropy(named: tuple[Tensor, ...], center: Tensor, temperature: float) -> float:
    """Return the mean entropy of the teacher's answers (N, P), as a share of the most possible.

    It falls to 0 where all pictures get one name, and stays at 1 where no picture gets any: both
    are how DINO collapses (Caron et al., section 5.3).
    """
    answers = torch.log_softmax((torch.cat(named) - center[0]) / temperature, dim=1)
    found = -(answers.exp() * answers).sum(dim=1).mean() / math.log(answers.shape[1])
    return float(found)


def takes_half_size(encoder: Encoder) -> bool:
    """Whether an encoder takes pictures of half its size, as small views are."""
    size = encoder.preprocessing
    half = torch.zeros(2, 3, max(1, size.height_px // 2), max(1, size.width_px // 2))
    mode = encoder.training
    try:
        with torch.no_grad():
            found: Tensor = encoder.eval()(half)
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        encoder.train(mode)
    return found.shape == (2, encoder.num_features)


def dino_views(encoder: Encoder, options: Pretraining) -> tuple[str, ...]:
    """Return two large views and the small ones, at half the size where the backbone takes that.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020, section 3.2 (multi-crop).
    """
    small = "local" if takes_half_size(encoder) else "part"
    return ("strong",) * GLOBAL_VIEWS + (small,) * options.local_views
