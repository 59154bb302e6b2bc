import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from style_aligned.models.checkpoints import CheckpointError
from style_aligned.models.checkpoints.files import MemoryMaps, read_header, write_safetensors

TENSORS = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "full": torch.randn(2, 2, 3),
    "number": torch.tensor(3.5),
    "nothing": torch.zeros(0, 4),
    "ids": torch.arange(4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"hello": "you"})
    return tmp_path / "model.safetensors"


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    entries = [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
    write_safetensors(path, entries, tensors.__getitem__, {"hello": "you"})


def test_read(file: Path) -> None:
    stored, metadata = read_header(file)
    maps = MemoryMaps()
    assert metadata["hello"] == "you"
    assert {tensor.key for tensor in stored} == set(TENSORS)
    for tensor in stored:
        for values in (tensor.read(), maps.tensor(tensor)):
            assert values.dtype == TENSORS[tensor.key].dtype
            assert torch.equal(values, TENSORS[tensor.key])


def test_what_is_written_to_a_mapped_tensor_stays_in_memory(file: Path) -> None:
    before = file.read_bytes()
    stored = next(tensor for tensor in read_header(file)[0] if tensor.key == "full")
    MemoryMaps().tensor(stored).zero_()
    assert file.read_bytes() == before


def test_an_old_file_without_padding(file: Path) -> None:
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    text = file.read_bytes()[8 : 8 + length].rstrip()
    text += b" " * ((1 - len(text)) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + file.read_bytes()[8 + length :])
    maps = MemoryMaps()
    for tensor in read_header(file)[0]:
        assert torch.equal(maps.tensor(tensor), TENSORS[tensor.key])


def test_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    write(path, TENSORS)
    for key, tensor in load_file(path).items():
        assert torch.equal(tensor, TENSORS[key])
        assert tensor.dtype == TENSORS[key].dtype
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "hello": "you"}
    for stored in read_header(path)[0]:
        assert stored.offset % stored.dtype.itemsize == 0


def test_a_truncated_file(file: Path) -> None:
    content = file.read_bytes()
    end = len(content)
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: truncated \({end - 1} bytes; '.+' ends at byte"):
        read_header(file)
    file.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated within its header \(100 of at least"):
        read_header(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", "its header cannot be read"),
        ("{}}", "its header cannot be read"),
        ('{"a": 1}', "its header cannot be read"),
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            r"\('a' of shape \(2,\) takes 4 bytes\)",
        ),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, "damaged header"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "damaged header"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "the last tensor ends at byte"),
        ("[" * 100_000, "its header cannot be read"),
        ({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, "'a' holds numbers of the type X"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            "'b' starts at byte",
        ),
    ],
)
def test_a_damaged_header(tmp_path: Path, header: object, message: str) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("model.ckpt", "model.safetensors"):  # whatever it is called
        torch.save({"state_dict": Program()}, tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name}: a pickle, .+ never opened.+weights_only=True.+save_file"):
            read_header(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk(tmp_path: Path) -> None:
    def full(key: str) -> Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"ours\.safetensors: the disk is full \([\d,]+ bytes are needed\)"):
        write_safetensors(tmp_path / "ours.safetensors", [("a", torch.float32, (1,))], full, {})
