"""The contexts of adapters beside ours, which have a row for each guidance half where a batch has many."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, cast

import torch
from refiners.fluxion import layers as fl
from torch import Tensor

ROWS = (
    ("ip_adapter", "clip_image_embedding", "the image embedding of the IP-Adapter", False),
    ("t2iadapter", "condition_features_", "the features of the T2I-Adapter", True),
    ("controlnet", "condition_", "the condition of the ControlNet", True),
    ("control_lora_", "condition", "the condition of the ControlLora", True),
)
"""What Refiners' adapters keep in contexts with a row for each image: how the names of context and key start, what it
is, and whether a single row serves any number of images as it is."""

COMPLETE = "has_a_row_for_each_image"  # two rows alone could also be those of the halves


def complete_rows(value: Tensor) -> Tensor:
    """Mark what has a row for each image of the batch already, in both halves."""
    setattr(value, COMPLETE, True)
    return value


@contextmanager
def repeat_rows(unet: fl.Chain, *, halves: int, images: int) -> Generator[None, None, None]:
    """Give contexts of other adapters as many rows as a batch has, for a pass of the U-Net.

    Args:
        unet: The U-Net.
        halves: The number of guidance halves in the batch.
        images: The number of images in each half.

    Raises:
        ValueError: If a context has neither one row, nor one for each guidance half.
    """
    before: dict[str, dict[str, Any]] = {}
    for name, context in list(unet.provider.contexts.items()):
        changes = {
            key: value if is_shared and _count(value) == 1 else _repeat(value, what, halves, images)
            for key, value, what, is_shared in _known(name, context)
        }
        if any(changes[key] is not context[key] for key in changes):
            before[name] = dict(context)
            unet.set_context(name, {**context, **changes})
    try:
        yield
    finally:
        for name, context in before.items():
            unet.set_context(name, context)


def _known(name: str, context: dict[str, Any]) -> list[tuple[str, Any, str, bool]]:
    return [
        (key, value, what, is_shared)
        for context_start, key_start, what, is_shared in ROWS
        if name.startswith(context_start)
        for key, value in context.items()
        if key.startswith(key_start) and value is not None
    ]


def _count(value: Any) -> int:
    return len(cast(Sequence[Any], value)[0] if isinstance(value, tuple | list) else value)


def _repeat(value: Any, what: str, halves: int, images: int) -> Any:
    """Repeat the rows of a tensor, or of each in a tuple. Returns the same object if there is nothing to do."""
    if isinstance(value, tuple | list):
        tensors = cast(Sequence[Any], value)
        repeated = tuple(_repeat(tensor, what, halves, images) for tensor in tensors)
        return value if all(map(is_, repeated, tensors)) else repeated  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, Tensor) or (len(value), images) == (halves, 1) or hasattr(value, COMPLETE):
        return value
    match len(value), halves:
        case 1, _:
            return value.expand(halves * images, *value.shape[1:])
        case 2, 1:  # without guidance, the second one is the image's
            return value[1:].expand(images, *value.shape[1:])
        case 2, 2:
            return torch.repeat_interleave(value, images, dim=0)
        case rows, _:
            raise ValueError(
                f"expected {what} to have 1 row, or {halves} for the guidance halves, got {rows}: it is the same for"
                " all images of a set"
            )
