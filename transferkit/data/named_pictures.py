"""Pictures named on the command line: files, folders, patterns, shards."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from transferkit.data.files import is_hidden, is_picture, walk
from transferkit.data.names import count, is_valid_text, listed, natural_sorted, shown
from transferkit.data.shards import is_shards, shard_pictures
from transferkit.data.tar_members import archive_of
from transferkit.data.written_paths import listed_files
from transferkit.errors import usage_error


def list_pictures(sources: Sequence[str], lines: Iterable[str]) -> list[Path]:
    """List files, folders, patterns; "-" stands for `lines`, one path in each. Each path once."""
    from_list = listed_files(lines) if "-" in sources else []
    named = [source for source in sources if source != "-"]
    files = list_images(named) if named or not from_list else []
    return list(dict.fromkeys([*files, *from_list]))


def list_images(sources: Sequence[Path | str]) -> list[Path]:
    """Return the pictures that files, folders (with all below them), patterns and shards name.

    The order of `sources` is kept; folders and patterns are expanded in natural order, shards in
    their own; a file named twice is returned once. A file named by itself is taken whatever its
    suffix. Raises UserError, for all sources together, where one does not exist or holds no
    picture, and for shards as `shard_pictures` does.
    """
    if not sources:
        remedy = "name files, folders or patterns like 'a/*.jpg'"
        raise usage_error("no pictures given", remedy=remedy)
    expanded = [_expand(Path(source)) for source in sources]
    images = dict.fromkeys(image for pictures, _ in expanded for image in pictures)
    problems = [problem for _, problem in expanded if problem]
    invalid = [path for path in map(str, images) if not is_valid_text(path)]
    problems += [f"{shown(path)}: the name is not valid UTF-8" for path in invalid]
    if problems:
        remedy = "check the names; folders must hold pictures of a format that Pillow reads"
        if len(problems) == 1:
            raise usage_error(problems[0], remedy=remedy)
        what = f"{len(problems)} of the given pictures cannot be used"
        raise usage_error(what, listed(problems, 8), remedy)
    return list(images)


def _expand(source: Path) -> tuple[list[Path], str]:
    """Return the pictures of one source, or what is wrong with it."""
    name = shown(str(source))
    if is_shards(source):
        return shard_pictures(source), ""
    if source.is_dir():
        pictures = [source / path for path in walk(source).pictures]
        return pictures, "" if pictures else f"{name} holds no pictures"
    # Before patterns: a file may have brackets in its name.
    if os.path.lexists(source) or archive_of(source):
        return [source], ""
    if not glob.has_magic(str(source)):
        return [], f"{name} does not exist"
    matches = [Path(match) for match in natural_sorted(glob.glob(str(source), recursive=True))]
    # A hidden folder is read where it is named, not where a pattern happens to match it.
    named = {part for part in source.parts if not glob.has_magic(part)}
    matches = [m for m in matches if not any(is_hidden(p) for p in m.parts if p not in named)]
    pictures = []
    for match in matches:
        if not match.is_dir():
            pictures += [match] if is_picture(match) else []
        elif "**" not in str(source):  # which matches the files inside, too
            pictures += [match / path for path in walk(match).pictures]
    problem = f"{name} matches {count(len(matches), 'file')}, none of them a picture"
    return pictures, "" if pictures else problem
