"""Stop a run at every step, kill it before every checkpoint, go on, and compare.

    python every_step.py FOLDER [NAME=EVERY ...]     EVERY: run one of so many trials

FOLDER: with pictures/ in it. Prints a line of JSON for each configuration: name, trials, writes,
steps, and wrong, what differs. Pictures are read and networks are built once for each; all runs are
in forks of that process, so that each takes a fraction of a second.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from configurations import CONFIGURATIONS, FINETUNE, PRETRAIN, PRETRAINING, WEIGHTS

from transferkit.errors import UserError
from transferkit.files.csv_rows import from_csv
from transferkit.finetuning import final_validation
from transferkit.pretraining import loop as pretraining_loop
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import RunFolder
from transferkit.stopwatch import Stopwatch
from transferkit.training import loop
from transferkit.training import run as run_module
from transferkit.training.budget import Budget, StageCost
from transferkit.training.divergence import Diverged
from transferkit.verbs import finetune as finetune_verb
from transferkit.verbs import pretrain as pretrain_verb

STARTED = "started"  # what a fork writes of itself
TIMED = ("seconds", "per_second", "per_s", "parts")
SAME = ("model.safetensors", "predictions.csv", "calibration.json")
LONGEST_S = 180


@dataclass
class Fault:
    """What befalls a run. stop: at which step it is asked to stop. saving: in every step, as after
    ten minutes. kill: before which checkpoint, from 1. again: it is over, and resumed."""

    stop: int = 0
    saving: bool = False
    kill: int = 0
    again: bool = False


class Run:
    """Counts what happens in one process, and lets the fault happen."""

    def __init__(self, name: str, fault: Fault) -> None:
        self.name, self.fault = name, fault
        self.steps = self.writes = self.clock = 0
        self.current: Any = None  # the transferkit.training.run.Run

    def is_time(self, stop: Any) -> bool:
        """Stand for `transferkit.training.midway.is_time`, once in every step."""
        self.steps += 1
        stop.asked = self.steps == self.fault.stop
        return stop.asked or self.fault.saving

    def checked(self, loss: float, step: int) -> float:
        """Stand for `checked`: the loss is no number at some steps of the second stage."""
        state = self.current.state
        last = 5 if self.name == "rewound too often" else 0
        forced = self.name == "rewind, forced" and state.halvings <= last
        often = self.name in ("rewound too often", "stops on divergence", "solved, then diverges")
        if state.stage == 1 and step == 3 and ((forced and not state.halvings) or often):
            raise Diverged(float("nan"), step)
        head = self.current.classifier.head
        weight = max(float(p.abs().max()) for p in head.parameters() if p.ndim == 1)
        if self.name == "rewind, real" and weight > 0.009:
            raise Diverged(float("inf"), step)
        return loss

    def install(self, session: Any) -> None:
        """Put all this in the place of what it stands for, in this process.

        session: None lets the command build its own.
        """
        make_run, save = finetune_verb.make_run, RunFolder.save_checkpoint

        def made(*given: Any) -> Any:
            self.current = make_run(*given)
            return self.current

        def saved(folder: RunFolder, kind: Any, values: Any) -> None:
            self.writes += 1
            if self.writes == self.fault.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            save(folder, kind, values)

        patches: tuple[tuple[Any, str, Any], ...] = (
            (loop, "is_time", self.is_time),
            (loop, "checked", self.checked),
            (pretraining_loop, "is_time", self.is_time),
            (finetune_verb, "make_run", made),
            (RunFolder, "save_checkpoint", saved),
            (finetune_verb, "choose", choose),
            (finetune_verb, "notice_of", lambda *_: finetune_verb.Notice("planned")),
            (finetune_verb, "with_views", lambda parts, budget: parts),
        )
        for owner, name, value in patches:
            setattr(owner, name, value)
        if session is not None:
            finetune_verb.prepare = pretrain_verb.prepare = lambda *given: session  # type: ignore


def choose(session: Any, limit_s: float) -> Any:
    """Plan a budget whose seconds are steps: the stages get less than they wish."""
    costs = [StageCost(2, 1, 0.0, 2.5, 0.5) for _ in session.plan.stages]
    return Budget(11.0, 1.0, costs, [2.0, 2.0, *[0.0] * (len(costs) - 2)], 1)


def without_pages() -> None:
    """Leave out what costs time and is looked at elsewhere."""
    for name in ("curves", "learning_rates", "confusion", "inside", "reliability", "write_card"):
        setattr(finetune_verb, name, lambda *_: None)
    for verb in (finetune_verb, pretrain_verb):
        verb.write_report = lambda *_: None  # type: ignore[attr-defined]
    pretrain_verb.feature_map = lambda *_: None  # type: ignore[assignment]
    final_validation.bootstrap_intervals = lambda *_: {}  # type: ignore[assignment]
    RunFolder.save_plot = lambda self, *_: self.path  # type: ignore[method-assign]
    run_module.CHECKPOINT_SHARE = float("inf")  # a checkpoint after every epoch
    os.fsync = lambda descriptor: None  # no power is lost
    real = torch.compile
    # without a C++ compiler, which takes a minute for each process
    torch.compile = lambda network, options: real(network, backend="aot_eager")  # type: ignore


def forked(work: Callable[[], Any], longest_s: int = LONGEST_S) -> tuple[int, Any]:
    """Run something in a fork; return its exit code, negative for a signal, and its result."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, told = 70, None
        signal.alarm(longest_s)
        try:
            told = work()
            code = 0
        except UserError as error:
            code, told = error.exit_code, str(error)
        except BaseException:  # a fork must not go on
            told = traceback.format_exc()[-1500:]
        finally:
            os.write(writing, json.dumps(told).encode())
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(told or "null")


