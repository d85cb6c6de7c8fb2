import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import create_backbone
from transferkit.backbones.head import Classifier, HeadDesign, make_head
from transferkit.config import BackboneOptions, Config, HeadOptions, Stage, Training
from transferkit.errors import UserError
from transferkit.training.optimizers import make_optimizer, parameter_groups, set_rates
from transferkit.training.stages import apply_stage, column_finder, make_plan, unfreezing_step

EIGHT = ("stem", *(f"blocks.{i}" for i in range(7)))
MODELS = {  # input px, groups of the chain, whether it can be cut
    "tf_efficientnet_lite0": (64, 8, True),
    "resnet18": (64, 5, True),
    "vit_tiny_patch16_224": (32, 13, True),
    "hrnet_w18_small": (64, 6, False),
    "eva02_tiny_patch14_224": (28, 13, False),
}


def built(name: str, size: int) -> tuple[Classifier, list[tuple[str, ...]], bool]:
    backbone = create_backbone(name, pretrained=False, image_size=size)
    head = make_head(backbone.num_features, 3, HeadDesign((8,)))
    chain = find_chain(backbone.model, torch.randn(2, 3, size, size))
    classifier = Classifier(backbone.model, head, (0.5,) * 3, (0.5,) * 3)
    return classifier, [group.modules for group in chain.groups], chain.verified


def test_default_plan() -> None:
    plan = make_plan(Config(training=Training(full_epochs=2)), EIGHT)
    table = [(s.name, s.epochs, s.lr, s.boundary, s.if_improving) for s in plan.stages]
    assert table == [
        ("solve", 1, 3e-3, 8, False),
        ("head", 30, 3e-3, 8, False),
        ("top 1", 12, 1e-3, 7, False),
        ("top 2", 12, 1e-3, 6, False),
        ("all", 2, 1e-3, 0, True),
        ("solve", 1, 3e-3, 8, False),
    ]
    assert [stage.solves for stage in plan.stages] == [True, *[False] * 4, True]
    usual = make_plan(Config(), EIGHT)
    assert [s.name for s in usual.stages] == ["solve", "head", "top 1", "top 2", "solve"]
    rows = [stage.multipliers for stage in plan.stages if not stage.solves]
    assert rows[0] == (0,) * 8 + (1,)
    assert rows[1] == (0,) * 7 + (0.5, 1)
    assert rows[2] == (0,) * 6 + (0.25, 0.5, 1)
    assert rows[3] == (*(0.5 ** (8 - i) for i in range(8)), 1)
    assert plan.groups == EIGHT


def test_default_plan_of_other_depths() -> None:
    assert [unfreezing_step(n) for n in (1, 5, 8, 12, 13, 40)] == [1, 1, 1, 2, 2, 6]
    everything = Config(training=Training(full_epochs=2))
    thirteen = make_plan(everything, ["g"] * 13)
    assert [stage.boundary for stage in thirteen.stages] == [13, 13, 11, 9, 0, 13]
    two = make_plan(everything, ["a", "b"])  # a second step would be all of it
    assert [stage.name for stage in two.stages] == ["solve", "head", "top 1", "all", "solve"]
    one = make_plan(everything, ["a"]).stages[1:3]
    assert [(s.name, s.if_improving) for s in one] == [("head", False), ("all", False)]
    without = make_plan(Config(training=Training(depth=1)), EIGHT)
    assert [stage.name for stage in without.stages] == ["solve", "head", "top 1", "solve"]
    alone = make_plan(Config(training=Training(depth=0)), EIGHT)
    assert [stage.name for stage in alone.stages] == ["solve", "head"]


@pytest.mark.parametrize(
    "config",
    [
        Config(head=HeadOptions(layers=(8,))),
        Config(training=Training(budget="2m")),
        Config(backbone=BackboneOptions(reuse_blocks=5)),
    ],
    ids=["hidden layers", "time limit", "random blocks"],
)
def test_plans_without_solves(config: Config) -> None:
    assert not config.solves
    assert not any(stage.solves for stage in make_plan(config, EIGHT).stages)


