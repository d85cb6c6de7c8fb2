"""The commands that inspect data and list what there is to choose from."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, app, live_view
from transferkit.cli.options import (
    DATA_HELP,
    FEATURES,
    AllowOutside,
    Select,
    build_config,
    require_manifest,
    take_data,
    with_options,
)
from transferkit.cli.tables.choice import choice_table
from transferkit.cli.tables.comparison import comparison_table
from transferkit.cli.tables.explanations import page_text, topics_table
from transferkit.cli.tables.labels import labels_table
from transferkit.cli.tables.outlook import outlook_lines
from transferkit.cli.tables.results import inspection_table
from transferkit.errors import usage_error
from transferkit.events import Notice


@app.command()
@with_options(
    *("data.group_by", "data.corrections", "data.max_pixels", "data.depth_range", "data.bands")
)
def inspect(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="CSV with columns path,label[,split].")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the findings [inspection-DATA.json]."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if any file is unreadable.")
    ] = False,
    learn: Annotated[
        bool,
        typer.Option("--learn", help="Solve on parts: what would more pictures bring? One pass."),
    ] = False,
    allow_outside: AllowOutside = False,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Check a data set: counts, sizes, unreadable files, duplicates."""
    with live_view(json) as view:
        from transferkit.verbs import inspect_data as verb

        require_manifest(allow_outside, manifest)
        typed = {**flags, "data__manifest": manifest}
        typed |= {"data__strict": strict or None, "data__allow_outside": allow_outside or None}
        given = replace(take_data(flags)[0], path=data, manifest=manifest, strict=strict)
        given = replace(given, allow_outside=allow_outside)
        found, path = verb.inspect_data(given, output, view.show)
        outlook = None
        if learn:
            config = build_config(data, None, None, None, typed)
            from transferkit.verbs.learn import PLOT
            from transferkit.verbs.learn import learn as look_ahead

            outlook = look_ahead(config, found.to_dict(), path, view.show)
    if json:
        more = {} if outlook is None else outlook.to_dict()
        console.print_json({**found.to_dict(), **more, "output": path})
    else:
        inspection_table(found)
        if outlook is not None:
            outlook_lines(outlook)
            if outlook.curve is not None:
                console.print_lines([f"plot: {path.with_name(PLOT)}"])
        console.print_lines([f"all findings: {path}"])


@app.command()
@with_options(*({*FEATURES} - {"data.manifest", "data.allow_outside"}))  # it has its own
def choose(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="CSV with columns path,label[,split].")
    ] = None,
    backbones: Annotated[
        str, typer.Option("--backbones", help="Names to try, a,b,c [all that are at hand].")
    ] = "",
    budget: Annotated[
        str | None, typer.Option("--budget", help="Begin nothing new after, e.g. 90s or 10m.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the plot [choice-DATA.png].")
    ] = None,
    allow_outside: AllowOutside = False,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Compare backbones, input sizes and framings, without training."""
    with live_view(json) as view:
        require_manifest(allow_outside, manifest)
        if flags["backbone__name"] and not flags["backbone__weights"]:
            remedy = f"to try it: --backbones {flags['backbone__name']}"
            raise usage_error("--backbone says here what --weights FILE is of", "", remedy)
        flags |= {"data__manifest": manifest, "data__allow_outside": allow_outside or None}
        config = build_config(data, None, None, None, flags)
        from transferkit.verbs import choose as verb

        names = list(dict.fromkeys(name.strip() for name in backbones.split(",") if name.strip()))
        found, path = verb.choose(config, names, budget, output, view.show)
    if json:
        console.print_json({**found.to_dict(), "output": path})
    else:
        choice_table(found, path)


@app.command()
@with_options(*FEATURES)
def labels(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run whose features are used, with or without DATA."),
    ] = None,
    select: Select = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the suspects to a .csv or .jsonl file."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """List labels that are probably wrong, and what speaks for others."""
    with live_view(json) as view:
        config = build_config(data, None, None, None, flags)
        from transferkit.verbs import labels as verb

        found = verb.labels(config, run, select, output, view.show)
    if json:
        console.print_json({**found.to_dict(), "output": output})
    else:
        labels_table(found, output)


@app.command()
def models(
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern such as 'resnet*'."),
    ] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Only models whose weights are available offline.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List backbones: parameters, input size, licence, offline weights."""
    with live_view(json):
        from transferkit.backbones.models import list_models

        found = [m for m in list_models(pattern) if not offline or m.offline != "no"]
    if not found:
        raise usage_error(f"no backbone matches {pattern!r}", "", "try a part of a name: mobilenet")
    if json:
        console.print_json({"models": [vars(m) for m in found]})
        return
    rows = [
        (
            m.name,
            "-" if m.parameters is None else f"{m.parameters:.1f} M",
            m.input_px,
            m.license,
            m.offline,
        )
        for m in found
    ]
    console.print_table(
        f"backbones: {len(rows)}", ("name", "parameters", "input px", "licence", "offline"), rows
    )


@app.command()
def recipes(json: Json = False, debug: Debug = False) -> None:
    """List the recipes shipped with transferkit."""
    from transferkit.recipes.reading import describe_recipe, shipped_recipes

    rows = [(name, describe_recipe(path), path) for name, path in shipped_recipes().items()]
    if json:
        keys = ("name", "description", "path")
        console.print_json({"recipes": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    console.print_table("recipes", ("name", "purpose"), [row[:2] for row in rows])
    console.print_lines(["use one: transferkit finetune DATA --recipe NAME"])


@app.command()
def explain(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC", help="A topic or an option; without one, topics are listed."
        ),
    ] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain a technique: when to use it, formula, options, source."""
    from transferkit.explain import find_topic, read_page, topics

    if not topic:
        found = topics()
        if json:
            rows = [{"topic": name, "title": title} for name, title in found.items()]
            console.print_json({"topics": rows})
        else:
            topics_table(found)
        return
    page = read_page(find_topic(topic))
    if json:
        console.print_json(page.to_dict())
    else:
        page_text(page)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Plot the learning curves to a .png file.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs side by side: results, and options that differ."""
    with live_view(json):
        from transferkit.verbs import compare as verb

        found = verb.compare(runs, output)
    if json:
        console.print_json({**found.to_dict(), "output": output})
    else:
        comparison_table(found, output)


@app.command()
def lab(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC", help="An experiment, or all; without one, they are listed."
        ),
    ] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the figures.")
    ] = Path(),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """See what a technique does: short experiments with figures."""
    from transferkit.lab.topics import TOPICS

    if not topic:
        rows = [(name, found.summary) for name, found in TOPICS.items()]
        if json:
            keys = ("topic", "summary")
            console.print_json({"topics": [dict(zip(keys, row, strict=True)) for row in rows]})
        else:
            console.print_table("Experiments", ("topic", "shows"), rows)
            console.print_lines(["", "see one: transferkit lab TOPIC; all of them: lab all"])
        return
    with live_view(json) as view:
        from transferkit.verbs import lab as verb

        done = []
        for shown in verb.lab(topic, output, view.show):
            done.append(shown.to_dict())
            for line in () if json else ("", shown.title, *shown.sentences, f"{shown.figure}"):
                view.show(Notice(line))
    if json:
        console.print_json({"experiments": done})
        return
    for experiment in done:
        if experiment["table"]:
            headings, *cells = experiment["table"]
            console.print_table(experiment["title"], headings, cells)
