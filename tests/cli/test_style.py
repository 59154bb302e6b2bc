"""Style files: made, shown, and damaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from style_aligned.files import read_texts
from style_aligned.models.mini import Mini
from style_aligned.models.text import TextEmbedding
from style_aligned.sampling.generation import generate
from style_aligned.styles.style import Style
from tests.cli.conftest import SMALL, Run, assert_error, error_lines, read_image


def test_show_style(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "fox.safetensors"
    code, output, _ = run("style", "make", "--reference", "a fox", "--seed", "4", *SMALL, "--output", file)
    assert code == 0
    assert f"--style {file}" in output
    preview = tmp_path / "preview.png"
    code, output, error = run("style", "show", file, "--preview", preview)
    assert (code, error) == (0, "")
    shown = dict(line.split(":", maxsplit=1) for line in output.splitlines())
    assert (shown["reference"].strip(), shown["reference seed"].strip()) == ("a fox", "4")
    assert (shown["steps"].strip(), shown["size"].strip()) == ("2", "64x64")
    assert read_image(preview).size == (64, 64)


def test_the_size_of_a_style_file_is_warned_about_once(run: Run, tmp_path: Path) -> None:
    files = [tmp_path / "fox.safetensors", tmp_path / "dog.safetensors", tmp_path / "large.safetensors"]
    for file, size in zip(files, ("64", "64", "256"), strict=True):
        assert run("style", "make", "--reference", "a fox", "--steps", "1", "--size", size, "--output", file)[0] == 0
    styles = [argument for file in files for argument in ("--style", str(file))]
    code, _, error = run("generate", *styles, "--prompt", "a cat", "--output", tmp_path / "out")
    assert code == 0
    assert error.count("trained for images of about 256x256") == 1
    assert "256x256: at 64x64" in error


def test_a_preview_replaces_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file)
    for preview in (file, tmp_path / "link", tmp_path / "." / "fox.safetensors"):
        for force in ([], ["--force"]):
            result = run("style", "show", file, "--preview", preview, *force)
            assert_error(result, "expected --preview to be another file than the style file, got")
    assert file.read_bytes() == before

    notes = tmp_path / "notes.png"
    notes.write_bytes(b"my own notes")
    assert_error(run("style", "show", file, "--preview", notes), "notes.png exists already: --force replaces it")
    assert notes.read_bytes() == b"my own notes"
    assert run("style", "show", file, "--preview", notes, "--force")[0] == 0
    assert read_image(notes).size == (64, 64)
    assert_error(run("style", "show", file, "--preview", tmp_path), "expected --preview to be a file, got the folder")
    assert_error(run("style", "show", file, "--preview", file / "new"), "expected --preview .* to be in a folder")
    assert_error(run("style", "show", file, "--preview", "/dev/null"), "expected --preview .* is a device or a pipe")


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("mini", [], (2.0, {"share_group_norm": True})),
        ("mini", ["--guidance", "5", "--no-share-group-norm"], (5.0, {"share_group_norm": False})),
        ("base.safetensors", [], (5.0, {})),
        ("base.safetensors", ["--share-group-norm"], (5.0, {"share_group_norm": True})),
    ],
)
def test_the_embedded_model_has_defaults_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, given: list[str], expected: object
) -> None:
    asked: list[Any] = []

    def make_style(output: Path, reference: str, settings: Any, load: object) -> None:
        asked.append(settings)

    monkeypatch.setattr("style_aligned.cli.run.make_style", make_style)
    command = ["style", "make", "--reference", "a fox", "--model", model, *given, "--output", tmp_path / "fox"]
    assert run(*command)[0] == 0
    assert (asked[0].guidance, asked[0].reference_options) == expected


def test_damaged_style_files(run: Run, loads: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    whole = file.read_bytes()
    loads.clear()
    altered = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (whole[:-1], whole[:50], b"", b"text", altered):
        file.write_bytes(content)
        command = ["generate", "--style", file, "--prompt", "a cat", "--output", tmp_path / "out"]
        assert_error(run(*command), "fox.safetensors")
        assert_error(run("style", "show", file), "fox.safetensors")
    assert loads == []
    assert not (tmp_path / "out").exists()


@pytest.fixture
def style(run: Run, tmp_path: Path) -> Style:
    """A style of the model that the commands load."""
    assert run("style", "make", "--reference", "a fox", *SMALL, "--output", tmp_path / "fox.safetensors")[0] == 0
    return Style.load(tmp_path / "fox.safetensors")


def convert(style: Style, dtype: torch.dtype) -> Style:
    """Give a style as a model of another precision would have made it."""
    text = TextEmbedding(*(tensor.to(dtype=dtype) for tensor in style.text.tensors.values()))
    model = {**style.model, "precision": str(dtype).removeprefix("torch.")}
    return replace(style, latents=style.latents.to(dtype=dtype), text=text, model=model)


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("model", "class", "StableDiffusion_1"),
        ("model", "classifier_free_guidance", False),
        ("solver", "name", "PNDM"),
        ("solver", "num_train_timesteps", 500),
        ("model", "precision", "float16"),
        ("model", "fingerprint", "0123456789abcdef"),
    ],
)
def test_styles_of_other_models_are_refused(
    run: Run, style: Style, tmp_path: Path, field: str, name: str, value: object
) -> None:
    own = getattr(style, field)
    other = replace(style, **{field: {**own, name: value}})
    if name == "precision":
        other = convert(style, torch.float16)
    if name == "classifier_free_guidance":
        text = TextEmbedding(*(tensor[-1:] for tensor in style.text.tensors.values()))
        other = replace(other, text=text)
    other.save(tmp_path / "other.safetensors")
    out = tmp_path / "out"
    command = ["generate", "--style", tmp_path / "other.safetensors", "--prompt", "a cat", "--output", out]
    kind = "model" if field == "model" else "solver"
    expected = f"style-aligned: error: expected a {kind} with {name}={value}, as the style's, got {own[name]}"
    is_forcible = name in ("precision", "fingerprint")
    expected += " (--force lets it pass)" if is_forcible else ""
    for options in ([], ["--reference", "a dog", *SMALL] if is_forcible else ["--force"]):
        code, output, error = run(*command, *options)
        assert (code, output) == (2, "")
        assert error_lines(error) == [expected]
        assert not out.exists()


def test_a_style_of_another_precision_takes_force(run: Run, random_mini: Mini, style: Style, tmp_path: Path) -> None:
    other = convert(style, torch.bfloat16)
    assert other.latents.dtype == torch.bfloat16
    other.save(tmp_path / "other.safetensors")
    out = tmp_path / "out"
    command = ["generate", "--style", tmp_path / "other.safetensors", "--prompt", "a cat", "--output", out, "--force"]
    code, _, error = run(*command)
    assert code == 0, error
    settings = json.loads(read_texts(out / "000-a-cat.png")["settings"])
    assert settings["model"]["precision"] == "float32"  # of what has drawn it
    (sample,) = generate(random_mini, other, ["a cat"], force=True)
    assert read_image(out / "000-a-cat.png").tobytes() == sample.image.tobytes()
    assert read_image(out / "reference.png").tobytes() == other.image(random_mini).tobytes()
    (as_it_was,) = generate(random_mini, style, ["a cat"])
    assert not torch.equal(sample.latents, as_it_was.latents)  # it does follow what was rounded
    assert run(*command)[1].startswith("0 new images ")


def test_a_style_that_does_not_fit_leaves_nothing(run: Run, style: Style, tmp_path: Path) -> None:
    other = replace(style, text=TextEmbedding(style.text.clip_text_embedding))
    other.save(tmp_path / "other.safetensors")
    out = tmp_path / "out"
    files = ["--style", tmp_path / "fox.safetensors", "--style", tmp_path / "other.safetensors"]
    for options in ([], ["--force"]):
        code, output, error = run("generate", *files, *options, "--prompt", "a cat", "--output", out)
        assert (code, output) == (2, "")
        assert "expected a style with text embeddings of shapes" in error
        assert not out.exists()
