"""What goes beside StyleAligned in a set: LoRAs, textual inversion, an image prompt, control models, another solver."""

import warnings
from collections.abc import Mapping
from typing import Any

from style_aligned.models.extras import Extras
from style_aligned.models.model import Model
from style_aligned.models.presets import use_preset, use_solver
from style_aligned.notes import Note
from style_aligned.styles.picture import open_picture


def add_extras(model: Model, settings: Mapping[str, Any]) -> None:
    """Put into a model what a set says goes beside StyleAligned. It stays there.

    Args:
        model: The model.
        settings: `loras` with the path and scale of each; `embeddings` with the path and word of each; `ip_adapter`,
            `image_encoder` and `image_prompt` with their paths, and `image_prompt_scale`; `control` with the path and
            scale of each control model; the name of a `preset` or a `solver`. Each may be missing.

    Raises:
        CheckpointError: If a file does not fit the model.
        ValueError: If the picture cannot be read, or the model does not take what is asked for.
    """
    given = {name: value for name, value in settings.items() if name not in ("preset", "solver")}
    for name in ("loras", "embeddings", "control"):
        given[name] = [(path, value) for path, value in settings.get(name, ())]
    if "image_prompt" in given:
        given["image_prompt"], notes = open_picture(given["image_prompt"])
        for note in notes:
            warnings.warn(note, Note, stacklevel=2)
    if "preset" in settings:
        use_preset(model, settings["preset"])
    if "solver" in settings:
        use_solver(model, settings["solver"])
    if any(given.values()):
        Extras(model, **given).inject()
