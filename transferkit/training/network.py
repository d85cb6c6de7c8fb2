"""The network's options as objects: structure of the backbone, new layers, what is said of them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from timm.layers import DropPath
from torch import Tensor

from transferkit.backbones.block_groups import BlockGroup
from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import Backbone, create_backbone
from transferkit.backbones.head import Classifier, HeadDesign, head_misfit, make_head
from transferkit.backbones.norm_statistics import has_statistics
from transferkit.backbones.scratch import DEFAULTS, Scratch, ScratchDesign, scratch_misfit
from transferkit.backbones.structure import Structure
from transferkit.config import BackboneOptions, Config
from transferkit.config.initializers import paired_initializer
from transferkit.data.framing import framed
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice
from transferkit.runs.folder import MODEL, RunFolder
from transferkit.training.stages import column_finder, make_plan


def make_structure(options: BackboneOptions) -> Structure:
    """Return how the backbone's structure is changed, or how one from scratch is built."""
    return Structure(
        scratch=scratch_design(options) if options.from_scratch else None,
        pooling=options.pooling,
        drop_top_blocks=options.drop_top_blocks,
        replace_activations=options.replace_activations,
        slope=options.slope if options.replace_activations else None,
    )


def make_backbone(config: Config, pretrained: bool, weights: Path | None) -> Backbone:
    """Build the configured backbone with these weights, see `create_backbone`."""
    options = config.backbone
    backbone = create_backbone(
        options.name,
        pretrained=pretrained,
        weights=weights,
        image_size=options.side_px,
        drop_path=options.drop_path,
        seed=config.training.seed,
        structure=make_structure(options),
    )
    backbone.preprocessing = framed(backbone.preprocessing, options.crop, options.crop_share)
    check_drop_path(config, backbone)
    return backbone


def random_backbone(config: Config) -> Backbone:
    """Build the configured backbone with random weights, whatever weights it is to have."""
    return make_backbone(config, False, None)


def block_groups(backbone: Backbone) -> tuple[BlockGroup, ...]:
    """Find the block groups of a backbone on the CPU."""
    return tuple(find_chain(backbone.model, random_images(backbone)).groups)


def random_images(backbone: Backbone) -> Tensor:
    """Return noise as a backbone takes it, (2, 3, H, W), always the same, on the CPU."""
    size = backbone.preprocessing
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, size.height_px, size.width_px, generator=generator)


def reinitialize_above(config: Config, backbone: Backbone, groups: Sequence[BlockGroup]) -> None:
    """Give the block groups above the lowest `reuse_blocks` random weights and no statistics.

    Those that the model has when it is made without pretrained weights, by the seed of the run.
    Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014.
    """
    kept = config.backbone.reuse_blocks
    if kept is None:
        return
    column_of = column_finder([group.modules for group in groups])
    fresh = random_backbone(config).model.state_dict()
    with torch.no_grad():
        for name, tensor in backbone.model.state_dict().items():
            if column_of(f"backbone.{name}") >= kept:
                tensor.copy_(fresh[name])
    names = ", ".join(group.name for group in groups[kept:])
    backbone.weights_source += f"; random (seed {config.training.seed}): {names}"
    backbone.notices.append(f"{backbone.name}: {names} start from random weights")


def check_network(config: Config) -> None:
    """Refuse, before any picture is read, what the backbone cannot do; tried on random weights."""
    options = config.backbone
    surgery = (options.pooling, options.drop_top_blocks, options.replace_activations)
    batchnorm = config.training.batchnorm
    if any(surgery) or options.reuse_blocks or batchnorm != "train":
        backbone = random_backbone(config)
        if options.reuse_blocks:
            make_plan(config, [group.name for group in block_groups(backbone)])
        if batchnorm != "train" and not any(map(has_statistics, backbone.model.modules())):
            what = f"--batchnorm {batchnorm} has no effect: {backbone.name} has no batch norm"
            raise usage_error(what, "", "leave it out")


@torch.no_grad()
def check_drop_path(config: Config, backbone: Backbone) -> None:
    """Raise a usage error where a drop path would drop nothing: no block adds to a shortcut.

    Some models have the layers, and never call them: the backbone runs once, on random pictures.
    """
    if not config.backbone.drop_path:
        return
    called: list[bool] = []
    trains = backbone.model.training
    with contextlib.ExitStack() as hooks:
        for module in backbone.model.modules():
            if isinstance(module, DropPath) and module.drop_prob:
                hook = module.register_forward_hook(lambda *_: called.append(True))
                hooks.enter_context(hook)
        backbone.model.eval()(random_images(backbone))
    backbone.model.train(trains)
    if not called:
        what = f"--drop-path has no effect: {backbone.name} has no shortcuts"
        raise usage_error(what, "", "leave it out, or set it to 0 where a recipe names it")


