"""Files of tensors that tell when a bit of them has changed since they were written.

Neither safetensors nor `torch.load` look: a flipped bit would be a slightly other weight.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

CHECKSUM = "crc32"


class ChangedFileError(ValueError):
    """A file's contents are not those that were written."""

    def __init__(self) -> None:
        super().__init__("its contents have changed since it was written (their checksum differs)")


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors in the format of safetensors, with a checksum among its metadata.

    The same tensors always give the same bytes. Those that share memory are written apart.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        shared = flat.untyped_storage().data_ptr() in seen
        seen.add(flat.untyped_storage().data_ptr())
        separate[name] = flat.clone() if shared else flat
    return save(separate, metadata={CHECKSUM: checksum(separate)})


def from_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU; one without a checksum is taken as it is.

    Raises ChangedFileError, SafetensorError and OSError.
    """
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(CHECKSUM)
    if written is not None and written != checksum(tensors):
        raise ChangedFileError
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of names, types, shapes and contents of contiguous tensors, in hex."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def require_intact(path: Path) -> None:
    """Raise ChangedFileError where a file of `torch.save` has changed.

    It is a zip archive with a CRC-32 of every member, which `torch.load` does not look at. Raises
    OSError, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ChangedFileError from error
    if broken is not None:
        raise ChangedFileError