def timeless(values: Any) -> Any:
    """Return nested data without what a clock shows, and where it lies."""
    if isinstance(values, dict):
        timed = {k for k in values if k in ("run", "files") or any(word in k for word in TIMED)}
        return {name: timeless(value) for name, value in values.items() if name not in timed}
    return [timeless(value) for value in values] if isinstance(values, list) else values


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a run left, to compare."""
    found: dict[str, Any] = {
        name: (folder / name).read_bytes() for name in SAME if (folder / name).is_file()
    }
    for name in ("metrics.csv", "monitoring.csv"):
        if (folder / name).is_file():
            found[name] = [timeless(row) for row in from_csv((folder / name).read_text())]
    for name in ("summary.json", "interpolation.json"):
        if (folder / name).is_file():
            text = (folder / name).read_text().replace(str(folder), "")  # in the next command
            found[name] = timeless(json.loads(text))
    return found


@dataclass
class Ground:
    """A configuration whose session is built, and where its runs go."""

    name: str
    config: Any
    session: Any
    folder: Path

    def begin(self, out: Path, fault: Fault) -> tuple[int, Any]:
        """Run the configuration's command in a fork."""
        return forked(lambda: self._run(out, fault, resume=False))

    def resume(self, out: Path, fault: Fault) -> tuple[int, Any]:
        """Go on with a run in a fork."""
        return forked(lambda: self._run(out, fault, resume=True))

    def _run(self, out: Path, fault: Fault, *, resume: bool) -> dict[str, int]:
        run = Run(self.name, fault)
        own = resume and self.name == "lr auto"  # the session has another rate by then
        run.install(None if own else self.session)
        silent: Callable[[Any], None] = lambda event: None  # noqa: E731
        verb: Any = pretrain_verb if self.name in PRETRAINING else finetune_verb
        given: tuple[Any, ...] = ()
        if verb is finetune_verb:  # a second is a step, and the start takes one
            watch = Stopwatch(lambda: float(run.steps + run.clock))
            run.clock = 0 if (out / "checkpoints/last.pt").exists() else 1
            object.__setattr__(self.session, "watch", watch)
        if resume:
            verb.resume(out, silent, *given)
        elif verb is pretrain_verb:
            verb.pretrain(self.config, out, silent)
        else:
            verb.finetune(self.config, out, silent)
        return {"steps": run.steps, "writes": run.writes}


def ground_of(name: str, root: Path) -> Ground:
    """Read the pictures and build the networks of a configuration."""
    folder = root / name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True)
    silent: Callable[[Any], None] = lambda event: None  # noqa: E731
    if name in PRETRAINING:
        given = PRETRAIN | PRETRAINING[name]
        labelled = given["pretraining.method"] == "supervised"
        given["pretraining.aux" if labelled else "data.path"] = str(root / "pictures")
        config = load_config(None, (), given)
        return Ground(name, config, pretrain_verb.prepare(config, silent), folder)
    given = FINETUNE | CONFIGURATIONS[name] | {"data.path": str(root / "pictures")}
    given["cache.dir"] = str(folder / "cache")
    if given.pop("backbone.weights", "") == WEIGHTS:
        start = load_config(None, (), FINETUNE | {"data.path": given["data.path"]})
        backbone = finetune_verb.prepare(start, silent).backbone
        torch.save(backbone.model.state_dict(), folder / "weights.pt")
        given["backbone.weights"] = str(folder / "weights.pt")
    if "training.budget" in given:
        del given["stages"]
    config = load_config(None, (), given)
    return Ground(name, config, finetune_verb.prepare(config, silent), folder)


