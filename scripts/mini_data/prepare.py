"""Write the data set: `python -m scripts.mini_data.prepare --output DIR`.

DIR then holds `images.npy` (count, size, size, 3), 8-bit RGB, and `index.json`: the concepts, the styles, and a record
for every image, in the same order. The same seed and size give the same bytes, with any number of jobs.
"""

import argparse
import json
import multiprocessing
import os
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .concepts import CONCEPTS, Concept
from .painting import Layer, Placement, as_bytes, place
from .sources import Artwork, fetch_all
from .styles import PIXELS, STYLES, VECTOR, Factors, Style

VARIANTS = 18
"""Pictures of each concept in each style."""
HELD_OUT_CELLS = 0.04
HELD_OUT_FOUNDRIES = 20

Record = dict[str, Any]
Pixels = NDArray[np.uint8]


class HeldOut:
    """Which pictures are kept from training.

    Args:
        seed: Chooses them.

    Attributes:
        cells: (concept, style) pairs of which no picture is trained on; as many of each style, no concept twice.
        foundries: For some further concepts, the foundry none of whose drawings of it is trained on.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, zlib.crc32(b"held out")])
        names = [CONCEPTS[int(i)].name for i in rng.permutation(len(CONCEPTS))]
        count = round(HELD_OUT_CELLS * len(CONCEPTS) * len(STYLES))
        # evenly over the styles: the concepts, shuffled, take the styles in turn
        self.cells = {(names[i], STYLES[i % len(STYLES)].name) for i in range(count)}
        further = names[count : count + HELD_OUT_FOUNDRIES]
        self.foundries = {name: VECTOR[i % len(VECTOR)] for i, name in enumerate(further)}

    def split(self, *, concept: str, style: str, foundry: str) -> str:
        """The split of a picture: "train", "held_out_cell" or "held_out_foundry"."""
        if (concept, style) in self.cells:
            return "held_out_cell"
        return "held_out_foundry" if self.foundries.get(concept) == foundry else "train"


def draw_placement(style: Style, rng: np.random.Generator) -> Placement:
    """Where a drawing goes: 0.68 to 0.86 of the frame, a little aside, a little tilted."""
    scale = float(rng.uniform(0.68, 0.86))
    angle = float(rng.uniform(-style.tilt, style.tilt)) if rng.random() < 0.6 else 0.0
    shift = (float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.05, 0.05)))
    if style.tilt == 0:  # pixel art: as large as can be, for each of its few blocks counts
        scale, angle, shift = float(rng.uniform(0.8, 0.89)), 0.0, (0.0, 0.0)
    return Placement(scale=scale, angle=angle, shift=shift)


def finish(picture: NDArray[np.float32], size: int) -> Pixels:
    """Reduce a picture painted at twice the size to 8 bits and its final size."""
    pixels = as_bytes(picture)
    if pixels.shape[0] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), resample=Image.Resampling.BOX))


def paint(*, drawing: Image.Image, style: Style, size: int, rng: np.random.Generator) -> tuple[Pixels, Factors]:
    """Paint one drawing in one style, all that is left to chance coming from `rng`.

    Args:
        drawing: RGBA, of one of the style's foundries.
        style: How to paint.
        size: Side of the result in pixels; a multiple of 16, so that pixel art is of even blocks.
        rng: Draws placement and hidden factors.

    Returns:
        The picture (size, size, 3) and its hidden factors.
    """
    layer: Layer = place(drawing=drawing, placement=draw_placement(style, rng), side=2 * size)
    factors = style.draw(layer, rng)
    return finish(style.paint(layer, factors), size), factors


def paint_concept(concept: Concept, *, artwork: Artwork, size: int, seed: int) -> tuple[Pixels, list[Record]]:
    """All pictures of one concept: `VARIANTS` in each style.

    Returns:
        The pictures (styles times variants, size, size, 3) and their records, without the split.
    """
    drawings: dict[tuple[str, int], Image.Image] = {}
    pictures = np.empty((len(STYLES) * VARIANTS, size, size, 3), dtype=np.uint8)
    records: list[Record] = []
    for style in STYLES:
        for variant in range(VARIANTS):
            rng = np.random.default_rng([seed, zlib.crc32(f"{concept.name}/{style.name}/{variant}".encode())])
            foundry = style.foundries[int(rng.integers(len(style.foundries)))]
            weight = style.weights[int(rng.integers(len(style.weights)))] if style.weights else 400
            if (foundry, weight) not in drawings:
                drawings[foundry, weight] = artwork.drawing(code=concept.code, foundry=foundry, weight=weight)
            picture, factors = paint(drawing=drawings[foundry, weight], style=style, size=size, rng=rng)
            if style.weights:
                factors = {**factors, "weight": str(weight)}
            pictures[len(records)] = picture
            records.append({"concept": concept.name, "style": style.name, "foundry": foundry, "factors": factors})
    return pictures, records


_artwork: dict[Path, Artwork] = {}


def _work(number: int, *, sources: Path, images: Path, size: int, seed: int) -> tuple[int, list[Record]]:
    """Paint one concept straight into the images' file; artwork is read once in each process."""
    if sources not in _artwork:
        _artwork[sources] = Artwork(sources)
    pictures, records = paint_concept(CONCEPTS[number], artwork=_artwork[sources], size=size, seed=seed)
    array = np.lib.format.open_memmap(images, mode="r+")
    array[number * len(records) : (number + 1) * len(records)] = pictures
    array.flush()
    return number, records


def prepare(*, output: Path, sources: Path, size: int = 256, seed: int = 0, jobs: int = 2) -> None:
    """Fetch the artwork if need be, paint every picture, write images and index.

    Args:
        output: Folder to write to.
        sources: Folder in which the packages are kept.
        size: Side of the images in pixels, a multiple of 16.
        seed: Decides everything that is left to chance.
        jobs: Number of processes.

    Raises:
        ValueError: If the size is not a positive multiple of 16, or there are no jobs.
        SourceError: If the artwork cannot be had.
    """
    if size <= 0 or size % PIXELS:
        raise ValueError(f"size is {size}, expected a positive multiple of {PIXELS}")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    fetch_all(sources)
    output.mkdir(parents=True, exist_ok=True)
    part = output / "images.npy.part"
    shape = (len(CONCEPTS) * len(STYLES) * VARIANTS, size, size, 3)
    np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape).flush()
    work = partial(_work, sources=sources, images=part, size=size, seed=seed)
    drawn: dict[int, list[Record]] = {}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, records in pool.imap_unordered(work, range(len(CONCEPTS))):
            drawn[number] = records
            print(f"{len(drawn)}/{len(CONCEPTS)} {CONCEPTS[number].name}", flush=True)
    held_out = HeldOut(seed)
    index = {
        "concepts": [concept.name for concept in CONCEPTS],
        "styles": [style.name for style in STYLES],
        "records": [
            {**record, "split": held_out.split(**{key: record[key] for key in ("concept", "style", "foundry")})}
            for number in range(len(CONCEPTS))
            for record in drawn[number]
        ],
    }
    listing = output / "index.json.part"
    listing.write_text(json.dumps(index, indent=1), encoding="utf-8")
    part.replace(output / "images.npy")
    listing.replace(output / "index.json")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.mini_data.prepare", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sources", type=Path, help="folder that keeps the packages (default: OUTPUT/sources)")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    given = parser.parse_args()
    sources = given.sources or given.output / "sources"
    prepare(output=given.output, sources=sources, size=given.size, seed=given.seed, jobs=given.jobs)


if __name__ == "__main__":
    main()
