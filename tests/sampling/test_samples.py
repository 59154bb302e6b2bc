"""The sequence of images that `generate` returns."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from style_aligned import Sample, Samples, Style, StyleError, generate
from style_aligned.files import parse_settings, read_texts
from style_aligned.models.mini import Mini

PROMPTS = ["a cat", "a dog, ink", "a <b> rocket"]


def make_style(model: Mini, **options: Any) -> Style:
    return Style.from_prompt(model, "a fox, ink", num_inference_steps=1, size=(64, 64), **options)


def count_rows(model: Mini, rows: list[int]) -> Any:
    """Write down how many rows go through the U-Net at a time."""

    def hook(_: Any, arguments: Any, output: Any) -> None:
        rows.append(len(arguments[0]))

    return model.unet.register_forward_hook(hook)


class Drawing:
    """Draws plain images, and counts."""

    def __init__(self) -> None:
        self.chunks: list[range] = []
        self.handed_out: list[int] = []

    def __call__(self, chunk: range) -> Iterator[Sample]:
        self.chunks.append(chunk)
        for index in chunk:
            self.handed_out.append(index)
            yield Sample(f"image {index}", index, torch.zeros(1, 4, 8, 8), Image.new("RGB", (8, 8)))


def test_images_are_drawn_once_and_as_they_are_asked_for() -> None:
    drawing = Drawing()
    samples = Samples(5, 2, drawing, of="a fox")
    assert len(samples) == 5
    assert repr(samples) == "Samples(5 of a fox, 0 drawn)"
    assert drawing.chunks == []
    assert samples[3].seed == 3
    assert drawing.chunks == [range(2, 4)]
    first = [sample.seed for sample in samples]
    assert first == [0, 1, 2, 3, 4]
    assert [id(sample) for sample in samples] == [id(samples[index]) for index in range(5)]
    assert sorted(drawing.handed_out) == [0, 1, 2, 3, 4]
    assert samples[-1].seed == 4
    assert [sample.seed for sample in samples[1:4]] == [1, 2, 3]
    with pytest.raises(IndexError):
        samples[5]


def test_two_iterations_at_a_time() -> None:
    samples = Samples(4, 4, Drawing(), of="a fox")
    one, other = iter(samples), iter(samples)
    seen = [next(one).seed, next(other).seed, next(other).seed, next(other).seed, next(one).seed, next(one).seed]
    assert seen == [0, 0, 1, 2, 1, 2]
    assert [next(one).seed, next(other).seed] == [3, 3]


def test_what_nothing_holds_is_not_kept() -> None:
    iterator = iter(Samples(3, 3, Drawing(), of="a fox"))
    assert [sample.seed for sample in iterator] == [0, 1, 2]


def test_iterating_twice_takes_no_pass(model: Mini) -> None:
    passes: list[int] = []
    samples = generate(model, make_style(model), PROMPTS)
    handle = count_rows(model, passes)
    first = list(samples)
    count = len(passes)
    assert [id(sample) for sample in samples] == [id(sample) for sample in first]
    handle.remove()
    assert len(passes) == count == 2


def test_a_notebook_shows_pictures(model: Mini) -> None:
    style = make_style(model)
    samples = generate(model, style, PROMPTS)
    assert samples[0]._repr_png_().startswith(b"\x89PNG")  # pyright: ignore[reportPrivateUsage]
    assert style._repr_png_().startswith(b"\x89PNG")  # pyright: ignore[reportPrivateUsage]
    for shown in (samples, samples[:]):
        text = shown._repr_html_()  # pyright: ignore
        assert text.count('<img src="data:image/png;base64,') == 3
        assert "a &lt;b&gt; rocket" in text
    assert repr(samples[1]) == "Sample('a dog, ink', seed=2, 64x64)"
    assert repr(style) == "Style('a fox, ink', seed=0, 1 step, 64x64)"


def test_a_sample_saves_itself_with_its_settings(model: Mini, tmp_path: Path) -> None:
    style = make_style(model, scale=0.9)
    aligned, unaligned = (generate(model, style, PROMPTS, aligned=aligned)[1] for aligned in (True, False))
    aligned.save(tmp_path / "dog.png")
    texts = read_texts(tmp_path / "dog.png")
    assert (texts["prompt"], texts["seed"]) == ("a dog, ink", "2")
    settings = parse_settings(texts)
    assert settings == json.loads(json.dumps(aligned.settings))
    assert settings is not None
    assert settings["reference"] == "a fox, ink"
    assert settings["options"] == {"share_group_norm": True, "scale": 0.9}
    assert settings["style"] == style.digest
    assert "style" not in unaligned.settings
    assert unaligned.settings["aligned"] is False
    with Image.open(tmp_path / "dog.png") as image:
        assert image.convert("RGB").tobytes() == aligned.image.tobytes()
    with pytest.raises(ValueError, match=r"expected a path that ends in .png, got '.*dog.jpg'"):
        aligned.save(tmp_path / "dog.jpg")


def test_a_style_file_in_place_of_a_style(model: Mini, tmp_path: Path) -> None:
    style = make_style(model)
    style.save(tmp_path / "fox.safetensors")
    (expected,) = generate(model, style, PROMPTS[:1])
    for path in (tmp_path / "fox.safetensors", str(tmp_path / "fox.safetensors")):
        assert torch.equal(generate(model, path, PROMPTS[:1])[0].latents, expected.latents)
    with pytest.raises(FileNotFoundError, match="expected a Style or the path of a style file, got 'a fox'"):
        generate(model, "a fox", PROMPTS)
    (tmp_path / "other").write_text("")
    with pytest.raises(StyleError, match=r"expected .*other to be a style file"):
        generate(model, tmp_path / "other", PROMPTS)


def test_wrong_arguments_are_named(model: Mini) -> None:
    style = make_style(model)
    any_generate: Any = inspect.unwrap(generate)  # without the checks of types that these tests add
    for arguments, message in (
        ((style, model, PROMPTS), r"expected a model \(.*\) as the first argument, got a Style"),
        (("mini", style, PROMPTS), r"expected a model .*, got 'mini': load_model\('mini'\) loads it"),
        ((model.unet, style, PROMPTS), "expected a model .*, got a MiniUNet, which is a part of one"),
        ((model, model, PROMPTS), "expected a Style or the path of a style file, got a Mini"),
        ((model, style, "a cat"), "expected a sequence of prompts, got the string 'a cat'"),
        ((model, style, [model]), "expected prompts to be texts, got a Mini at index 0"),
        ((model, style, model.unet), "expected a sequence of prompts, got a MiniUNet"),
    ):
        with pytest.raises(TypeError, match=message):
            any_generate(*arguments)


def test_progress(model: Mini, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []
    list(generate(model, make_style(model), PROMPTS, progress=True, batch_size=2, on_step=steps.append))
    assert steps == [1, 2, 1]
    assert "images 1 to 3 of 3" in capsys.readouterr().out
    list(generate(model, make_style(model), PROMPTS))
    assert capsys.readouterr().out == ""


def test_guidance_that_is_off(model: Mini) -> None:
    rows: list[int] = []
    handle = count_rows(model, rows)
    latents: list[Any] = []
    for guidance in (0, 1):
        style = make_style(model, condition_scale=guidance)
        latents.append(generate(model, style, PROMPTS)[0].latents)
    handle.remove()
    assert rows == [1, 3] * 2
    assert torch.equal(*latents)
    model.classifier_free_guidance = False
    expected = generate(model, make_style(model), PROMPTS)[0].latents
    model.classifier_free_guidance = True
    assert torch.equal(latents[0], expected)
