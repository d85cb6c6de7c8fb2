"""Where shards are: braces and patterns expanded, and copies of those that lie at an address.

Shards at an address (s3://..., through fsspec) are copied once, whole, below the cache folder, and
read there as local ones: pictures are wanted in any order and in every epoch, and an object store
answers a request for each far more slowly than a disk.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transferkit import processes
from transferkit.data.names import count, listed, natural_sorted, shown
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Progress, Show
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.files.cache_dir import ADVICE, default_cache_dir
from transferkit.redaction import HIDDEN, is_redacted, redacted

MOST_SHARDS = 1_000_000
AT_ONCE = 4
"""Copies that each process makes at the same time."""
_CHUNK = 8 << 20
_MB = 1e6
_RANGE = re.compile(r"\{(-?\d{1,4000})\.\.(-?\d{1,4000})")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)


@dataclass(frozen=True)
class Remote:
    """A shard at an address. size: bytes; state: changes with its content. local: its copy."""

    address: str
    size: int
    state: str
    local: Path


def address_of(source: Path | str) -> str | None:
    """Return the address that a path stands for (a Path has only one slash), None for a plain path.

    file:///x is the plain path /x; see `local_path`.
    """
    parts = _SCHEME.fullmatch(str(source))
    return f"{parts[1]}://{parts[2]}" if parts and parts[1] != "file" else None


def local_path(source: Path | str) -> Path:
    """Return where a shard is read: at its path, or, with an address, where its copy lies."""
    parts = _SCHEME.fullmatch(redacted(str(source)))
    if parts is None:
        return Path(source)
    if parts[1] == "file":
        return Path("/", parts[2])
    place = parts[2].removeprefix(f"{HIDDEN}@")
    inside = [part for part in place.split("/") if part not in ("", ".", "..")]
    return default_cache_dir().expanduser().joinpath("shards", parts[1], *inside)


def expand(source: Path | str) -> list[Path]:
    """Return the shards that a name with braces or a local pattern stands for, as local paths.

    'a-{00..02}.tar' are three, in this order; patterns give what there is, in natural order.
    Raises a usage error for braces that do not match, and for a pattern without a match.
    """
    paths: dict[Path, None] = {}
    for text in _unbraced(source):
        path = local_path(text)
        if address_of(text) is None and glob.has_magic(text) and not os.path.lexists(path):
            matches = natural_sorted(glob.glob(str(path), recursive=True))
            if not matches:
                raise usage_error(f"{shown(text)} matches no file")
            paths.update(dict.fromkeys(map(Path, matches)))
        else:
            paths[path] = None
    return list(paths)


def fetch(sources: Iterable[Path | str | None], show: Show) -> None:
    """Copy the shards that lie at addresses among `sources` into the cache folder, once.

    All processes of a job call it, and each copies its share. Raises UserError.
    """
    named = [source for source in sources if source is not None and address_of(source)]
    if not named:
        return
    missing, there = processes.from_first(_missing, named)
    if missing:
        first, size = missing[0], sum(remote.size for remote in missing)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        have = f"; {count(there, 'shard')} fetched before" if there else ""
        folder = first.local.parent
        show(Notice(f"fetching {first.address}{more}: {size / _MB:,.0f} MB to {folder}{have}"))
    share = processes.share(missing)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, _ in enumerate(pool.map(_copy, share), start=1):
            show(Progress("shards", done, len(share)))
    processes.from_all(None)  # every copy is there


def _unbraced(source: Path | str) -> list[str]:
    """Return the names that braces stand for; a file that is called so is itself."""
    text = address_of(source) or str(source)
    if "{" not in text or os.path.lexists(text):
        return [text]
    from braceexpand import braceexpand

    # A range is counted before it is written out, which would fill the memory.
    large = any(abs(int(a) - int(b)) > MOST_SHARDS for a, b in _RANGE.findall(text))
    try:
        texts = [] if large else list(islice(braceexpand(text, escape=False), MOST_SHARDS + 1))
    except ValueError:
        raise usage_error(f"{shown(text)}: the braces do not match") from None
    if large or len(texts) > MOST_SHARDS:
        raise usage_error(f"{shown(text)}: the braces stand for more than {MOST_SHARDS:,} shards")
    return texts


def _missing(sources: list[Path | str]) -> tuple[list[Remote], int]:
    """Return the shards without an up-to-date copy, and how many have one."""
    addresses = list(dict.fromkeys(text for source in sources for text in _unbraced(source)))
    for address in addresses:
        if not address.lower().endswith(".tar"):
            remedy = "name .tar shards: 's3://bucket/shards/{0000..0127}.tar'"
            raise usage_error(f"{shown(address)}: at an address only shards are read", "", remedy)
        if glob.has_magic(address):
            remedy = "name them with braces: {0000..0127}"
            raise usage_error(f"{shown(address)}: patterns are for local files", "", remedy)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(_look, addresses))
    absent = [address for address, remote in zip(addresses, found, strict=True) if remote is None]
    if absent:
        what = f"{count(len(absent), 'shard')} of {len(addresses)} not found"
        raise usage_error(what, listed([shown(address) for address in absent]))
    remotes = [remote for remote in found if remote is not None]
    missing = [remote for remote in remotes if _state_of_copy(remote) != _state(remote)]
    _require_space(missing)
    return missing, len(remotes) - len(missing)


def _look(address: str) -> Remote | None:
    """Ask for the size and the state of a shard; None where there is none."""
    if is_redacted(address):
        return _copy_of(address)
    try:
        system, path = _file_system(address)
        size = int(system.size(path))
        return Remote(address, size, str(system.ukey(path)), local_path(address))
    except FileNotFoundError:
        return None
    except UserError:
        raise
    # Object stores raise errors of their own libraries.
    except Exception as error:
        raise _unreachable(address, error) from error


def _copy_of(address: str) -> Remote:
    """Return the shard that was fetched when its address still held a name or a password."""
    local = local_path(address)
    note = Remote(address, 0, "", local)
    try:
        values = json.loads(_note(note).read_text())
        return Remote(str(values["address"]), int(values["size"]), str(values["state"]), local)
    except (OSError, ValueError, LookupError, TypeError):
        what = f"the name and the password of {shown(address)} were not kept"
        remedy = (
            "put them where fsspec finds them (variables, ~/.config/fsspec), not into addresses"
        )
        raise usage_error(what, "and its copy is no longer there", remedy) from None


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise usage_error(f"{shown(address)} cannot be read: {error}") from None
    return system, path


def _unreachable(address: str, error: Exception) -> UserError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    remedy = "check the address, your credentials, and the network"
    return UserError(f"{shown(address)} cannot be read: {words}", remedy=remedy)


def _require_space(missing: list[Remote]) -> None:
    """Raise where the copies would not fit on the disk."""
    if not missing:
        return
    folder = default_cache_dir().expanduser()
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free, needed = shutil.disk_usage(existing).free, sum(remote.size for remote in missing)
    if needed > 0.95 * free:
        raise UserError(
            f"{needed / _MB:,.0f} MB are to be fetched; {existing} has {free / _MB:,.0f} MB free",
            remedy="name a larger place with the variable TRANSFERKIT_CACHE, or fewer shards",
        )


def _copy(remote: Remote) -> None:
    """Copy a shard, then note which state of it that is."""
    try:
        remote.local.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(remote, error) from None
    system, path = _file_system(remote.address)
    try:
        with system.open(path, "rb") as source:
            write_atomically(
                remote.local, lambda target: shutil.copyfileobj(source, target, _CHUNK)
            )
    except Exception as error:
        here = str(getattr(error, "filename", "")).startswith(str(remote.local.parent))
        if isinstance(error, OSError) and here:
            raise _unwritable(remote, error) from None
        raise _unreachable(remote.address, error) from error
    size = remote.local.stat().st_size
    if size != remote.size:
        what = f"{shown(remote.address)} changed while it was read"
        raise UserError(what, f"{size:,} bytes came, {remote.size:,} were announced", "start again")
    write_atomically(_note(remote), lambda file: file.write(_state(remote).encode()))


def _unwritable(remote: Remote, error: OSError) -> UserError:
    problem = disk_error(remote.local.parent, error)
    problem.remedy = ADVICE
    return problem


def _note(remote: Remote) -> Path:
    return remote.local.with_name(f"{remote.local.name}.json")


def _state(remote: Remote) -> str:
    return json.dumps(
        {"address": redacted(remote.address), "size": remote.size, "state": remote.state}
    )


def _state_of_copy(remote: Remote) -> str:
    """Return the state that a copy was made of, "" where there is none."""
    try:
        complete = remote.local.stat().st_size == remote.size
        return _note(remote).read_text() if complete else ""
    except (OSError, ValueError):
        return ""
