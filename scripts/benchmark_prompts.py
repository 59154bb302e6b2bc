"""Measure memory and time of a set of very many prompts, with the drawing left out.

    python -m scripts.benchmark_prompts --prompts 20000 200000

Each number of prompts gets a process of its own, which runs `generate` as the command line does, with prompts from
standard input. Where a model would draw, a plain picture is at hand.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from style_aligned.cli import main as command_line, workers
from style_aligned.files import encode_png
from style_aligned.models.mini import load_mini
from style_aligned.models.model import Model
from style_aligned.sets.backend import MAX_CHUNK, Backend, How
from style_aligned.sets.records import SetImage
from style_aligned.styles.style import Style

PICTURE = encode_png(Image.new("RGB", (8, 8), "teal"))


class NoDrawing(Backend):
    """Has a plain picture at hand for each image."""

    def draw(
        self, style: Style, images: Sequence[SetImage], **_: Any
    ) -> Iterator[tuple[Sequence[SetImage], Iterator[Image.Image | bytes]]]:
        """Yield chunks of plain pictures."""
        style.complete(self.model)
        for start in range(0, len(images), MAX_CHUNK):
            chunk = images[start : start + MAX_CHUNK]
            yield chunk, iter([PICTURE] * len(chunk))


@contextmanager
def load(*_: Any) -> Generator[tuple[Model, Backend], None, None]:
    """Yield the embedded model, and what stands in for drawing."""
    model = load_mini()
    yield model, NoDrawing(model, How())


def run() -> None:
    """Draw the prompts of standard input, and print the seconds and the peak of the memory in MiB."""
    workers.load = load
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        output = Path(folder) / "set"
        code = command_line(["generate", "a fox, ink", "--prompts", "-", "--steps", "1", "--output", str(output)])
    if code != 0:
        raise SystemExit(code)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.perf_counter() - start:.1f} {peak:.0f}", file=sys.stderr)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark_prompts", description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run()
        return
    print("| prompts | seconds | peak of the memory (MiB) |\n|---|---|---|", flush=True)
    for count in options.prompts:
        prompts = "".join(f"a small drawing of object number {number}, ink\n" for number in range(count))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "scripts.benchmark_prompts", "--run"],
            input=prompts, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        seconds, peak = done.stderr.splitlines()[-1].split()
        print(f"| {count:,} | {seconds} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
