"""What goes into an image of a set beside its prompt and its seed: a picture that it starts from, or those it follows.

A record has the paths of pictures. The image's own settings have their digests instead.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from style_aligned.files import digest_picture
from style_aligned.options import INIT_STRENGTH, check_init_strength
from style_aligned.sets.records import SetError

PICTURES = ("init", "init_mask", "control")
FIELDS = ("init", "init_strength", "init_mask", "control")


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
        if name != "control" and "init" not in given:
            raise ValueError(f"expected an init beside {name}, got none")
        if name == "init_strength":
            check_init_strength(value)
        elif name == "control":  # one for each control model
            given[name] = [_find_picture(name, path, folder) for path in _paths(value)]
        else:
            given[name] = _find_picture(name, value, folder)
    return given


def _paths(value: Any) -> list[Any]:
    return cast(list[Any], value) if isinstance(value, list) else [value]


def _find_picture(name: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not (folder / value).expanduser().is_file():
        raise ValueError(f"expected {name} to be a picture, got {value!r}, which is not there")
    return str((folder / value).expanduser().resolve())


def generate_arguments(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arguments of `generate` for the inputs of some images, as their records have them.

    Raises:
        SetError: If a picture is gone.
    """
    if not any(inputs):
        return {}
    for path in (path for own in inputs for name in PICTURES if name in own for path in _paths(own[name])):
        if not Path(path).is_file():
            raise SetError(f"expected the picture {path}, which an image is made from, but it is gone")
    given = {name: [own.get(name) for own in inputs] for name in PICTURES if any(name in own for own in inputs)}
    return {**given, "init_strength": [own.get("init_strength", INIT_STRENGTH) for own in inputs]}


def describe_inputs(inputs: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return what the settings of an image say of its inputs.

    Args:
        inputs: The inputs, as its record has them.
        size: The height and width of the image, in pixels.
    """
    described: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was said before
        if "init" in inputs:
            from style_aligned.sampling.init import Init  # it takes seconds to import

            strength = inputs.get("init_strength", INIT_STRENGTH)
            described["init"] = Init.read(inputs["init"], size, strength, inputs.get("init_mask")).describe()
        if "control" in inputs:
            from style_aligned.styles.control import fit_control

            described["control"] = [{"picture": digest_picture(fit_control(path, size))} for path in inputs["control"]]
    return described


def check_reference_control(extras: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Check that a reference has a picture for each control model, if it has any.

    Args:
        extras: What goes beside StyleAligned.
        settings: Arguments of `Style.from_prompt`.

    Raises:
        SetError: If it has more or fewer.
    """
    models, pictures = len(extras.get("control", ())), len(settings.get("control", ()))
    if pictures and pictures != models:
        raise SetError(f"expected a --reference-control for each of {models} --control, got {pictures}")


def check_control(extras: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that each image has a picture for each control model of the set.

    Args:
        extras: What goes beside StyleAligned in the set.
        inputs: What goes into each image, by its prompt.

    Raises:
        SetError: If one has more or fewer.
    """
    models = len(extras.get("control", ()))
    for prompt, own in inputs.items():
        pictures = len(own.get("control", ()))
        if models and not pictures:
            raise SetError(f"expected a control picture for {prompt!r}: give --control-image, or control in --prompts")
        if pictures and not models:
            raise SetError(f"expected --control beside the control picture of {prompt!r}")
        if pictures != models:
            many = "1 control picture" if models == 1 else f"{models} control pictures"
            raise SetError(f"expected {many} for {prompt!r}, one for each --control, got {pictures}")
