"""Sets in folders, drawn by a model with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from style_aligned.models.mini import Mini
from style_aligned.sets.create import new_set
from style_aligned.sets.image_set import ImageSet, open_set
from style_aligned.sets.plan import plan_images
from style_aligned.sets.prompts import collect_prompts
from style_aligned.sets.set_file import SetState
from style_aligned.sets.sources import Source
from style_aligned.sets.work import Artist, How

SMALL: dict[str, Any] = {"size": (64, 64), "num_inference_steps": 2}
Draw = Callable[..., ImageSet]


def fox(**settings: Any) -> SetState:
    """A set of nothing but a fox that is to be drawn, of two steps and 64 pixels."""
    return new_set(Source("prompt", "a fox, neon sign"), {**SMALL, **settings}, model="mini", suffix=", neon sign")


@pytest.fixture
def draw(model: Mini, tmp_path: Path) -> Draw:
    """Draw prompts in a set of the folder `icons`, which is made if need be, with its suffix."""

    def draw(*texts: str, folder: Path = tmp_path / "icons", seed: int | None = None, **how: Any) -> ImageSet:
        with open_set(folder, new=fox()) as image_set:
            prompts = collect_prompts(texts, suffix=image_set.state.suffix)
            image_set.commit(plan_images(image_set, prompts, seed=seed).new)
            Artist(image_set, model, How(**how)).draw_missing()
        return image_set

    return draw


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def pictures(folder: Path) -> dict[str, bytes]:
    """The images of a set's folder, without its contact sheet."""
    return {
        name: content for name, content in contents(folder).items() if name.endswith(".png") and name != "sheet.png"
    }
