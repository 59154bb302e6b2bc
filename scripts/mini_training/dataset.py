"""The prepared drawings, in memory-mapped form, and their captions."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Record = dict[str, Any]


@dataclass
class Drawings:
    """All pictures, and what is known of each.

    Attributes:
        images: Pictures as uint8, of shape (count, 256, 256, 3).
        records: For each picture its concept, style, foundry, factors and split.
        concepts: The names of the concepts.
        styles: The names of the styles.
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    records: list[Record]
    concepts: list[str]
    styles: list[str]

    @classmethod
    def load(cls, folder: Path) -> "Drawings":
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        if len(images) != len(index["records"]):
            raise ValueError(f"{folder}: {len(images)} pictures but {len(index['records'])} records")
        return cls(images=images, records=index["records"], concepts=index["concepts"], styles=index["styles"])

    def split(self, name: str = "train") -> list[int]:
        return [i for i, record in enumerate(self.records) if record["split"] == name]

    @property
    def digest(self) -> str:
        """The SHA-256 of all records, which say how every picture was drawn."""
        return hashlib.sha256(json.dumps(self.records, sort_keys=True).encode()).hexdigest()

    def held_out(self) -> list[int]:
        return [i for i, record in enumerate(self.records) if record["split"] != "train"]


def to_tensor(pictures: np.ndarray[Any, np.dtype[np.uint8]], device: str = "cpu") -> Tensor:
    """uint8 (batch, height, width, 3) to float (batch, 3, height, width) in [-1, 1]."""
    tensor = torch.from_numpy(np.array(pictures)).to(device)  # pyright: ignore[reportUnknownMemberType]
    return (tensor.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def to_pictures(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The inverse of `to_tensor`, rounded and clipped."""
    values = ((tensor.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return values.permute(0, 2, 3, 1).cpu().numpy()


def log(message: str, path: Path) -> None:
    """Print a line, and append it to the log file."""
    print(message, file=sys.stderr, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(message + "\n")