def test_random_weights_train_all_at_one_rate() -> None:
    plan = make_plan(Config(backbone=BackboneOptions(pretrained=False)), EIGHT)
    (stage,) = plan.stages
    assert (stage.name, stage.epochs) == ("all", 30 + 2 * 12)
    assert stage.multipliers == (1.0,) * 9


def test_stages_of_a_recipe() -> None:
    config = Config(
        stages=(Stage("head", 3), Stage(2, 4, 0.1, 0.3), Stage(8, 1, if_improving=True))
    )
    head, two, whole = make_plan(config, EIGHT).stages
    assert (head.lr, head.multipliers) == (3e-3, (0,) * 8 + (1,))
    assert (two.lr, two.epochs, two.name) == (0.1, 4, "top 2")
    assert two.multipliers == pytest.approx((0,) * 6 + (0.09, 0.3, 1))
    assert (whole.name, whole.boundary, whole.if_improving) == ("all", 0, True)
    assert whole.lr == 1e-3  # the unfrozen rate


def test_a_stage_deeper_than_the_backbone_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        make_plan(Config(stages=(Stage(9, 1),)), EIGHT)
    assert caught.value.exit_code == 2
    assert "unfreezes 9 block groups, but the backbone has 8" in str(caught.value)
    assert "blocks.6" in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_in_one_column(name: str) -> None:
    size, count, verified = MODELS[name]
    classifier, groups, found = built(name, size)
    assert (len(groups), found) == (count, verified)
    find = column_finder(groups)
    columns: dict[int, list[str]] = {}
    for tensor_name in classifier.state_dict():
        column = find(tensor_name)
        columns.setdefault(column, []).append(tensor_name)
        # independent of the finder: the longest listed module path that leads to the tensor
        leads = [
            (len(path), i)
            for i, paths in enumerate(groups)
            for path in paths
            if tensor_name.startswith(f"backbone.{path}.")
        ]
        expected = max(leads, default=(0, 0))[1]
        assert column == (count if tensor_name.startswith("head.") else expected), tensor_name
    assert sorted(columns) == list(range(count + 1))  # none is empty
    for path, module in classifier.named_modules():  # a container of several groups holds nothing
        if find(path) == -1 and path not in ("", "backbone"):
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            assert not held, path


def test_the_longest_listed_path_decides() -> None:
    find = column_finder([("conv", "blocks"), ("blocks.1", "blocks.10"), ("blocks.1.mlp", "norm")])
    columns = {
        "backbone.conv.weight": 0,
        "backbone.blocks.0.bias": 0,
        "backbone.blocks.1.bias": 1,
        "backbone.blocks.10.bias": 1,
        "backbone.blocks.1.mlp.0.bias": 2,
        "backbone.norm": 2,
        "backbone.norm_pre.weight": 0,  # listed nowhere
        "backbone.pos_embed": 0,
        "head.0.weight": 3,
        "header.weight": 0,
        "backbone": -1,
        "": -1,
    }
    assert {name: find(name) for name in columns} == columns


def test_modes_and_gradients_by_column() -> None:
    classifier, groups, _ = built("resnet18", 64)
    (stage,) = make_plan(Config(stages=(Stage(2, 1),)), EIGHT[:5]).stages
    classifier.train()
    apply_stage(classifier, column_finder(groups), stage)
    training = {name for name, module in classifier.named_modules() if module.training}
    parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
    inside = {name for name in training if name.startswith(tuple(f"backbone.{p}" for p in parts))}
    expected = {
        name
        for name, _ in classifier.named_modules()
        if name.startswith(("backbone.layer3", "backbone.layer4"))
    }
    assert inside == expected
    assert {"head", "head.0", "head.4"} <= training
    assert not training & {"", "backbone"}
    grads = {name.split(".")[1] for name, p in classifier.named_parameters() if p.requires_grad}
    assert grads == {"layer3", "layer4", "1", "4"}  # 1 and 4 are the head's linear layers


