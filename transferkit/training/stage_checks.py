"""What a plan must not do: keep layers frozen that nothing filled, normalise lone pictures."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.backbones.create import Backbone
from transferkit.backbones.fitting import shorten
from transferkit.config import Config
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice
from transferkit.training.settings import update_rules
from transferkit.training.stages import PlannedStage, trains_module


def refuse_unfilled(
    backbone: Backbone,
    stages: Sequence[PlannedStage],
    column_of: Callable[[str], int],
    weights: Path | None,
) -> None:
    """Raise UserError where tensors that a weights file lacks stay as they are in all stages.

    column_of: see `column_finder`.
    """
    present = backbone.model.state_dict()
    lowest = min(stage.boundary for stage in stages)
    frozen = [
        name
        for name in backbone.unfilled
        if name in present and column_of(f"backbone.{name}") < lowest
    ]
    if frozen:
        raise UserError(
            f"weights file {weights} does not fill all of {backbone.name}: frozen layers would "
            "stay random",
            "\n".join([f"without values: {shorten(frozen)}", *backbone.notices]),
            "train every layer, as with --stages all:20, or name the backbone that the file was "
            "saved from with --backbone",
        )


def cycle_notices(config: Config, stages: Sequence[PlannedStage]) -> Iterator[Notice]:
    """Warn where early stopping may cut a 1cycle; say where weights shrink in two ways."""
    training, penalties = config.training, config.regularization
    for part, l2, decay, own in zip(
        ("backbone", "head"),
        (penalties.backbone_l2, penalties.head_l2),
        update_rules(config).weight_decays,
        (penalties.backbone_weight_decay, penalties.head_weight_decay),
        strict=True,
    ):
        if l2 and decay and own is None:
            yield Notice(
                f"{part}: L2 {l2:g} acts beside a weight decay of {decay:g}; "
                f"--{part}-weight-decay 0 leaves L2 alone"
            )
    epochs = max((stage.epochs for stage in stages if not stage.solves), default=0)
    whole = training.budget is not None or config.averaging.swa
    if config.schedule.name == "1cycle" and training.patience < epochs and not whole:
        yield Notice(
            f"1cycle: early stopping may end a stage before its rate has come down, where the loss "
            f"falls most; --patience {epochs} lets every cycle end",
            warning=True,
        )


@torch.no_grad()
def refuse_size(backbone: Backbone, side_px: int, device: torch.device) -> None:
    """Raise a usage error where a backbone, as it is built, takes no pictures of a size."""
    trains = backbone.model.training
    try:
        backbone.model.eval()(torch.zeros(1, 3, side_px, side_px, device=device))
    except (AssertionError, IndexError, RuntimeError, ValueError):
        what = f"stages: solve@{side_px}: {backbone.name} cannot take pictures of that size"
        size = backbone.preprocessing.width_px
        where = f"it is built for {size} px"
        raise usage_error(what, where, f"leave @{side_px} out, or --image-size {side_px}") from None
    finally:
        backbone.model.train(trains)


@torch.no_grad()
def refuse_lone_pictures(
    classifier: nn.Module,
    stages: Sequence[PlannedStage],
    column_of: Callable[[str], int],
    image: Tensor,
) -> None:
    """Raise a usage error where batches of one picture leave a batch norm one value per channel.

    image: (1, 3, H, W). The model runs once, in evaluation mode.
    """
    single: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(module)

    norms = [m for m in classifier.modules() if isinstance(m, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()(image)
    for hook in hooks:
        hook.remove()
    for module, training in modes:
        module.training = training
    for stage in stages:
        for name, module in classifier.named_modules():
            if module in single and trains_module(stage, column_of(name), module):
                raise usage_error(
                    f"--batch-size 1 is too small: stage {stage.name} trains {name}, a batch norm "
                    "on maps of one pixel",
                    "it takes mean and variance over a batch, and has one value of each channel",
                    "use --batch-size 2 or more",
                )
