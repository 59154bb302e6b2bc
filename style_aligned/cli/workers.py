"""What draws for a command: a model of this process, or the workers of a Ray cluster."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from style_aligned.cli import library
from style_aligned.cli.console import warn
from style_aligned.cli.options import DrawOptions, ModelOptions
from style_aligned.models.model import Model
from style_aligned.sets.backend import Backend, How


def how_to_draw(draw: DrawOptions) -> How:
    """Return how images are drawn."""
    return How(
        batch_size=draw.batch_size,
        chunk_seconds=draw.chunk_seconds,
        bank_device=draw.bank_device,
        compare=draw.compare,
        force=draw.force,
    )


@contextmanager
def load(
    name: str, model: ModelOptions, draw: DrawOptions, extras: Mapping[str, Any]
) -> Generator[tuple[Model, Backend | None], None, None]:
    """Load a model, and with `--workers` or `--ray` have workers load it.

    Args:
        name: The name or path of the model.
        model: Where it computes, and in which precision.
        draw: How images are drawn.
        extras: What goes beside StyleAligned, as a set keeps it.

    Yields:
        The model, and the workers. With workers, the model is on the CPU, where it only tells what it is.

    Raises:
        ClusterError: If there is no such cluster, or no worker can load the model.
    """
    if not draw.has_workers:
        yield library.load_model(name, model, draw.bank_device, extras), None
        return
    from style_aligned.cluster.backend import ClusterBackend

    is_local = draw.ray is None
    with ClusterBackend(
        absolute(name),
        {**model.keywords, "vae": model.vae and absolute(model.vae)},
        how_to_draw(draw),
        extras=extras,
        workers=draw.workers,
        address=draw.ray,
        gpus_per_worker=draw.gpus_per_worker,
        threads=max(1, (os.cpu_count() or 1) // (draw.workers or 1)) if is_local else 1,
        warn=warn,
    ) as backend:
        own = replace(model, model=name, device="cpu", dtype=type(model.dtype)(backend.dtype))
        loaded = library.load_model(name, own, extras=extras)
        backend.check_model(loaded)
        yield loaded, backend


def absolute(name: str) -> str:
    """Return a name as workers find it, which have a folder of their own: a path becomes an absolute one."""
    return os.path.abspath(name) if os.path.exists(name) else name  # noqa: PTH100, PTH110