@pytest.mark.parametrize(
    ("name", "size", "depth"),
    [
        ("test_resnet", 32, 0),
        ("test_efficientnet", 32, 2),
        ("test_vit", 32, 3),
        ("resnet18", 32, 5),
    ],
)
def test_frozen_tensors_keep_every_bit_and_the_others_change(
    name: str, size: int, depth: int
) -> None:
    classifier, groups, _ = built(name, size)
    find = column_finder(groups)
    stage = make_plan(
        Config(stages=(Stage(depth or "head", 1),)), [f"g{i}" for i in range(len(groups))]
    ).stages[0]
    classifier.train()
    with torch.no_grad():  # a classifier at zero passes no gradient down
        classifier.head[-1].weight.normal_()
    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items()}
    apply_stage(classifier, find, stage)
    named = list(classifier.named_parameters())
    parameters = parameter_groups(named, find, stage.multipliers, (0.05, 0.05))
    optimizer = make_optimizer("adamw", parameters, {})
    set_rates(optimizer, 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.tensor([0, 1, 2, 0])
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        optimizer.step()
    after = classifier.state_dict()
    moved = {key for key in after if not same_bits(after[key], before[key])}
    assert moved == {key for key in after if find(key) >= stage.boundary}


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def test_random_groups_learn_with_the_head_from_the_first_stage() -> None:
    training = Training(full_epochs=2)
    config = Config(backbone=BackboneOptions(reuse_blocks=6), training=training)
    fresh, one, two, whole = make_plan(config, EIGHT).stages
    assert (fresh.name, fresh.epochs, fresh.lr) == ("top 2", 30, 1e-3)
    assert fresh.multipliers == (0,) * 6 + (1, 1, 1)
    assert one.multipliers == (0,) * 5 + (0.5, 1, 1, 1)
    assert two.multipliers == (0,) * 4 + (0.25, 0.5, 1, 1, 1)
    assert whole.multipliers == (*(0.5 ** (6 - i) for i in range(6)), 1, 1, 1)
    assert whole.if_improving
    (own,) = make_plan(replace(config, stages=(Stage(4, 1, decay=0.1),)), EIGHT).stages
    assert own.multipliers == pytest.approx((0,) * 4 + (0.01, 0.1, 1, 1, 1))


def test_random_groups_keep_no_statistics() -> None:
    config = Config(backbone=BackboneOptions(reuse_blocks=6), training=Training(batchnorm="frozen"))
    assert {stage.kept_statistics for stage in make_plan(config, EIGHT).stages} == {6}
    whole = Config(training=Training(batchnorm="frozen"))
    assert {stage.kept_statistics for stage in make_plan(whole, EIGHT).stages} == {8}


@pytest.mark.parametrize(
    ("kept", "stages", "what"),
    [
        (8, (), "--reuse-blocks 8 leaves no block group of the 8"),
        (6, (Stage("head", 2), Stage("all", 2)), "the first one trains head, on random frozen"),
        (6, (Stage(1, 2),), "the first one trains top 1, on random frozen"),
    ],
)
def test_plans_that_leave_random_groups_untrained_are_refused(
    kept: int, stages: tuple[Stage, ...], what: str
) -> None:
    with pytest.raises(UserError, match=what) as refused:
        make_plan(Config(backbone=BackboneOptions(reuse_blocks=kept), stages=stages), EIGHT)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", ["resnet18", "mlp"])
def test_the_options_tell_which_plans_train_the_head_alone(name: str) -> None:
    """What the checks of the options take for granted is what the plan does."""
    several = ((), (Stage("head", 1), Stage(2, 1)), (Stage("head", 1),), (Stage("all", 1),))
    for pretrained, reuse, depth, full, stages in itertools.product(
        (True, False), (None, 5), (0, 1), (0, 2), several
    ):
        backbone = BackboneOptions(name, pretrained=pretrained, reuse_blocks=reuse)
        training = Training(depth=depth, full_epochs=full)
        config = Config(backbone=backbone, training=training, stages=stages)
        try:
            plan = make_plan(config, EIGHT).stages
        except UserError:
            continue  # random blocks that would stay as they are
        heads = [stage.boundary == len(EIGHT) for stage in plan if not stage.solves]
        assert (config.head_trains_first, config.trains_head_alone) == (heads[0], all(heads))
