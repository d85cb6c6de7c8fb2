"""The verb `view --labels`: a page on this machine on which suspicious labels are decided."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from transferkit.config import Config
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show
from transferkit.files.atomic_write import disk_error
from transferkit.finetuning.wrong_labels import WrongLabels
from transferkit.reporting.page import policy, render
from transferkit.runs.lock import hold
from transferkit.verbs.labels import find
from transferkit.viewing.review import Review
from transferkit.viewing.server import Page, open_server

FILE = Path("corrections.csv")
STYLES, SCRIPTS = ("report.css", "review.css"), ("review.js",)


def review(
    config: Config,
    run: Path | None,
    select: int | None,
    port: int,
    show: Show,
    ready: Callable[[str, str], None],
) -> Review:
    """Serve the suspects until interrupted; decisions go to `data.corrections`, or `FILE`.

    These are not applied: the suspects stay those of the data set, so that a session goes on where
    the last one ended. run, select: see `find`. ready: see `view`.
    """
    data = config.data
    file = data.corrections or FILE
    if file.suffix.lower() != ".csv":
        raise usage_error(f"--corrections {file}: the name must end in .csv")
    if data.manifest is not None and file.exists() and file.samefile(data.manifest):
        raise usage_error("--corrections names the manifest", "it would be overwritten")

    def failed(error: Exception) -> None:
        show(Notice(f"a request failed: {type(error).__name__}: {error}", warning=True))

    with ExitStack() as held:
        try:
            hold(held, file)
        except OSError as error:
            raise disk_error(file.parent, error) from error
        found = find(replace(config, data=replace(data, corrections=None)), run, select, show)
        if not found.suspects:
            remedy = "--select 20 shows the least probable ones all the same"
            raise UserError("no label is less probable than another one", "", remedy)
        made = Review(found, file)
        page = make_page(config, found, file)
        with open_server(port, {"/": page}, made.answers(), failed) as server:
            ready(server.address, server.address_once())
            with suppress(KeyboardInterrupt):
                server.serve_forever(poll_interval=0.2)
    return made


def make_page(config: Config, found: WrongLabels, file: Path) -> Page:
    """Return the page, which asks for its cards one by one."""
    data = config.data
    place = [str(data.path)] if data.path else []
    place += ["--manifest", str(data.manifest)] if data.manifest else []
    rest = [*(place or ["DATA"]), "--corrections", str(file)]
    text = render(
        "review.html",
        SCRIPTS,
        styles=STYLES,
        connect="'self'",
        name=(data.path or data.manifest or found.index.root).resolve().name,
        number=found.estimate.text,
        pictures=f"{found.pictures:,}",
        total=len(found.suspects),
        file=str(file),
        classes=found.index.classes,
        train=shlex.join(["transferkit", "finetune", *rest]),
        again=shlex.join(["transferkit", "labels", *rest]),
    )
    own = policy(STYLES, SCRIPTS, connect="'self'")
    return Page(text, f"{own}; frame-ancestors 'none'")
