import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.latent_diffusion.solvers import DDIM, Euler, SolverParams
from safetensors.torch import save_file
from torch import Tensor

from style_aligned.mini import Mini
from style_aligned.sampling import generate
from style_aligned.style import Style, StyleError, default_size
from tests.oracle import relative_error


@pytest.fixture
def model(random_mini: Mini) -> Mini:
    random_mini.solver = DDIM(num_inference_steps=30)
    random_mini.classifier_free_guidance = True
    return random_mini


@pytest.fixture
def style(model: Mini) -> Style:
    return Style.from_prompt(
        model, "a fox, neon sign", negative_prompt="ink", seed=3, num_inference_steps=3, condition_scale=2.5,
        size=(64, 128), options={"scale": 0.8, "shift": 0.25},
    )  # fmt: skip


def test_a_style_is_the_trajectory_of_its_reference(model: Mini, style: Style) -> None:
    assert style.latents.shape == (4, 4, 8, 16)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(style.latents[0], torch.randn(1, 4, 8, 16, generator=generator)[0])

    model.solver = model.solver.rebuild(num_inference_steps=3)  # the loop that Refiners' users write
    x = style.latents[:1]
    embedding, pooled = model.compute_clip_text_embedding("a fox, neon sign", "ink")
    time_ids = torch.tensor([[64, 128, 0, 0, 64, 128]]).repeat(2, 1)
    for step in model.steps:
        with torch.no_grad():
            x = model(
                x, step=step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=time_ids,
                condition_scale=2.5,
            )  # fmt: skip
        assert relative_error(style.latents[step + 1 : step + 2], x) < 1e-5
    assert style.image(model).size == (128, 64)
    assert style.preview.size == (128, 64)


def test_a_style_of_given_noise(model: Mini, style: Style) -> None:
    given = Style.from_prompt(
        model, "a fox, neon sign", negative_prompt="ink", noise=style.latents[:1], num_inference_steps=3,
        condition_scale=2.5, size=(64, 128),
    )  # fmt: skip
    assert torch.equal(given.latents, style.latents)


def test_the_size_is_the_models_by_default(model: Mini) -> None:
    assert default_size(model) == (256, 256)


def test_a_loaded_style_is_the_saved_one(model: Mini, style: Style, tmp_path: Path) -> None:
    style.save(tmp_path / "fox.safetensors")
    loaded = Style.load(tmp_path / "fox.safetensors")
    for field in dataclasses.fields(Style):
        if field.name not in ("latents", "text", "preview"):
            assert getattr(loaded, field.name) == getattr(style, field.name)
    assert torch.equal(loaded.latents, style.latents)
    for name, tensor in style.text.tensors.items():
        assert torch.equal(loaded.text.tensors[name], tensor)
    assert loaded.preview.tobytes() == style.preview.tobytes()

    loaded.check(model)
    (ours,) = generate(model, loaded, ["a cat"])
    (expected,) = generate(model, style, ["a cat"])
    assert torch.equal(ours.latents, expected.latents)


def test_the_same_style_has_the_same_bytes(style: Style, tmp_path: Path) -> None:
    style.save(tmp_path / "a.safetensors")
    Style.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_failed_save_leaves_what_was_there(style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fox.safetensors"
    path.write_text("precious")

    def fail(tensors: Any, part: Path, metadata: Any) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("style_aligned.style.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        style.save(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_truncated_files(style: Style, tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    style.save(path)
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(StyleError, match=r"fox.safetensors"):
            Style.load(path)


def test_altered_files(style: Style, tmp_path: Path) -> None:
    path = tmp_path / "fox.safetensors"
    style.save(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(StyleError, match="got one that was altered: its checksum differs"):
        Style.load(path)
    style.save(path)
    path.write_bytes(path.read_bytes().replace(b"a fox", b"a cat"))
    with pytest.raises(StyleError, match="got one that was altered: its checksum differs"):
        Style.load(path)


def rewrite(style: Style, path: Path, **changes: Any) -> None:
    style.save(path)
    header_length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + header_length])
    settings = json.loads(header["__metadata__"]["style_aligned"]) | changes
    tensors: dict[str, Tensor] = {"latents": style.latents, **style.text.tensors, "preview": torch.zeros(4)}
    save_file(tensors, path, metadata={"style_aligned": json.dumps(settings)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "to have format 1, got 2"),
        (
            {"size": [8_000_000, 8_000_000]},
            r"expected latents of shape \[4, 4, 1000000, 1000000\] .* got \[4, 4, 8, 16\]",
        ),
        ({"size": None}, "got one without a style's settings"),
        ({"num_inference_steps": 99}, r"expected latents of shape \[100, 4, 8, 16\]"),
        ({"prompt": "another"}, "got one that was altered"),
    ],
    ids=str,
)
def test_absurd_settings(style: Style, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(style, tmp_path / "fox.safetensors", **changes)
    with pytest.raises(StyleError, match=message):
        Style.load(tmp_path / "fox.safetensors")


def test_files_that_are_no_styles(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"up": torch.zeros(2)}, path)
    with pytest.raises(StyleError, match="got one without a style's settings"):
        Style.load(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(StyleError, match="got one without a safetensors header"):
        Style.load(path)
    with pytest.raises(FileNotFoundError):
        Style.load(tmp_path / "none.safetensors")


def test_another_solver(model: Mini, style: Style) -> None:
    model.solver = Euler(num_inference_steps=30)
    with pytest.raises(StyleError, match="expected a solver with name=DDIM, as the style's, got Euler"):
        style.check(model)
    model.solver = DDIM(num_inference_steps=30, params=SolverParams(timesteps_offset=0))
    with pytest.raises(StyleError, match="expected a solver with timesteps_offset=1, as the style's, got 0"):
        style.check(model, force=True)


def test_another_guidance(model: Mini, style: Style) -> None:
    model.classifier_free_guidance = False
    with pytest.raises(StyleError, match=r"expected a model with classifier_free_guidance=True, .* got False"):
        style.check(model, force=True)


def test_other_weights(model: Mini, style: Style) -> None:
    weight = next(iter(model.unet.parameters()))
    before = weight.clone()
    weight.add_(1)
    try:
        with pytest.raises(StyleError, match="expected a model with fingerprint="):
            style.check(model)
        style.check(model, force=True)
    finally:
        weight.copy_(before)
    style.check(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "expected a prompt with at least one word, got an empty one"),
        ({"num_inference_steps": 0}, "expected num_inference_steps between 1 and 1000, got 0"),
        ({"condition_scale": float("nan")}, "expected condition_scale to be a finite number, got nan"),
        ({"size": (100, 64)}, "expected a size of multiples of 8, at least 64, got 100x64"),
        ({"noise": torch.zeros(1, 4, 4, 4)}, r"expected noise of shape \(1, 4, 32, 32\), got \(1, 4, 4, 4\)"),
        ({"options": {"full_attention_share": True}}, "expected options among .* got full_attention_share"),
        ({"options": {"scale": -1.0}}, "expected scale to be a finite number of at least 0, got -1"),
    ],
    ids=str,
)
def test_wrong_settings(model: Mini, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Style.from_prompt(model, arguments.pop("prompt", "a fox"), **arguments)
