"""Measure what a Ray cluster costs and gains.

    python -m scripts.benchmark_cluster                   a set by one process, and by the workers of this machine
    python -m scripts.benchmark_cluster --nodes 16        a simulated cluster: drawing is replaced by a sleep

The first draws with the embedded model, in rounds that alternate, and prints medians. Workers have started when the
clock does. The second starts a node of Ray for each machine, all on this one, with a worker on each. It measures how
work is handed out, and how images come back into the folder of a set. Ideal is that all workers sleep all the time.
"""

import argparse
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from style_aligned.cluster.backend import ClusterBackend
from style_aligned.cluster.connect import ENVIRONMENT
from style_aligned.cluster.worker import Task, Worker, pack
from style_aligned.files import encode_png
from style_aligned.models.checkpoints import load_model
from style_aligned.models.model import Model
from style_aligned.sets.backend import Backend, How
from style_aligned.sets.create import new_set
from style_aligned.sets.image_set import open_set
from style_aligned.sets.plan import plan_images
from style_aligned.sets.prompts import Prompt
from style_aligned.sets.sources import Source
from style_aligned.sets.work import Artist, Report
from style_aligned.styles.style import Style


class Sleeper(Worker):
    """A worker that sleeps for as long as drawing would take, and gives back plain images."""

    def start(self) -> dict[str, Any]:
        """Say what the worker is. No model is loaded: the process stays small."""
        return {"model": {"precision": "float32"}, "device": "none", "host": "", "process": 0}

    def make_style(self, settings: Any) -> bytes:
        """Return the style that the workers were given."""
        return self._options["style"]

    def image_of(self, style: bytes) -> Image.Image:
        """Return a plain image."""
        return Image.new("RGB", (64, 64), "teal")

    def draw(self, task: Task) -> tuple[list[bytes], float]:
        """Sleep, a while for each image and for the reference."""
        start = time.monotonic()
        time.sleep(self._options["seconds"] * (len(task.images) + 1))
        return [encode_png(Image.new("RGB", (64, 64), "teal"))] * len(task.images), time.monotonic() - start


def draw_set(model: Model, style: Style, count: int, how: How, backend: Backend | None) -> tuple[float, float]:
    """Draw a set into a folder of its own. Returns the seconds that it takes, and those until the first image."""
    begun, first = 0.0, 0.0

    def start(images: int, steps: int) -> None:
        nonlocal begun
        begun = time.monotonic()

    def image(file: str) -> None:
        nonlocal first
        if not first and file != "reference.png":
            first = time.monotonic()

    with TemporaryDirectory() as folder:
        state = new_set(Source("prompt", style.prompt), {}, style=style)
        with open_set(Path(folder) / "set", new=state) as image_set:
            style.save(image_set.style_path)
            prompts = [Prompt(f"a fox {number}, neon sign") for number in range(count)]
            image_set.commit(plan_images(image_set, prompts).new)
            Artist(image_set, model, how, Report(start=start, image=image), backend=backend).draw_missing()
            return time.monotonic() - begun, first - begun


def compare(options: argparse.Namespace) -> None:
    """Compare one process with workers on this machine, of one thread each."""
    torch.set_num_threads(options.threads)
    model = load_model("mini", device="cpu")
    style = Style.from_prompt(model, "a fox, neon sign", num_inference_steps=options.steps).complete(model)
    how = How(chunk_seconds=options.chunk_seconds)
    alone: list[float] = []
    together: list[float] = []
    start = time.monotonic()
    with ClusterBackend("mini", {"device": "cpu"}, how, workers=options.workers) as backend:
        backend.wait()
        print(f"start of the cluster and of {options.workers} workers: {time.monotonic() - start:.1f} s")
        for _ in range(options.rounds):
            alone.append(draw_set(model, style, options.images, how, None)[0])
            together.append(draw_set(model, style, options.images, how, backend)[0])
    for name, seconds in (("one process", alone), (f"{options.workers} workers", together)):
        median = statistics.median(seconds)
        print(
            f"{name}: {median:.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), {options.images / median:.2f} images/s"
        )
    ratio = statistics.median(a / b for a, b in zip(alone, together, strict=True))
    print(f"throughput of the workers against one process: {ratio:.2f}")


@contextmanager
def simulated(nodes: int) -> Generator[str, None, None]:
    """Start a cluster of nodes with one CPU each, on this machine."""
    import os

    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingTypeStubs]

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def simulate(options: argparse.Namespace) -> None:
    """Compare a simulated cluster with what would be ideal."""
    model = load_model("mini", device="cpu")
    style = Style.from_prompt(model, "a fox, neon sign", num_inference_steps=1, size=(64, 64)).complete(model)
    how = How(chunk_seconds=options.chunk_seconds)
    arguments = {"style": pack(style), "seconds": options.seconds}
    with (
        simulated(options.nodes) as address,
        ClusterBackend(
            "a sleep", arguments, how, workers=options.nodes, address=address, warn=print, worker=Sleeper
        ) as backend,
    ):
        backend.wait(options.nodes)
        seconds, first = draw_set(model, style, options.images, how, backend)
    # each chunk records the reference, which is sleep too: ideal is that nothing but the images is slept for
    slept = backend.seconds / options.nodes
    what = f"{options.images} images of {options.seconds:g} s on {options.nodes} nodes"
    print(f"{what}: {seconds:.1f} s, the first after {first:.1f} s")
    print(f"ideal, if all sleep all the time: {slept:.1f} s; longer by {seconds / slept - 1:.1%}")
    print(f"ideal without the reference: {options.images * options.seconds / options.nodes:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark_cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, help="simulate so many machines")
    parser.add_argument("--images", type=int, default=None, help="(default: 32; simulated: 40 for each node)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of an image, simulated")
    parser.add_argument("--chunk-seconds", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of the one process")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.images = options.images or (40 * options.nodes if options.nodes else 32)
    if options.nodes:
        simulate(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
