"""Style files: what is written, and what is refused before anything is allocated."""

import hashlib
import io
import json
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from style_aligned.models.mini import Mini
from style_aligned.sampling.generation import generate
from style_aligned.styles.file import StyleError, write_style_file
from style_aligned.styles.settings import MAX_PROMPT, check_settings
from style_aligned.styles.style import Style


def test_the_same_style_has_the_same_bytes(style: Style, tmp_path: Path) -> None:
    style.save(tmp_path / "a.safetensors")
    Style.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_failed_save_leaves_what_was_there(style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fox.safetensors"
    path.write_text("precious")

    def fail(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        style.save(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_style_is_as_readable_as_any_file(style: Style, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    style.save(tmp_path / "fox.safetensors")
    assert (tmp_path / "fox.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


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


def png(width: int, height: int, kind: str = "PNG") -> Tensor:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, kind)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunk(picture: Tensor, name: bytes, content: bytes, *, before: bytes) -> Tensor:
    """Put a chunk into a PNG."""
    whole = picture.numpy().tobytes()
    start = whole.index(before) - 4
    return torch.frombuffer(bytearray(whole[:start] + chunk(name, content) + whole[start:]), dtype=torch.uint8)


def empty_png(width: int, height: int) -> Tensor:
    """A PNG of any size without its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def write(style: Style, path: Path, settings: dict[str, Any]) -> None:
    """Write a style with other settings, as far as that can be done."""
    tensors = {"latents": style.latents, **style.text.tensors}
    write_style_file(path, {**style.settings, **settings}, tensors, style.preview)


def rewrite(style: Style, path: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a style with other settings and tensors (None leaves them out), and a checksum that is right for them."""
    style.save(path)
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["style_aligned"])
        parts = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
    del old["sha256"]
    described = {name: value for name, value in (old | settings).items() if value is not None}
    parts = {name: tensor for name, tensor in parts.items() if tensor is not None}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(parts):
        digest.update(f"{name} {parts[name].dtype} {tuple(parts[name].shape)}".encode())
        digest.update(parts[name].flatten().view(torch.uint8).numpy().tobytes())
    described["sha256"] = digest.hexdigest()
    save_file(parts, path, metadata={"style_aligned": json.dumps(described)})


def test_a_rewritten_style_is_one(model: Mini, style: Style, tmp_path: Path) -> None:
    rewrite(style, tmp_path / "fox.safetensors", {"prompt": "another"}, {})
    loaded = Style.load(tmp_path / "fox.safetensors")
    assert loaded.prompt == "another"
    loaded.check(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": 3}, "to have format 1 or 2, got 3"),
        ({"size": [65_536, 64]}, r"expected latents of shape \[4, 4, 8192, 8\] .* got \[4, 4, 8, 16\]"),
        ({"size": [65_536, 65_536]}, "expected at most 268435456 elements in the latents of all steps, got 1073741824"),
        ({"size": [8_000_000, 64]}, "expected a size of multiples of 8, at least 64 and at most 65536, got 8000000x64"),
        ({"size": [64.0, 128]}, "expected a size of multiples of 8"),
        ({"size": [64]}, r"expected a size of height and width, got \[64\]"),
        ({"size": None}, "got others: size"),
        ({"extra": 1}, "got others: extra"),
        ({"num_inference_steps": 99}, r"expected latents of shape \[100, 4, 8, 16\]"),
        ({"num_inference_steps": 3.0}, "expected num_inference_steps to be an integer or None, got 3.0"),
        ({"num_inference_steps": 1001}, "expected num_inference_steps to be an integer between 1 and 1000, got 1001"),
        ({"prompt": "a" * 32_769}, "expected prompts of at most 32768 characters, got one of 32769"),
        ({"prompt": 5}, "expected a prompt with at least one word, got 5"),
        ({"negative_prompt": 5}, "expected negative_prompt to be a text, got 5"),
        ({"seed": -1}, r"expected seed between 0 and 2\*\*63 - 1, got -1"),
        ({"seed": True}, "expected seed to be an integer, got True"),
        (
            {"condition_scale": float("nan")},
            "expected condition_scale to be a finite number between -10000 and 10000, got nan",
        ),
        ({"condition_scale": "5"}, "expected condition_scale to be a number or None, got '5'"),
        ({"options": [1]}, r"expected options by name, got \[1\]"),
        (
            {"options": {"full_attention_share": True}},
            "expected options without full_attention_share: the reference attends to its targets",
        ),
        ({"options": {"scale": float("inf")}}, "expected scale to be a finite number of at least 0, got inf"),
        ({"options": {"share_group_norm": 1}}, "expected share_group_norm to be True or False, got 1"),
        ({"model": {}}, r"to say class, .* of its model, got \{\}"),
        ({"solver": ["DDIM"]}, r"to name its solver, got \['DDIM'\]"),
    ],
    ids=lambda value: str(value)[:99],
)
def test_absurd_settings(style: Style, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    rewrite(style, tmp_path / "fox.safetensors", settings, {})
    with pytest.raises(StyleError, match=message) as caught:
        Style.load(tmp_path / "fox.safetensors")
    assert "fox.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latents": torch.zeros(4, 4, 8, 16).long()}, "expected latents of a floating type in .* got I64"),
        ({"latents": torch.full((4, 4, 8, 16), torch.nan)}, "expected latents of .* to be finite"),
        ({"latents": None}, "to hold latents, text embedding and preview"),
        ({"other": torch.zeros(1)}, "to hold latents, text embedding and preview, got .*other"),
        ({"clip_text_embedding": torch.zeros(1, 32, 128)}, r"of shape \[2, any, any\] in .* got \[1, 32, 128\]"),
        ({"pooled_text_embedding": torch.zeros(2, 3, 4)}, r"of shape \[2, any\] in .* got \[2, 3, 4\]"),
        ({"preview": torch.zeros(9)}, "expected preview of bytes in .* got F32"),
        ({"preview": torch.zeros(9, dtype=torch.uint8)}, "to be a PNG of at most 128x128 pixels"),
        ({"preview": empty_png(9000, 9000)}, "to be a PNG of at most 128x128 pixels, got one of 9000x9000"),
        ({"preview": empty_png(10_000, 10_000)}, "of at most 128x128 pixels, got .*100000000 pixels"),
        ({"preview": empty_png(50_000, 50_000)}, "of at most 128x128 pixels, got .*2500000000 pixels"),
        ({"preview": png(9, 9, "JPEG")}, "to be a PNG of at most 128x128 pixels, got none"),
        ({"preview": png(99, 99)[:-30]}, "to be a PNG of at most 128x128 pixels, got one that cannot be read: "),
        (
            {"preview": with_chunk(png(99, 99), b"iCCP", b"\0", before=b"IEND")},  # an IndexError
            "to be a PNG of at most 128x128 pixels, got one that cannot be read: ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_absurd_tensors(style: Style, tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    rewrite(style, tmp_path / "fox.safetensors", {}, tensors)
    with pytest.raises(StyleError, match=message):
        Style.load(tmp_path / "fox.safetensors")


def test_a_preview_is_read_without_warnings(style: Style, tmp_path: Path) -> None:
    rewrite(
        style, tmp_path / "fox.safetensors", {}, {"preview": with_chunk(png(9, 9), b"acTL", bytes(8), before=b"IDAT")}
    )
    assert Style.load(tmp_path / "fox.safetensors").preview.size == (9, 9)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("clip_text_embedding", [2, 64, 131_073], "expected at most 16777216 elements in clip_text_embedding of"),
        ("pooled_text_embedding", [2, 8_388_609], "expected at most 16777216 elements in pooled_text_embedding of"),
        ("preview", [16_777_217], "expected at most 16777216 elements in preview of"),
        ("preview", [16_777_216], "its checksum differs"),
    ],
)
def test_large_tensors_are_refused_before_they_are_read(
    style: Style, tmp_path: Path, name: str, shape: list[int], message: str
) -> None:
    path = tmp_path / "fox.safetensors"
    style.save(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header[name]["shape"] = shape
    end = 0
    for part in header.keys() - {"__metadata__"}:
        start, end = end, end + math.prod(header[part]["shape"]) * (1 if part == "preview" else 4)
        header[part]["data_offsets"] = [start, end]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # zeros that take no place
    with pytest.raises(StyleError, match=message):
        Style.load(path)


def test_the_longest_prompts_come_back(style: Style, tmp_path: Path) -> None:
    texts = {"prompt": "🦊" * MAX_PROMPT, "negative_prompt": "􏿿" * MAX_PROMPT}  # no others take more bytes
    write(style, tmp_path / "fox.safetensors", texts)
    loaded = Style.load(tmp_path / "fox.safetensors")
    assert {"prompt": loaded.prompt, "negative_prompt": loaded.negative_prompt} == texts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_prompt": "a" * 32_769}, "expected prompts of at most 32768 characters, got one of 32769"),
        ({"num_inference_steps": 64, "size": (8192, 8192)}, "expected at most 268435456 elements"),
        ({"options": {"full_attention_share": True}}, "expected options without full_attention_share"),
    ],
    ids=lambda value: str(value)[:99],
)
def test_what_could_not_be_loaded_is_not_saved(
    style: Style, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(style, tmp_path / "fox.safetensors", settings)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_latents(style: Style) -> None:
    settings = style.settings | {"size": (8192, 8192)}
    check_settings(settings | {"num_inference_steps": 63})
    with pytest.raises(ValueError, match="got 272629760 with 64 steps of a size of 8192x8192"):
        check_settings(settings | {"num_inference_steps": 64})


@pytest.mark.parametrize("settings", ["[1]", "null", '{"format": 1', "[" * 100_000, "text"], ids=lambda text: text[:9])
def test_settings_that_are_none(tmp_path: Path, settings: str) -> None:
    save_file({"latents": torch.zeros(1)}, tmp_path / "fox.safetensors", metadata={"style_aligned": settings})
    with pytest.raises(StyleError, match="got one without a style's settings"):
        Style.load(tmp_path / "fox.safetensors")


@pytest.mark.parametrize(
    "tensors", [{"pooled_text_embedding": None}, {"pooled_text_embedding": torch.zeros(2, 3)}], ids=["none", "short"]
)
def test_text_embeddings_of_another_model(model: Mini, style: Style, tmp_path: Path, tensors: dict[str, Any]) -> None:
    rewrite(style, tmp_path / "fox.safetensors", {}, tensors)
    loaded = Style.load(tmp_path / "fox.safetensors")
    with pytest.raises(StyleError, match=r"expected a style with text embeddings of shapes .*\[64\]}, got"):
        generate(model, loaded, ["a cat"])


def test_options_out_of_range(model: Mini, style: Style, tmp_path: Path) -> None:
    rewrite(style, tmp_path / "fox.safetensors", {"options": {"scale": -1.0}}, {})
    with pytest.raises(StyleError, match="expected scale to be a finite number of at least 0, got -1"):
        Style.load(tmp_path / "fox.safetensors").check(model)


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


@pytest.mark.parametrize("name", ["condition_scale", "scale"])
def test_numbers_that_no_float_can_hold(style: Style, tmp_path: Path, name: str) -> None:
    settings = {"options": {"scale": 10**400}} if name == "scale" else {name: 10**400}
    rewrite(style, tmp_path / "fox.safetensors", settings, {})
    with pytest.raises(StyleError, match=f"fox.safetensors is not a style: expected {name}"):
        Style.load(tmp_path / "fox.safetensors")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", ["a \udcff fox", "a \0 fox"], ids=ascii)
def test_prompts_that_cannot_be_written(model: Mini, style: Style, tmp_path: Path, name: str, text: str) -> None:
    arguments: dict[str, Any] = {"prompt": "a fox", "size": (64, 64), name: text}
    with pytest.raises(ValueError, match="expected prompts that can be written as UTF-8"):
        Style.from_prompt(model, **arguments)
    rewrite(style, tmp_path / "fox.safetensors", {name: text}, {})
    with pytest.raises(StyleError, match="expected prompts that can be written as UTF-8"):
        Style.load(tmp_path / "fox.safetensors")
