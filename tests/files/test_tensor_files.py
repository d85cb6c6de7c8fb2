"""Files of tensors: as written, or refused."""

import random
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from transferkit.files.tensor_files import (
    ChangedFileError,
    checksum,
    from_safetensors,
    require_intact,
    to_safetensors,
)

TENSORS = {
    "weight": torch.randn(7, 5),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "steps": torch.tensor(4),
    "none": torch.zeros(0, 2),
}


def flipped(data: bytes, seed: int) -> bytes:
    changed = bytearray(data)
    where = random.Random(seed).randrange(len(data))
    changed[where] ^= 1 << random.Random(-seed).randrange(8)
    return bytes(changed)


def test_what_is_written_is_read_again_by_us_and_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(to_safetensors({**TENSORS, "same": TENSORS["weight"]}))
    for found in (from_safetensors(path), load_file(path)):
        assert found.keys() == {*TENSORS, "same"}
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
        assert torch.equal(found["same"], TENSORS["weight"])


def test_the_checksum_is_the_crc_32_of_name_type_shape_and_bytes() -> None:
    tensor = torch.tensor([[1.5, -2.0]])
    text = b"w torch.float32 [1, 2]" + tensor.numpy().tobytes()
    assert checksum({"w": tensor}) == f"{zlib.crc32(text):08x}"


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_refused(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(flipped(to_safetensors(TENSORS), seed))
    try:
        found = from_safetensors(path)
    except (ChangedFileError, SafetensorError, OSError, ValueError):
        return
    # white space of the header, or the name of the checksum: the tensors are whole
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_a_file_of_others_needs_no_checksum(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "t.safetensors")
    assert torch.equal(from_safetensors(tmp_path / "t.safetensors")["w"], torch.ones(2))


def test_a_changed_checkpoint_is_refused_though_torch_loads_it(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    require_intact(path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(400)) + 100] = 7  # within the zeros
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], torch.zeros(1000))
    with pytest.raises(ChangedFileError):
        require_intact(path)
    path.write_bytes(data[:500])
    with pytest.raises(ChangedFileError):
        require_intact(path)
