"""A few training steps of every stage as a trace of torch's profiler."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from transferkit import processes
from transferkit.training.run import Run
from transferkit.training.stages import PlannedStage

FIRST, LAST = 1, 3
"""Steps recorded, from 0: the first one also pays for what is set up once."""


def profiled(run: Run, stage: PlannedStage, inputs: Iterator[Tensor]) -> Iterator[Tensor]:
    """Pass on the batches (N, ...) of an epoch; in a stage's first one record some steps.

    A step lasts from the wait for its batch to the wait for the next one. The trace goes to the run
    folder, in the format of chrome://tracing and https://ui.perfetto.dev, named by the stage.
    Source: torch.profiler, "export_chrome_trace".
    """
    if not run.settings.profile or run.state.epoch > 0 or not processes.is_first():
        yield from inputs
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    recorder: profile | None = None
    count = len(run.material.train)
    first = FIRST if count > run.settings.batch_size else 0  # a single step is recorded as it is
    for step in range(LAST + 1):
        if step == first:
            recorder = profile(activities=activities)
            recorder.start()
        batch = next(inputs, None)
        if batch is None:
            break
        try:
            yield batch
        except GeneratorExit:  # the epoch ended with an error
            if recorder is not None:
                recorder.stop()
            raise
    if recorder is not None:
        recorder.stop()
        save(run, stage, recorder)
    yield from inputs


def save(run: Run, stage: PlannedStage, recorder: profile) -> None:
    """Write a finished recording into the run folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        name = f"{run.state.stage + 1}-{stage.name.replace(' ', '-')}"
        run.folder.save_trace(name, path.read_bytes())
