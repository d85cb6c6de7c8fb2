"""The verb `view`: a page on this machine that answers pictures which are dropped on it."""

import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transferkit.config import Predict
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show, Working
from transferkit.files.foreign_files import understood
from transferkit.inference.dropout import active_dropout
from transferkit.inference.exported import is_exported
from transferkit.inference.predict import load_run
from transferkit.recipes.reading import predict_options
from transferkit.reporting.page import policy, render
from transferkit.reporting.run_page import run_page
from transferkit.runs.folder import RunFolder, open_run
from transferkit.verbs.report import run_data
from transferkit.viewing.answer import Answerer
from transferkit.viewing.gate import MAX_BYTES
from transferkit.viewing.server import Page, open_server

UNUSED = ("select", "by", "batch_size")
"""Fields of the options that one picture at a time has no use for."""
USUAL_SAMPLES = 30
STYLES, SCRIPTS = ("report.css", "view.css"), ("view.js",)


def view_options(folder: RunFolder, sets: list[str], flags: Mapping[str, Any]) -> Predict:
    """Return how a run answers here: as `predict` would, but sampled where the head has dropout.

    Samples are left out with --mc-dropout 0, or taken otherwise with --tta.
    """
    for pair in sets:
        if pair.partition("=")[0].strip() in {f"predict.{name}" for name in UNUSED}:
            raise usage_error(f"--set {pair} has no effect on view")
    options = predict_options(folder, sets, flags, UNUSED)
    typed = {*flags, *(pair.partition("=")[0].strip() for pair in sets)}
    if options.mc_dropout or options.tta or "predict.mc_dropout" in typed:
        return options
    if active_dropout(load_run(folder).classifier.head):
        return replace(options, mc_dropout=USUAL_SAMPLES)
    return options


def open_folder(path: Path) -> RunFolder:
    """Open a run to look at. Raises a usage error for an exported model."""
    if is_exported(path):
        raise usage_error(
            f"{path} is an exported model: view needs a run folder",
            "the file holds the network alone, not the run's calibration and figures",
            "give the run that it was exported from",
        )
    return open_run(path)


def view(
    folder: RunFolder,
    options: Predict,
    port: int,
    show: Show,
    ready: Callable[[str, str], None],
) -> None:
    """Serve until interrupted.

    ready: called as soon as the page can be opened, with its address and one that works once.
    """

    def failed(error: Exception) -> None:
        show(Notice(f"a picture failed: {type(error).__name__}: {error}", warning=True))

    show(Working("loading the model"))
    with Answerer(folder, options) as answerer:
        pages = make_pages(folder, answerer, show)
        answers = {"/predict": lambda picture: answerer(picture).to_dict()}
        with open_server(port, pages, answers, failed) as server:
            ready(server.address, server.address_once())
            try:
                server.serve_forever(poll_interval=0.2)
            except KeyboardInterrupt:
                return


def make_pages(folder: RunFolder, answerer: Answerer, show: Show) -> dict[str, Page]:
    """Return the pages by path. The report is made anew: a file in the folder may be anybody's."""
    own = "frame-ancestors 'none'"
    pages = {}
    accuracy = None
    try:
        data = run_data(folder)
        with understood(folder.path):
            accuracy = data.summary["metrics"]["accuracy"]
            pages["/report"] = Page(run_page(data), own)
    except UserError as error:
        show(Notice(f"without a report: {error}", warning=True))
    text = render(
        "view.html",
        SCRIPTS,
        styles=STYLES,
        connect="'self'",
        name=folder.path.resolve().name,
        classes=answerer.classes,
        accuracy=accuracy,
        has_report="/report" in pages,
        backbone=answerer.members[0].loaded.description["backbone"],
        samples=max(answerer.options.mc_dropout, 1) * max(answerer.options.tta, 1),
        no_maps=answerer.no_maps,
        limit=MAX_BYTES,
    )
    own_scripts = policy(STYLES, SCRIPTS, connect="'self'")
    pages["/"] = Page(text, f"{own_scripts}; {own}")
    return pages


def open_browser(address: str) -> None:
    """Open a page in the person's browser, if there is one."""
    webbrowser.open(address)
