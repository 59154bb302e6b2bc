"""Safetensors files, one tensor at a time: read through a memory map or a single buffer, written as a stream.

The format: eight bytes with the header's length, a JSON header with each tensor's type, shape and place, the tensors.
See [Safetensors](https://huggingface.co/docs/safetensors/index#format).
"""

import errno
import json
import math
import mmap
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, dtype as DType

from style_aligned.files import sync
from style_aligned.models.checkpoints.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
POINTER_START, PAGE_STARTS = b"version https://git-lfs", (b"<!doctype", b"<html", b"<?xml")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

Entry = tuple[str, DType, tuple[int, ...]]  # the key, type and shape of a tensor to write


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies on disk.

    Attributes:
        path: The file.
        key: The name of the tensor in the file.
        dtype: The type of its numbers in the file.
        shape: Its shape.
        offset: Its first byte, counted from the start of the file.
        scale: What it is to be multiplied by, for all numbers or for each row.
    """

    path: Path
    key: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    scale: "StoredTensor | None" = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read this tensor alone, into memory of its own."""
        buffer = bytearray(self.nbytes)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(buffer) != len(buffer):
                raise CheckpointError(f"{self.path}: the file ends within the tensor {self.key!r}")
        flat = torch.frombuffer(buffer, dtype=self.dtype) if buffer else torch.empty(0, dtype=self.dtype)
        return flat.reshape(self.shape)


class MemoryMaps:
    """Tensors that share the pages of their files, which are read from disk when they are first used.

    The maps are private: what is written to a tensor stays in memory and never reaches the file.
    """

    def __init__(self) -> None:
        self.maps: dict[Path, mmap.mmap] = {}

    def tensor(self, stored: StoredTensor) -> Tensor:
        # an old file whose header is not padded: processors want their numbers aligned
        if stored.offset % stored.dtype.itemsize or stored.nbytes == 0:
            return stored.read()
        if stored.path not in self.maps:
            with stored.path.open("rb") as file:
                self.maps[stored.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        buffer = self.maps[stored.path]
        count = math.prod(stored.shape)
        flat = torch.frombuffer(buffer, dtype=stored.dtype, count=count, offset=stored.offset)
        return flat.reshape(stored.shape)


def refuse_pickle(path: Path) -> None:
    """Refuse what only Python's pickle could open, by its name or its first bytes.

    Raises:
        CheckpointError: For a pickle, with the way to convert it.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix in PICKLE_SUFFIXES or start.startswith(PICKLE_STARTS):
        raise CheckpointError(
            f"{path}: a pickle, which can run any program when it is opened, so it is never opened here. Get the same "
            "weights as .safetensors, or convert the file once, with the loader that refuses programs: "
            "weights = torch.load(path, weights_only=True); "
            'safetensors.torch.save_file(weights.get("state_dict", weights), "model.safetensors")'
        )


def read_header(path: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Read the header of a safetensors file and check that the file is whole; no tensor is read.

    Args:
        path: The file.

    Returns:
        The tensors that it holds, and its metadata.

    Raises:
        CheckpointError: For a pickle, a pointer of git-lfs, a truncated file, or no safetensors file at all.
    """
    refuse_pickle(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(POINTER_START))
        if start == POINTER_START:
            raise CheckpointError(f"{path}: a pointer of git-lfs, not the file itself; run: git lfs pull")
        if start.lower().startswith(PAGE_STARTS):
            raise CheckpointError(f"{path}: a web page, not the file itself; download it again, logged in if need be")
        file.seek(0)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: not a safetensors file (it does not start with a header)")
        if 8 + length > size:
            raise CheckpointError(f"{path}: truncated within its header ({size} of at least {8 + length} bytes)")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        metadata = cast(dict[str, str], header.pop("__metadata__", None) or {})
        tensors = [_stored_tensor(path, key, value, start=8 + length) for key, value in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a safetensors file (its header cannot be read: {error!r})") from error
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            raise CheckpointError(
                f"{path}: a damaged header ({tensor.key!r} starts at byte {tensor.offset}, not {end})"
            )
        end += tensor.nbytes
        if end > size:
            raise CheckpointError(f"{path}: truncated ({size} bytes; {tensor.key!r} ends at byte {end})")
    if end != size:
        raise CheckpointError(f"{path}: a damaged header (the last tensor ends at byte {end} of {size})")
    return tensors, metadata


def _stored_tensor(path: Path, key: str, value: dict[str, Any], start: int) -> StoredTensor:
    begin, end = (int(offset) for offset in value["data_offsets"])
    shape = tuple(int(size) for size in value["shape"])
    if value["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: {key!r} holds numbers of the type {value['dtype']}, which is not supported")
    tensor = StoredTensor(path=path, key=key, dtype=DTYPES[value["dtype"]], shape=shape, offset=start + begin)
    if any(size < 0 for size in shape) or end - begin != tensor.nbytes:
        raise CheckpointError(f"{path}: a damaged header ({key!r} of shape {shape} takes {end - begin} bytes)")
    return tensor


def write_safetensors(
    path: Path, entries: Iterable[Entry], tensor: Callable[[str], Tensor], metadata: dict[str, str]
) -> None:
    """Write a safetensors file, holding one tensor at a time.

    Args:
        path: The file to write.
        entries: The key, type and shape of each tensor.
        tensor: Called with a key, gives the tensor to write.
        metadata: The metadata of the file.

    Raises:
        CheckpointError: If the disk is full.
    """
    entries = sorted(entries, key=lambda entry: (-entry[1].itemsize, entry[0]))  # the large types first: all aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for key, dtype, shape in entries:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key, dtype, shape in entries:
                values = tensor(key)
                assert (values.dtype, tuple(values.shape)) == (dtype, shape), key
                _write(file, values)
            sync(file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(f"{path}: the disk is full ({8 + len(text) + end:,} bytes are needed)") from error
        raise


def _write(file: IO[bytes], values: Tensor) -> None:
    if values.numel():
        file.write(cast(bytes, values.contiguous().flatten().view(torch.uint8).numpy()))