def scratch_design(options: BackboneOptions) -> ScratchDesign:
    """Return the design of a network from scratch, its defaults filled in."""
    usual = DEFAULTS[options.name]
    return ScratchDesign(
        depth=options.depth or usual.depth,
        width=options.width or usual.width,
        activation=options.activation or usual.activation,
        slope=options.slope,
        initializer=options.initializer,
        batchnorm=options.batchnorm,
        dropout=options.dropout or 0.0,
        dropout_kind=options.dropout_kind,
        skip=options.skip,
    )


def head_design(config: Config) -> HeadDesign:
    """Return the design of the new layers.

    Left unset, the classifier starts at zero, so that it does not shake pretrained features; on a
    network from scratch it starts as what goes with softmax, so that the first gradient gets down.
    """
    head, backbone = config.head, config.backbone
    usual = paired_initializer("softmax") if backbone.from_scratch else "zeros"
    return HeadDesign(
        hidden=head.layers,
        activation=head.activation,
        slope=head.slope,
        initializer=head.initializer,
        classifier_initializer=head.classifier_initializer or usual,
        batchnorm=head.batchnorm,
        dropout=head.dropout,
        dropout_kind=head.dropout_kind,
        selu_features=backbone.name == "mlp" and backbone.activation == "selu",
    )


def make_classifier(config: Config, backbone: Backbone, num_classes: int) -> Classifier:
    """Put the configured head on a backbone."""
    design = head_design(config)
    head = make_head(backbone.num_features, num_classes, design, config.training.seed)
    return Classifier(backbone.model, head, backbone.preprocessing.mean, backbone.preprocessing.std)


def start_notices(config: Config, backbone: Backbone) -> list[Notice]:
    """Say how new layers start and whether that goes with their activation."""
    notices = []
    if isinstance(backbone.model, Scratch):
        design = scratch_design(config.backbone)
        why = scratch_misfit(backbone.model, design)
        notices.append(pairing_notice(backbone.name, design.start, design.activation, why))
    if config.head.layers:
        new = head_design(config)
        why = head_misfit(backbone.num_features, new)
        notices.append(pairing_notice("new layers", new.start, new.activation, why))
    return [*notices, *selu_notices(config)]


def selu_notices(config: Config) -> Iterator[Notice]:
    """Warn of what takes SELU layers out of mean 0 and variance 1. Source: as `nn.AlphaDropout`."""
    backbone, head = config.backbone, config.head
    kinds = ("--backbone-dropout-kind", "--dropout-kind")
    norms = ("--backbone-batchnorm", "--head-batchnorm")
    for where, section, kind, norm, dropout in (
        (backbone.name, backbone, kinds[0], norms[0], backbone.dropout),
        ("new layers", head, kinds[1], norms[1], any(head.dropout) and head.layers),
    ):
        breaks = {
            f"batch norm (leave {norm} out)": set(section.batchnorm) - {"first"},
            f"plain dropout ({kind} alpha keeps them)": dropout and section.dropout_kind != "alpha",
            "skip connections (--no-backbone-skip)": section is backbone and backbone.skip,
        }
        found = " and ".join(text for text, breaks_it in breaks.items() if breaks_it)
        if section.activation == "selu" and found:
            text = f"{where}: SELU keeps mean 0 and variance 1 by itself, which ends with {found}"
            yield Notice(text, warning=True)


def pairing_notice(where: str, initializer: str, activation: str, why: str) -> Notice:
    """Say which initialiser meets which activation; a warning, with why, when they do not fit."""
    if not why:
        return Notice(f"{where}: {activation} layers start with {initializer}")
    advice = f"{paired_initializer(activation)} goes with {activation}"
    text = f"{where}: {activation} layers start with {initializer}, but {why}; {advice}"
    return Notice(text, warning=True)


def take_scale(backbone: Backbone, weights: Path | None) -> Iterator[Notice]:
    """Normalise the input as the run did that the weights lie in, if they lie in one."""
    if weights is None or weights.name != MODEL or not RunFolder(weights.parent).has_model:
        return
    with contextlib.suppress(UserError):  # a model.json of another program
        preprocessing = RunFolder(weights.parent).read_description()["preprocessing"]
        there, here = Preprocessing.from_dict(preprocessing), backbone.preprocessing
        if (there.mean, there.std) != (here.mean, here.std):
            backbone.preprocessing = replace(here, mean=there.mean, std=there.std)
            yield Notice(f"input normalisation: that of {weights.parent}")
