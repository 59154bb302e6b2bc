"""What an adapter asks of its options and of its input."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from style_aligned.adapter.layers import group_size


def check_rows(x: Float[Tensor, "rows channels height width"], set_size: int | None) -> None:
    """Check that the rows of a U-Net's input are laid out in sets.

    Args:
        x: The latents.
        set_size: The number of images in a set, the reference included. None means that the batch holds the two
            guidance halves of a single set.

    Raises:
        ValueError: If the rows cannot be split into sets, if `set_size` is None and the two halves of the batch differ
            (it is no classifier-free guidance batch of one set), or if it is one and `set_size` takes both halves for a
            set.
    """
    group_size(x.shape[0], set_size)
    if set_size is None and not torch.equal(*x.chunk(2)):
        raise ValueError(
            f"got a batch of {x.shape[0]} rows whose halves differ, expected the same latents twice, as in"
            " classifier-free guidance with one set: without guidance, or for several sets in one batch, give the"
            " adapter a set_size"
        )
    if set_size == len(x) and len(x) % 2 == 0 and torch.equal(*x.chunk(2)) and not (x == x[:1]).all():
        raise ValueError(
            f"got a batch of {len(x)} rows whose halves are equal, as in classifier-free guidance, and a set_size"
            f" of {set_size}: expected {len(x) // 2}, or targets would follow the other half's reference"
        )


def is_finite(value: int | float) -> bool:
    """Tell whether a number is one that a float can hold, which Python's integers may not be."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_number(name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Check an option that is a number.

    Args:
        name: Its name.
        value: Its value.
        minimum: The least that it may be.
        maximum: The most that it may be.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite or out of its range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number, got {value!r}")
    if not is_finite(value) or not minimum <= value <= maximum:
        bounds = f" between {minimum:g} and {maximum:g}" if math.isfinite(maximum) else f" of at least {minimum:g}"
        bounds = bounds if math.isfinite(minimum) else ""
        raise ValueError(f"expected {name} to be a finite number{bounds}, got {value}")


def check_changes(changes: Mapping[str, Any]) -> None:
    """Check those options of an adapter that can be changed while it is injected.

    Args:
        changes: Some of `scale`, `shift` and `set_size`.

    Raises:
        TypeError: If one is not of its type.
        ValueError: If one is out of its range.
    """
    if "scale" in changes:
        check_number("scale", changes["scale"], minimum=0.0)
    if "shift" in changes:
        check_number("shift", changes["shift"])
    set_size = changes.get("set_size")
    if set_size is not None:
        if not isinstance(set_size, int) or isinstance(set_size, bool):
            raise TypeError(f"expected set_size to be an integer or None, got {set_size!r}")
        if set_size < 1:
            raise ValueError(f"expected set_size to be at least 1, got {set_size}")


def check_full_attention_share(**others: bool) -> None:
    """Check that full sharing is the only way of sharing.

    Args:
        others: Whether each of the others, by its name, is used.

    Raises:
        ValueError: If one is.
    """
    if names := [name for name, is_used in others.items() if is_used]:
        raise ValueError(
            f"expected full_attention_share without any other way of sharing, got it with {', '.join(names)}"
            " (all rows of a group attend to each other: nothing is normalized, scaled or shifted)"
        )
