"""A set that is drawn with and without a cluster. Run as a program, it draws the set in a folder by two workers."""

import sys
from collections.abc import Callable
from pathlib import Path

from style_aligned import load_model
from style_aligned.cluster.backend import ClusterBackend
from style_aligned.models.model import Model
from style_aligned.sets.backend import Backend, How
from style_aligned.sets.create import new_set
from style_aligned.sets.image_set import open_set
from style_aligned.sets.plan import plan_images
from style_aligned.sets.prompts import Prompt
from style_aligned.sets.sources import Source
from style_aligned.sets.work import Artist, Report

SETTINGS = {"size": [64, 64], "num_inference_steps": 2, "seed": 3}
NAMES = ("rocket", "cat", "guitar", "dog", "owl", "crown", "anchor", "key", "fish")
PROMPTS = [f"a {name}, neon sign" for name in NAMES]


def draw_set(
    folder: Path,
    model: Model,
    how: How,
    *,
    backend: Backend | None = None,
    on_image: Callable[[int], None] = lambda written: None,
) -> None:
    """Draw the set, or what is missing of it."""
    written = 0

    def image(file: str) -> None:
        nonlocal written
        written += 1
        on_image(written)

    with open_set(folder, new=new_set(Source("prompt", "a fox, neon sign"), SETTINGS)) as image_set:
        image_set.commit(plan_images(image_set, [Prompt(text) for text in PROMPTS]).new)
        Artist(image_set, model, how, Report(image=image), backend=backend).draw_missing()


def main() -> None:
    how = How(batch_size=2, chunk_seconds=0.0)
    with ClusterBackend("mini", {"device": "cpu"}, how, workers=2) as backend:
        draw_set(
            Path(sys.argv[1]),
            load_model(device="cpu"),
            how,
            backend=backend,
            on_image=lambda written: print(written, flush=True),  # noqa: T201
        )


if __name__ == "__main__":
    main()
