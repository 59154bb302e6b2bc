"""The controls for settings and options, as `style_aligned.options` declares them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from style_aligned.options import SETTINGS, STYLE_OPTIONS, Option
from style_aligned.web.actions import Settings
from style_aligned.words import show

STRENGTH = "strength"  # the option that has the slider
MOST_STRENGTH = 2.0
OF_REFERENCE = {"num_inference_steps": "Steps", "condition_scale": "Guidance"}
AUTOMATIC = "automatic"  # as suits the model, or the option's default
CHOICES = {AUTOMATIC: None, "on": True, "off": False}


@dataclass(frozen=True)
class Control:
    """A component, and what it sets.

    Attributes:
        name: The name of the setting or option.
        component: The component.
        kind: The type of the value, or what reads it.
        is_option: Whether it sets an option of the adapter.
        form: What a value looks like that is no number.
    """

    name: str
    component: Any
    kind: Callable[[Any], Any] = str
    is_option: bool = False
    form: str | None = None

    def read(self, value: Any) -> Any:
        """Return the value of the component as one of its type. None means that it is left open.

        Raises:
            ValueError: If it is no number, or of no other form, that it has to be of.
        """
        if self.kind is bool:
            return CHOICES.get(value)
        if value is None or not str(value).strip():
            return None
        try:
            return self.kind(value)
        except ValueError:
            form = self.form or ("a whole number" if self.kind is int else "a number")
            raise ValueError(f"expected {self.component.label.lower()} to be {form}, got {show(value)}") from None


def make_strength() -> list[Control]:
    """Make the slider for the strength of the style."""
    option = STYLE_OPTIONS.get(STRENGTH)
    if option is None:
        return []
    slider = gr.Slider(
        minimum=option.minimum,
        maximum=min(option.maximum, MOST_STRENGTH),
        value=option.default,
        step=0.05,
        label="Strength of the style",
        info="0 is the model alone, 1 the method as published, 2 counts the reference twice.",
        elem_id="strength",
    )
    return [Control(STRENGTH, slider, float, is_option=True)]


def make_advanced() -> list[Control]:
    """Make the controls that are folded away: those of a new reference first."""
    with gr.Group() as group:
        of_reference = [
            Control("seed", _make_field("Seed", "Of the reference; images count on from it.", 0), int),
            Control("negative_prompt", gr.Textbox("", label="Negative prompt", info="What to guide away from."), str),
            *(_make_number(SETTINGS[name], label) for name, label in OF_REFERENCE.items()),
            Control("width", _make_field("Width", "In pixels.", None), int),
            Control("height", _make_field("Height", "In pixels.", None), int),
        ]
    options = [
        replace(_make_option(option), is_option=True) for name, option in STYLE_OPTIONS.items() if name != STRENGTH
    ]
    return [Control("", group), *of_reference, *options, _make_number(SETTINGS["batch_size"], "Images at a time")]


def read_controls(controls: Sequence[Control], values: Sequence[Any], *, strength: float = 1.0) -> Settings:
    """Return what the controls say.

    Args:
        controls: The controls.
        values: Their values, in the same order.
        strength: The strength that images have anyway, which is not said again.

    Raises:
        ValueError: If a number is none.
    """
    reference: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for control, value in zip(controls, values, strict=True):
        read = control.read(value)
        if read is None or (control.name == STRENGTH and read == strength):
            continue
        (options if control.is_option else reference)[control.name] = read
    width, height = reference.pop("width", None), reference.pop("height", None)
    if width is not None or height is not None:
        reference["size"] = (height or width, width or height)
    return Settings(reference, options, reference.pop("batch_size", SETTINGS["batch_size"].default))


def _make_option(option: Option) -> Control:
    label = option.cli_name[2:].replace("-", " ").capitalize().replace("Adain", "AdaIN")
    if option.kind is not bool:
        return _make_number(option, label)
    choice = gr.Dropdown(list(CHOICES), value=AUTOMATIC, label=label, info=option.help, filterable=False)
    return Control(option.name, choice, bool)


def _make_number(option: Option, label: str) -> Control:
    field = _make_field(label, option.help, None if option.default is None else option.default_text)
    return Control(option.name, field, option.parse or option.kind, form=option.metavar)


def _make_field(label: str, info: str, default: int | str | None) -> Any:
    """Make a field for a number: empty for its default, which Gradio's own fields for numbers cannot be."""
    return gr.Textbox(
        "", label=label, info=info, placeholder=AUTOMATIC if default is None else str(default), max_length=200
    )
