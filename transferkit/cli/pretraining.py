"""The command that learns from unlabelled pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from transferkit import console, processes
from transferkit.cli.app import Debug, Json, app, live_view
from transferkit.cli.options import (
    Out,
    Recipe,
    Resume,
    Sets,
    build_raw,
    require_alone,
    require_read,
    with_pretraining_options,
)
from transferkit.cli.tables.pretraining import pretraining_table


@app.command()
@with_pretraining_options
def pretrain(
    unlabeled: Annotated[
        Path | None,
        typer.Argument(
            metavar="UNLABELED", help="Folder of pictures (searched recursively), or shards."
        ),
    ] = None,
    recipe: Recipe = None,
    sets: Sets = None,
    out: Out = None,
    resume: Resume = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Pretrain a backbone on unlabelled pictures (finetune --from RUN)."""
    require_alone(resume, [recipe, sets, out, *flags.values()])
    require_read(sets or ())
    with live_view(json) as view:
        raw = None if resume else build_raw(unlabeled, recipe, sets, None, flags)
        with processes.joined():
            from transferkit.recipes.reading import validate
            from transferkit.verbs import pretrain as verb

            if resume is not None:
                summary = verb.resume(resume, view.show, unlabeled)
            else:
                assert raw is not None
                summary = verb.pretrain(validate(verb.resolve(raw)), out, view.show)
    if not processes.is_first():
        return
    if json:
        console.print_json(summary.to_dict())
    else:
        pretraining_table(summary)