def differing(one: dict[Any, Any], other: dict[Any, Any]) -> str:
    """Name what differs, "" where nothing does."""
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return ", ".join(named(name, one.get(name), other.get(name)) for name in sorted(names))


def named(name: Any, one: Any, other: Any) -> str:
    """Return a name with the keys below it that differ and their two values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return f"{name}: {differing(one, other)}"
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return f"{name}: {differing(dict(enumerate(one)), dict(enumerate(other)))}"
    return str(name) if isinstance(one, bytes) else f"{name} ({str(one)[:300]}, {str(other)[:300]})"


def trial(ground: Ground, fault: Fault, expected: dict[str, Any], ended: tuple[int, Any]) -> str:
    """Let one fault happen and go on; return what is wrong then."""
    out = ground.folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    code, told = ground.begin(out, fault)
    wanted = -signal.SIGKILL if fault.kill else 130 if fault.stop else ended[0]
    if code != wanted:
        return f"{fault}: ended with {code}, not {wanted}: {told}"
    if fault.stop % 2:  # and once more, a step later
        code, told = ground.resume(out, Fault(stop=1))
        if code not in (130, ended[0]):
            return f"{fault}: going on ended with {code}: {told}"
    if code in (130, -signal.SIGKILL) or fault.again:
        code, told = ground.resume(out, Fault())
    if code != ended[0] or (code and str(told).replace(str(out), "") != ended[1]):
        return f"{fault}: going on ended with {code}: {told}"
    if found := differing(expected, outcome(out)):
        return f"{fault}: other {found}"
    return ""


def attack(ground: Ground, every: int) -> dict[str, Any]:
    """Run all trials of a configuration, or one of so many; return what came out."""
    whole = ground.folder / "whole"
    code, told = ground.begin(whole, Fault())
    text = str(told).replace(str(whole), "") if code else None
    expected = outcome(whole)
    if "model.safetensors" not in expected:
        return {"name": ground.name, "trials": 1, "wrong": [f"undisturbed: {code}: {told}"]}
    counted: dict[str, int] = {"steps": 0, "writes": 0}
    for kind, fault in (("steps", Fault()), ("writes", Fault(saving=True))):
        counted[kind] = count_of(ground, fault, kind)
    faults = [Fault(saving=True), Fault(again=True)]
    faults += [Fault(stop=step) for step in range(1, counted["steps"] + 1)]
    faults += [Fault(saving=True, kill=write) for write in range(1, counted["writes"] + 1)]
    first = random.Random(ground.name).randrange(every)
    chosen = list(itertools.islice(faults, first, None, every))
    wrong = [text_ for fault in chosen if (text_ := trial(ground, fault, expected, (code, text)))]
    reasons = [stage["reason"] for stage in expected["summary.json"].get("stages", [])]
    shutil.rmtree(ground.folder)
    return {"name": ground.name, "trials": len(chosen), "wrong": wrong, "stages": reasons} | counted


def count_of(ground: Ground, fault: Fault, what: str) -> int:
    """Return how many steps or checkpoints a run has, also one that ends with an error."""
    path = ground.folder / "counted"

    def work() -> None:
        run_class = Run.install

        def install(self: Run, session: Any) -> None:
            run_class(self, session)
            counters.append(self)

        counters: list[Run] = []
        Run.install = install  # type: ignore[method-assign]
        try:
            ground._run(ground.folder / "run", fault, resume=False)
        finally:
            path.write_text(str(getattr(counters[0], what)))

    shutil.rmtree(ground.folder / "run", ignore_errors=True)
    forked(work)
    return int(path.read_text())


def attacked(name: str, root: Path, every: int) -> dict[str, Any]:
    """Build a configuration and attack it."""
    return attack(ground_of(name, root), every)


def main(root: Path, wanted: dict[str, int]) -> None:
    """Attack the configurations that are wanted, or all."""
    torch.set_num_threads(1)
    without_pages()
    for name in wanted or dict.fromkeys((*CONFIGURATIONS, *PRETRAINING), 1):
        every = wanted.get(name, 1)
        code, told = forked(partial(attacked, name, root, every), 20 * LONGEST_S)
        found = told if code == 0 else {"name": name, "trials": 0, "wrong": [told]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), {n: int(e) for n, e in (a.rsplit("=", 1) for a in sys.argv[2:])})
