"""Settings in JSON beside the weights, checked before anything is made of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from style_aligned.models.checkpoints.errors import CheckpointError

MAX_SCALE = 1000.0


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of settings. One that is not there has none.

    Raises:
        CheckpointError: If it is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from error
    return parse_object(text, where=path)


def parse_object(text: str, where: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        CheckpointError: If it is none.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object")
    return cast(dict[str, Any], value)


def read_autoencoder_config(path: Path) -> float | None:
    """Read diffusers' `config.json` of an autoencoder.

    Returns:
        The factor from its latents to the U-Net's, if the file is there and says it.

    Raises:
        CheckpointError: For an autoencoder that Refiners does not have.
    """
    config = read_json(path)
    for key in ("latents_mean", "latents_std", "shift_factor"):
        if config.get(key):
            raise CheckpointError(f"{path}: an autoencoder with {key}, which Refiners' has not")
    return check_encoder_scale(config.get("scaling_factor"), path)


def check_encoder_scale(value: object, where: Path) -> float | None:
    """Check the factor from the autoencoder's latents to the U-Net's.

    Raises:
        CheckpointError: If it is no positive number.
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < MAX_SCALE:
        raise CheckpointError(f"{where}: expected a positive number as the scale of latents, got {value!r}")
    return float(value)


def read_force_zeros(settings: Mapping[str, Any], where: Path) -> bool | None:
    """Read whether an empty negative prompt means zeros, if the settings say it.

    Raises:
        CheckpointError: If it is neither true nor false.
    """
    value = settings.get("force_zeros_for_empty_prompt")
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: expected force_zeros_for_empty_prompt to be true or false, got {value!r}")
    return value
