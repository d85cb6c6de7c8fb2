"""The verb `inspect`: what a data set holds and what is wrong with it."""

from pathlib import Path

from transferkit.config.data import Data
from transferkit.data.addresses import fetch
from transferkit.data.index import ScanOptions, scan
from transferkit.data.inspect import Inspection, inspect
from transferkit.data.reading import reading_of
from transferkit.events import Progress, Show, Working
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.files.strict_json import strict_json
from transferkit.redaction import redacted


def inspect_data(given: Data, output: Path | None, show: Show) -> tuple[Inspection, Path]:
    """Scan and inspect a data set; write the findings as JSON and return them with the file.

    output: the file; None makes inspection-<name>.json in the current folder.
    """
    data, manifest = given.path, given.manifest
    options = ScanOptions(
        manifest=manifest,
        strict=given.strict,
        allow_outside=given.allow_outside,
        reading=reading_of(given),
        use="look",
        corrections=given.corrections,
    )
    fetch([data], show)
    show(Working("reading pictures"))
    index = scan(data, options, lambda done, total: show(Progress("pictures", done, total)))
    show(Working("looking for duplicates"))
    found = inspect(index, show)
    path = output or Path(f"inspection-{(data or manifest or Path('data')).resolve().stem}.json")
    text = redacted(strict_json(found.to_dict(), indent=2)) + "\n"
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise disk_error(path.parent, error) from error
    return found, path
