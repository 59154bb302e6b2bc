"""What images tell of a set that has lost its `set.json`."""

from pathlib import Path

import pytest
from PIL import Image

from style_aligned.files import describe_image, write_png
from style_aligned.sets.earlier import adopt


@pytest.mark.parametrize(
    ("prompts", "affixes"),
    [
        ({"001-a-key": "a key, sticker", "002-a-crown": "a crown, sticker"}, ("", ", sticker")),
        (
            {"001-a-key": "pixel art of a key, 8 bit", "002-an-owl": "pixel art of an owl, 8 bit"},
            ("pixel art of ", ", 8 bit"),
        ),
        ({"001-a-key": "a key, red", "002-an-owl-blue": "an owl, blue", "003-a-cow-red": "a cow, red"}, ("", "")),
        ({"key": "a key, sticker", "002-a-crown": "a crown"}, ("", "")),
        ({"001-a-key": "\u5b57 a key", "002-odd": "nothing like it"}, ("", "")),
        ({}, ("", "")),
    ],
)
def test_prefix_and_suffix(prompts: dict[str, str], affixes: tuple[str, str], tmp_path: Path) -> None:
    for name, prompt in {"reference": "a sword, sticker", **prompts}.items():
        write_png(tmp_path / f"{name}.png", Image.new("RGB", (8, 8)), describe_image(prompt, 5, {"steps": 2}))
    state = adopt(tmp_path)
    assert (state.prefix, state.suffix) == affixes
    assert {image.name: image.prompt for image in state.current} == prompts
