"""What goes into an image of a set beside its prompt and its seed: a picture that it starts from.

A record has the path of the picture, how much of the way from it is done, and the path of a mask. The image's own
settings have the digests of both instead.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from style_aligned.options import INIT_STRENGTH, check_init_strength
from style_aligned.sets.records import SetError

PICTURES = ("init", "init_mask")
FIELDS = ("init", "init_strength", "init_mask")


def check_inputs(inputs: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """Return inputs as a record has them: with paths that are the same from any folder.

    Args:
        inputs: The inputs, by `FIELDS`. None means that there is no such one.
        folder: Where paths start from.

    Raises:
        ValueError: If a picture is not there, or the strength is out of its range or has no picture.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    for name, value in given.items():
        if "init" not in given:
            raise ValueError(f"expected an init beside {name}, got none")
        if name == "init_strength":
            check_init_strength(value)
        elif not isinstance(value, str) or not (folder / value).expanduser().is_file():
            raise ValueError(f"expected {name} to be a picture, got {value!r}, which is not there")
        else:
            given[name] = str((folder / value).expanduser().resolve())
    return given


def generate_arguments(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arguments of `generate` for the inputs of some images, as their records have them.

    Raises:
        SetError: If a picture is gone.
    """
    if not any(inputs):
        return {}
    for path in (own[name] for own in inputs for name in PICTURES if name in own):
        if not Path(path).is_file():
            raise SetError(f"expected the picture {path}, from which an image starts, but it is gone")
    given = {name: [own.get(name) for own in inputs] for name in PICTURES}
    return {**given, "init_strength": [own.get("init_strength", INIT_STRENGTH) for own in inputs]}


def describe_inputs(inputs: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return what the settings of an image say of its inputs.

    Args:
        inputs: The inputs, as its record has them.
        size: The height and width of the image, in pixels.
    """
    if "init" not in inputs:
        return {}
    from style_aligned.sampling.init import Init  # it takes seconds to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was said before
        init = Init.read(inputs["init"], size, inputs.get("init_strength", INIT_STRENGTH), inputs.get("init_mask"))
    return {"init": init.describe()}
