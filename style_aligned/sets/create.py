"""A new set, or the one that is there, if it is of the same style."""

from collections.abc import Mapping
from typing import Any

from style_aligned.files import digest_picture
from style_aligned.options import STYLE_OPTIONS
from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.records import Drawing, SetError, SetImage
from style_aligned.sets.set_file import REFERENCE_FILE, REFERENCE_ID, SetState
from style_aligned.sets.sources import Source
from style_aligned.styles.control import fit_control
from style_aligned.styles.mask import digest_mask, prepare_mask
from style_aligned.styles.style import Style


def new_set(
    source: Source,
    settings: Mapping[str, Any],
    *,
    style: Style | None = None,
    model: str | None = None,
    extras: Mapping[str, Any] | None = None,
    prefix: str = "",
    suffix: str = "",
) -> SetState:
    """Return the state of a set without images.

    Args:
        source: Where the style comes from.
        settings: Arguments of `Style.from_prompt` that were given, by name.
        style: The style, if the source has one.
        model: The name of the model.
        extras: What goes beside StyleAligned.
        prefix: What comes before each prompt.
        suffix: What comes after each prompt.
    """
    prompt, seed = (source.text, settings.get("seed", 0)) if style is None else (style.prompt, style.seed)
    described: dict[str, Any] = {"source": {"kind": source.kind}}
    if style is None:
        described |= {name: value for name, value in settings.items() if name not in ("prompt", "seed")}
        if "size" in described:
            described["size"] = list(described["size"])  # as JSON has it
    return SetState(
        reference=SetImage(REFERENCE_ID, prompt, Drawing(seed, REFERENCE_FILE)),
        style=described,
        model=model,
        extras=dict(extras or {}),
        prefix=prefix,
        suffix=suffix,
    )


def check_same(image_set: ImageSet, source: Source, settings: Mapping[str, Any], *, style: Style | None = None) -> None:
    """Check that a set that is there is the one that people asked for.

    Args:
        image_set: The set.
        source: Where the style is to come from.
        settings: Arguments of `Style.from_prompt` that were given, by name.
        style: The style, if the source has one.

    Raises:
        SetError: If it is of another style, with the first difference.
    """
    own = _own_settings(image_set)
    wanted: dict[str, Any] = {**settings, **settings.get("options", {})}
    wanted.pop("options", None)
    wanted.pop("reference_mask", None)
    wanted.pop("control", None)
    wanted["prompt"] = source.text if style is None else style.prompt
    if style is not None:
        wanted["seed"] = style.seed
    # what was not asked for then is not known until the reference is drawn; a style has all of its settings
    is_planned = style is None and not image_set.settings_of(image_set.state.reference.drawing)
    for name, value in wanted.items():
        if own.get(name) != value and (is_planned or own.get(name) is not None):
            shown = {"num_inference_steps": "steps", "condition_scale": "guidance"}.get(name, name).replace("_", " ")
            raise SetError(
                f"{image_set.folder} holds a set with {shown} {_show(own.get(name))}, not {_show(value)}: take another"
                f" --output, or add to it by style-aligned add {image_set.folder}"
            )
    mask = settings.get("reference_mask") if style is None else style.reference_mask
    if (
        mask is not None
        and "reference_mask" in own
        and own["reference_mask"] != digest_mask(prepare_mask(mask, own["size"]))
    ):
        raise SetError(f"{image_set.folder} holds a set with another reference mask: take another --output")
    if style is None and "reference_control" in own:
        given = [digest_picture(fit_control(path, own["size"])) for path in settings.get("control", ())]
        if given and given != [one["picture"] for one in own["reference_control"]]:
            raise SetError(f"{image_set.folder} holds a set with another reference control: take another --output")
    elif style is None and settings.get("control") and settings["control"] != own.get("control"):
        raise SetError(f"{image_set.folder} holds a set without that reference control: take another --output")
    if style is not None and own.get("style") not in (None, style.digest):
        raise SetError(f"{image_set.folder} holds a set of another style: take another --output")


def _show(value: Any) -> str:
    match value:
        case None:
            return "by default"
        case int(height), int(width):
            return f"{width}x{height}"
        case _:
            return repr(value)


def _own_settings(image_set: ImageSet) -> dict[str, Any]:
    """Return what is known of a set's style, by the names of `Style.from_prompt`."""
    reference = image_set.state.reference
    own = {"prompt": reference.prompt, "seed": reference.drawing.seed}
    if not (made_with := image_set.settings_of(reference.drawing)):
        planned = image_set.state.style
        size = planned.get("size")
        if image_set.style_path.is_file():
            own["style"] = Style.load(image_set.style_path).digest
        return {**own, **planned, **planned.get("options", {}), "size": None if size is None else tuple(size)}
    width, _, height = str(made_with.get("size", "")).partition("x")
    return {
        **own,
        "negative_prompt": made_with.get("negative_prompt"),
        "num_inference_steps": made_with.get("steps"),
        "condition_scale": made_with.get("guidance"),
        "size": (int(height), int(width)) if height.isdigit() and width.isdigit() else None,
        "style": made_with.get("style"),
        "reference_mask": made_with.get("reference_mask"),
        "reference_control": made_with.get("reference_control", []),
        **{name: option.default for name, option in STYLE_OPTIONS.items()},
        **made_with.get("options", {}),
    }
