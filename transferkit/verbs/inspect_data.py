"""The verb `inspect`: what a data set holds and what is wrong with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.config.data import Data
from transferkit.data.addresses import fetch
from transferkit.data.groups import SIMILAR
from transferkit.data.index import ScanOptions, scan
from transferkit.data.inspect import Inspection, inspect
from transferkit.data.reading import reading_of
from transferkit.errors import usage_error
from transferkit.events import Progress, Show, Working
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.files.strict_json import strict_json
from transferkit.redaction import redacted


def inspect_data(given: Data, output: Path | None, show: Show) -> tuple[Inspection, Path]:
    """Scan and inspect a data set; write the findings as JSON and return them with the file.

    output: the file; None makes inspection-<name>.json in the current folder.
    """
    data, manifest = given.path, given.manifest
    if given.group_by == SIMILAR:
        what = "--group-by similar needs the features of the pictures"
        raise usage_error(what, remedy="inspect --learn reads them, and says what it would change")
    options = ScanOptions(
        manifest=manifest,
        strict=given.strict,
        allow_outside=given.allow_outside,
        reading=reading_of(given),
        use="look",
        corrections=given.corrections,
        group_by=given.group_by,
    )
    fetch([data], show)
    show(Working("reading pictures"))
    index = scan(data, options, lambda done, total: show(Progress("pictures", done, total)))
    show(Working("looking for duplicates"))
    found = inspect(index, show)
    path = output or Path(f"inspection-{(data or manifest or Path('data')).resolve().stem}.json")
    write_findings(path, found.to_dict())
    return found, path


def write_findings(path: Path, findings: Mapping[str, Any]) -> None:
    """Write what was found as JSON."""
    text = redacted(strict_json(findings, indent=2)) + "\n"
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise disk_error(path.parent, error) from error
