"""What `inspect --learn` asks the features of the pictures."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transferkit.config import Config
from transferkit.evaluation.learning_plot import learning_plot
from transferkit.events import Show, Working
from transferkit.files.atomic_write import write_plot
from transferkit.finetuning.outlook import Outlook, grouped_accuracies, outlook_of
from transferkit.finetuning.pictures import read_evidence
from transferkit.verbs.inspect_data import write_findings

PLOT = "learning-curve.png"
"""Beside the file of the findings."""


def learn(config: Config, findings: Mapping[str, Any], path: Path, show: Show) -> Outlook:
    """Ask the pictures' features what more pictures would bring, and whether the splits differ.

    Added to the findings in the file at `path`; the plot lies beside it.
    """
    evidence = read_evidence(config, show)
    outlook = outlook_of(evidence, config.training.seed)
    show(Working("looking at groups"))
    outlook = replace(outlook, grouped=grouped_accuracies(evidence))
    write_findings(path, {**findings, **outlook.to_dict()})
    if outlook.curve is not None:
        write_plot(path.with_name(PLOT), learning_plot(outlook.curve))
    return outlook
