"""What people write into the fields of the page."""

import asyncio
import gc
import warnings
from typing import Any

import gradio as gr
import pytest

from style_aligned.options import SETTINGS, STYLE_OPTIONS
from style_aligned.web.controls import Control, make_advanced, make_strength, read_controls


@pytest.fixture(scope="module")
def controls() -> list[Control]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # gradio leaves an event loop open
        with gr.Blocks(analytics_enabled=False):
            made = [control for control in (*make_strength(), *make_advanced()) if control.name]
        asyncio.set_event_loop(None)
        gc.collect()
    return made


def read(controls: list[Control], **given: Any) -> Any:
    values = [given.get(control.name, control.component.value) for control in controls]
    return read_controls(controls, values)


def test_there_is_a_field_for_each_option(controls: list[Control]) -> None:
    names = [control.name for control in controls]
    assert set(names) >= {*STYLE_OPTIONS, *SETTINGS, "seed", "width"} - {"chunk_size"}
    labels = [control.component.label for control in controls]
    assert len({*labels}) == len(labels)


def test_what_is_left_alone_is_not_said(controls: list[Control]) -> None:
    settings = read(controls)
    assert (settings.reference, settings.options) == ({}, {})


def test_options_that_are_no_numbers(controls: list[Control]) -> None:
    settings = read(controls, layers="up.0, middle=0.5", steps="0.2:1", halves="positive", strength=1.5, seed="3")
    settings.check()
    assert settings.options == {
        "strength": 1.5, "layers": {"up.0": 1.0, "middle": 0.5}, "steps": [0.2, 1.0], "halves": "positive",
    }  # fmt: skip
    assert settings.reference == {"seed": 3}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("steps", "early", "expected shared steps to be FROM:TO, got 'early'"),
        ("layers", "up=much", r"expected layers to be NAME\[=STRENGTH\],…, got 'up=much'"),
        ("scale", "x", "expected scale to be a number, got 'x'"),
        ("num_inference_steps", "x", "expected steps to be a whole number, got 'x'"),
    ],
)
def test_what_cannot_be_read(controls: list[Control], name: str, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        read(controls, **{name: text})
