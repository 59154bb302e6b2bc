"""Names of the version before."""

import sys
from importlib import import_module
from typing import Any

import pytest

import style_aligned
from style_aligned import Style, generate
from style_aligned.models.mini import Mini
from tests.chains import blocks


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("checkpoints", "models.checkpoints"),
        ("mini", "models.mini"),
        ("style_file", "styles.file"),
    ],
)
def test_modules_are_found_under_the_names_that_they_had(old: str, new: str) -> None:
    sys.modules.pop(f"style_aligned.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"style_aligned.{new}: the old name will go"):
        module = import_module(f"style_aligned.{old}")
    assert module is import_module(f"style_aligned.{new}")
    assert module.__spec__ is not None
    assert module.__spec__.name == f"style_aligned.{new}"


@pytest.mark.filterwarnings("ignore:style_aligned.checkpoints")
def test_modules_in_packages_too() -> None:
    assert import_module("style_aligned.checkpoints.load") is import_module("style_aligned.models.checkpoints.load")


def test_modules_that_never_were() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"style_aligned\.judges"):
        import_module("style_aligned.judges")


def test_names_that_are_others_now(model: Mini) -> None:
    package: Any = style_aligned
    with pytest.warns(DeprecationWarning, match=r"style_aligned.Reference is now style_aligned.Style"):
        assert package.Reference is Style
    style = Style.from_prompt(model, "a fox", num_inference_steps=1, size=(64, 64))
    with pytest.warns(DeprecationWarning, match="generate_unaligned is now"):
        (sample,) = package.generate_unaligned(model, style, ["a cat"])
    (expected,) = generate(model, style, ["a cat"], aligned=False)
    assert sample.image.tobytes() == expected.image.tobytes()
    with pytest.warns(DeprecationWarning, match="is now reference.complete"):
        assert Style.from_reference(model, style) is style
    assert style.is_complete
    with pytest.raises(AttributeError, match="no attribute 'Referee'"):
        _ = package.Referee
    assert package.__version__


def test_attributes_of_the_adapter() -> None:
    adapter: Any = style_aligned.StyleAlignedAdapter(blocks())
    with pytest.warns(
        DeprecationWarning, match=r"Adapter.layers\(\) is now StyleAlignedAdapter.selectable_layers: the"
    ):
        assert adapter.layers() == {"layer.0": 1, "layer.1": 1}
    with pytest.warns(DeprecationWarning, match=r"Adapter.layers is now StyleAlignedAdapter.selected_layers: the old"):
        adapter.layers = ["layer.0"]
    assert adapter.selected_layers == ["layer.0"]
