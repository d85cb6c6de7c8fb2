"""Training of which every process holds a part: weights that learn, gradients, optimiser's state.

The steps are those of a twin of the classifier, sharded by torch's `fully_shard`, block by block.
Whatever does not learn, and the batch-norm statistics, is one tensor in both. After every epoch the
classifier gets the twin's weights, so that all that follows a step is as without shards.
Source: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.errors import usage_error
from transferkit.training.averaging import make_average
from transferkit.training.checkpoints import copied
from transferkit.training.gradients import whole
from transferkit.training.optimizers import make_optimizer, parameter_groups
from transferkit.training.run import Run
from transferkit.training.stages import PlannedStage
from transferkit.training.updates import Updater, clippable_parameters, make_updater


@dataclass
class ShardedUpdater(Updater):
    """An updater whose `classifier` and `network` are sharded twins.

    whole: the classifier that they are twins of. evaluated_network: what it runs in this stage.
    optimizer_state: as one process has it, of the end of the last epoch; for the first process.
    """

    whole: nn.Module
    evaluated_network: nn.Module
    optimizer_state: dict[str, Any]

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate between epochs."""
        return self.evaluated_network

    def reduce(self) -> None:
        """Do nothing: the backward pass has left each process its part of the mean."""

    def end_epoch(self, epoch: int) -> None:
        """Bring weights, modes and the optimiser's state together."""
        with torch.no_grad():
            for own, part in self.pairs():
                own.copy_(whole(part))
        for module, twin in zip(self.whole.modules(), self.classifier.modules(), strict=True):
            module.training = twin.training
        state = copied(self.optimizer.state_dict())
        self.optimizer_state = state if processes.is_first() else {}
        super().end_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as `end_epoch` found it; no other process need ask."""
        average = self.average and self.average.state_dict()
        return {"optimizer": self.optimizer_state, "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the classifier's weights."""
        self.scatter()
        self.optimizer_state = state["optimizer"]
        self.optimizer.load_state_dict(self.shards_of(self.optimizer_state))
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def restart(self) -> None:
        """Forget all steps; begin at the classifier's weights."""
        self.scatter()
        super().restart()

    @torch.no_grad()
    def scatter(self) -> None:
        """Give each process its part of the classifier's weights."""
        for own, part in self.pairs():
            part.copy_(sharded_like(part, own))

    def pairs(self) -> Iterable[tuple[Any, Any]]:
        """Return what learns: of the classifier, and the parts of it."""
        twins = dict(self.classifier.named_parameters())
        own = self.whole.named_parameters()
        return [(p, twins[name]) for name, p in own if twins[name].requires_grad]

    def shards_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return this process's part of an optimiser's state."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        shards = {}
        for number, values in state["state"].items():
            like = parameters[number]
            shards[number] = {
                name: sharded_like(like, value) if _is_of_shape(value, like) else value
                for name, value in values.items()
            }
        return {**state, "state": shards}


def updater_of(run: Run, stage: PlannedStage, network: nn.Module) -> Updater:
    """Prepare the steps of one stage, sharded where that is wanted and there are several processes.

    network: the part of the classifier that the stage runs.
    """
    rules = run.settings.rules
    if run.settings.strategy == "ddp" or processes.count() == 1:
        return make_updater(
            run.classifier, network, run.parts.column_of, stage, rules, run.pretrained, run.fabric
        )
    twin, trained = twins(run.classifier, network)
    named = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
    refuse_unsharded(named, {id(p) for p in trained.parameters()})
    shard_(twin, trained, called_blocks(run, stage), run.fabric.device)
    named = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]  # in parts now
    groups = parameter_groups(named, run.parts.column_of, stage.multipliers, rules.weight_decays)
    optimizer = make_optimizer(rules.optimizer, groups, rules.hyper, fused=False)
    trained, optimizer = run.fabric.setup(trained, optimizer, move_to_device=False)
    return ShardedUpdater(
        run.fabric,
        twin,
        trained,
        optimizer,
        rules,
        clippable_parameters(twin, named, rules),
        [],  # penalties and max-norm are refused: `shard_problems`
        {},
        [],
        make_average(run.classifier, run.parts.column_of, stage, 0.0, rules.swa),
        copy.deepcopy(optimizer.state_dict()),
        run.classifier,
        run.fabric.setup_module(network),
        {},
    )


def twins(classifier: nn.Module, network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Copy the modules of a classifier and of a network made of them, and what learns of it alone.

    fully_shard takes only weights whose numbers lie in order.
    """
    tensors = [*classifier.parameters(), *classifier.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}  # shared with the twin
    for parameter in classifier.parameters():
        if parameter.requires_grad:
            values = parameter.detach().clone(memory_format=torch.contiguous_format)
            memo[id(parameter)] = nn.Parameter(values)
    twin: tuple[nn.Module, nn.Module] = copy.deepcopy((classifier, network), memo)
    return twin


def called_blocks(run: Run, stage: PlannedStage) -> list[str]:
    """Return the paths in the backbone of what learns and is called by itself."""
    chain = run.parts.chain
    if not chain.verified:
        return []
    blocks, after = chain.calls_from(stage.boundary)
    return list(dict.fromkeys([*blocks, *after]))


def shard_(classifier: Any, network: nn.Module, paths: Iterable[str], device: torch.device) -> None:
    """Leave each process a part of every parameter that learns: of each block, and of the rest.

    paths: of the blocks in the classifier's backbone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count(),))
    still = {p for p in classifier.parameters() if not p.requires_grad}
    blocks = [classifier.backbone.get_submodule(path) for path in paths]
    learning = [b for b in blocks if any(p.requires_grad for p in b.parameters())]
    for module in (*learning, network):
        sharded: Any = fully_shard(module, mesh=mesh, ignored_params=still)
        sharded.set_force_sum_reduction_for_comms(True)  # all that gloo has; then it divides


def refuse_unsharded(named: Iterable[tuple[str, nn.Parameter]], used: set[int]) -> None:
    """Raise UserError where something that learns cannot be sharded. used: by the network."""
    for name, parameter in named:
        if parameter.ndim == 0:
            raise usage_error(
                f"--strategy fsdp cannot shard {name}: it is a single number", "", "use ddp"
            )
        if id(parameter) not in used:
            raise usage_error(
                f"--strategy fsdp cannot shard {name}: its cached stage does not use it",
                "",
                "add --no-cache, or use ddp",
            )


def refuse_old_torch() -> None:
    """Raise UserError where this torch cannot add up the gradients of shards over gloo."""
    from torch.distributed import fsdp

    kind = getattr(fsdp, "FSDPModule", None)
    if not hasattr(kind, "set_force_sum_reduction_for_comms"):
        raise usage_error(
            f"--strategy fsdp needs a newer torch than {torch.__version__}",
            "",
            "update it (tried with 2.13), or use ddp",
        )


def sharded_like(part: Any, values: Tensor) -> Any:
    """Return this process's part of values (whole) as of a parameter that is sharded."""
    from torch.distributed.tensor import distribute_tensor

    given = values.detach().to(part.device, memory_format=torch.contiguous_format)
    return distribute_tensor(given, part.device_mesh, part.placements)


def _is_of_shape(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
