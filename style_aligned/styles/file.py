"""Style files: tensors, a small picture and settings in one safetensors file, checked before anything is allocated."""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from style_aligned.files import UNREADABLE, without_warnings, write_bytes
from style_aligned.models.family import latents_shape
from style_aligned.models.model import tensor_bytes
from style_aligned.styles.settings import DEFAULTS, SETTINGS, check_settings
from style_aligned.words import show

FORMAT = 2
FORMATS = (1, 2)
MAX_HEADER = 1 << 20  # bytes
MAX_ELEMENTS = 1 << 24  # of every other tensor
PREVIEW = 128  # pixels
FLOATS = ("F64", "F32", "F16", "BF16")


class StyleError(ValueError):
    """A style file that cannot be read, or a style that does not fit a model."""


def write_style_file(
    path: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], preview: Image.Image
) -> None:
    """Write a style file: the same bytes for the same style.

    Args:
        path: The path of the file. What is there is replaced once the new file is complete.
        settings: The settings, as JSON has them.
        tensors: The tensors, by name.
        preview: The reference in small.

    Raises:
        TypeError, ValueError: If a setting is not of its type or out of its range: the file could not be read again.
        OSError: If the file cannot be written. What was there before is still there then.
    """
    contents, described = _prepare(settings, tensors, preview)
    _write(path, contents, described)


def write_blend_file(
    path: Path, parts: Sequence[tuple[Mapping[str, Any], Mapping[str, Tensor], Image.Image, float]]
) -> None:
    """Write a file of a blend: what `write_style_file` takes of each of its styles, and its weight.

    Args:
        path: The path of the file. What is there is replaced once the new file is complete.
        parts: The styles.

    Raises:
        TypeError, ValueError: If a setting is not of its type or out of its range: the file could not be read again.
        OSError: If the file cannot be written. What was there before is still there then.
    """
    all_contents: dict[str, Tensor] = {}
    blend: list[dict[str, Any]] = []
    for number, (settings, tensors, preview, weight) in enumerate(parts):
        contents, described = _prepare(settings, tensors, preview)
        all_contents |= {f"{number}.{name}": tensor for name, tensor in contents.items()}
        blend.append({"weight": weight, "style": described})
    _write(path, all_contents, {"format": FORMAT, "blend": blend})


def read_style_file(path: Path) -> list[tuple[dict[str, Any], dict[str, Tensor], Image.Image, float]]:
    """Read a style file that `write_style_file` or `write_blend_file` has written.

    Args:
        path: The path of the file.

    Returns:
        For each style in it, which is one unless it is a blend: the settings, the tensors by name, the preview, and its
        weight.

    Raises:
        StyleError: If the file is not a style, or was altered or cut off.
        FileNotFoundError: If there is no such file.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or int.from_bytes(start, "little") > MAX_HEADER:
        raise StyleError(f"expected {path} to be a style file, got one without a safetensors header")
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            blend = _parse_blend(cast(dict[str, str], file.metadata() or {}), path)  # pyright: ignore[reportUnknownMemberType]
            if blend is None:
                return [(*_read(file, path), 1.0)]
            parts = enumerate(blend)
            return [(*_read(_Part(file, f"{number}.", style), path), weight) for number, (style, weight) in parts]
    except SafetensorError as error:
        raise StyleError(f"expected {path} to be a complete safetensors file, got one that is not: {error}") from None


@dataclass(frozen=True)
class _Part:
    """One style of the file of a blend, as if it had a file of its own."""

    file: Any
    prefix: str
    described: dict[str, Any]

    def metadata(self) -> dict[str, str]:
        return {"style_aligned": json.dumps(self.described)}

    def keys(self) -> list[str]:
        return [name.removeprefix(self.prefix) for name in self.file.keys() if name.startswith(self.prefix)]  # noqa: SIM118

    def get_slice(self, name: str) -> Any:
        return self.file.get_slice(self.prefix + name)

    def get_tensor(self, name: str) -> Tensor:
        return self.file.get_tensor(self.prefix + name)


def _prepare(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], preview: Image.Image
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a style file holds, and what its header says of that."""
    check_settings(settings)
    buffer = io.BytesIO()
    preview.save(buffer, format="PNG")
    contents = {**tensors, "preview": torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)}
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(contents.items())}
    said = {name: value for name, value in settings.items() if name not in DEFAULTS or value != DEFAULTS[name]}
    described = {"format": FORMAT, **said}
    described["sha256"] = _digest(described, contents)
    return contents, described


def _write(path: Path, contents: dict[str, Tensor], described: dict[str, Any]) -> None:
    # a single entry: the order of several is not defined
    write_bytes(path, save(contents, metadata={"style_aligned": json.dumps(described, sort_keys=True)}))


def _parse_blend(metadata: Mapping[str, str], path: Path) -> list[tuple[dict[str, Any], float]] | None:
    """Return what the header says of each style of a blend, with its weight. None if it is no blend."""
    try:
        blend = json.loads(metadata["style_aligned"])["blend"]
    except (KeyError, TypeError, ValueError, RecursionError):  # no blend, or no style at all
        return None
    try:
        parsed = [(dict(part["style"]), float(part["weight"])) for part in blend]
    except (KeyError, TypeError, ValueError):
        raise StyleError(f"expected {path} to hold the styles of a blend, got others") from None
    if not parsed or not all(math.isfinite(weight) and weight > 0 for _, weight in parsed):
        raise StyleError(f"expected {path} to hold styles with weights of more than 0, got others")
    return parsed


def _read(file: Any, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Image.Image]:
    settings = _parse_settings(file.metadata() or {}, path)
    digest = settings.pop("sha256")
    shapes = _expected_shapes(settings)
    names: set[str] = set(file.keys())
    if not shapes.keys() - {"pooled_text_embedding", "weights", "reference_mask"} <= names <= shapes.keys():
        raise StyleError(f"expected {path} to hold latents, text embedding and preview, got {sorted(names)}")
    for name in names:
        part = file.get_slice(name)
        shape, dtype, expected = cast(list[int], part.get_shape()), part.get_dtype(), shapes[name]
        if len(shape) != len(expected) or any(
            length not in (own, None) for own, length in zip(shape, expected, strict=True)
        ):
            lengths = ", ".join("any" if length is None else str(length) for length in expected)
            raise StyleError(f"expected {name} of shape [{lengths}] in {path}, got {shape}")
        if (
            name not in ("latents", "control") and math.prod(shape) > MAX_ELEMENTS
        ):  # those are of a size that was checked
            raise StyleError(f"expected at most {MAX_ELEMENTS} elements in {name} of {path}, got shape {shape}")
        is_picture = name in ("preview", "control")
        if dtype not in (("U8",) if is_picture else FLOATS):
            kind = "bytes" if is_picture else "a floating type"
            raise StyleError(f"expected {name} of {kind} in {path}, got {dtype}")

    tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    if _digest(settings, tensors) != digest:
        raise StyleError(f"expected {path} as it was written, got one that was altered: its checksum differs")
    picture = tensors.pop("preview").numpy().tobytes()
    if name := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise StyleError(f"expected {name} of {path} to be finite, got NaN or infinity")
    del settings["format"]
    return {**DEFAULTS, **settings, "size": tuple(settings["size"])}, tensors, _decode_preview(picture, path)


def _expected_shapes(settings: Mapping[str, Any]) -> dict[str, list[int | None]]:
    height, width = settings["size"]
    halves = 2 if settings["model"]["classifier_free_guidance"] else 1
    if settings["format"] > 1 and settings["condition_scale"] in (0, 1):
        halves = 1
    shapes: dict[str, list[int | None]] = {
        "latents": [settings["num_inference_steps"] + 1, *latents_shape((height, width))[1:]],
        "clip_text_embedding": [halves, None, None],
        "pooled_text_embedding": [halves, None],
        "preview": [None],
    }
    if settings.get("control"):
        shapes["control"] = [len(settings["control"]), height, width, 3]
    if settings["format"] == 1:
        return shapes
    return {**shapes, "weights": [None], "reference_mask": [*latents_shape((height, width))[2:]]}


def _parse_settings(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        settings: Any = json.loads(metadata["style_aligned"])
        found = settings["format"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise StyleError(f"expected {path} to be a style file, got one without a style's settings") from None
    if isinstance(found, bool) or found not in FORMATS:
        formats = " or ".join(map(str, FORMATS))
        raise StyleError(f"expected {path} to have format {formats}, got {show(found)}")
    allowed = {"format", "sha256", *SETTINGS} - (DEFAULTS.keys() if found == 1 else set[str]())
    if not allowed - DEFAULTS.keys() <= settings.keys() <= allowed:
        differing = ", ".join(sorted(map(str, (settings.keys() ^ allowed) - (DEFAULTS.keys() - settings.keys()))))
        raise StyleError(f"expected the settings of a style in {path}, got others: {differing}")
    try:
        check_settings(settings)
    except (TypeError, ValueError) as error:
        raise StyleError(f"{path} is not a style: {error}") from None
    model, solver = settings["model"], settings["solver"]
    if not isinstance(model, dict) or not _MODEL <= cast(dict[str, Any], model).keys() <= {*_MODEL, "adapters"}:
        raise StyleError(f"expected {path} to say {', '.join(sorted(_MODEL))} of its model, got {model!r}")
    if not isinstance(solver, dict) or "name" not in cast(dict[str, Any], solver):
        raise StyleError(f"expected {path} to name its solver, got {solver!r}")
    adapters: Any = cast(dict[str, Any], model).get("adapters", [])
    if not isinstance(adapters, list) or not all(map(_is_adapter, cast(list[Any], adapters))):
        raise StyleError(
            f"expected {path} to name the file of each adapter, and its scale or word, got {show(adapters)}"
        )
    return settings


def _is_adapter(described: Any) -> bool:
    if not isinstance(described, dict):
        return False
    keys = cast(dict[str, Any], described).keys()
    return {"file", "scale"} <= keys or {"file", "token"} <= keys


_MODEL = {"class", "classifier_free_guidance", "precision", "fingerprint"}


def _decode_preview(picture: bytes, path: Path) -> Image.Image:
    try:
        with without_warnings():
            preview = Image.open(io.BytesIO(picture), formats=["PNG"])
            if max(preview.size) <= PREVIEW:
                preview.load()
                return preview
        found = f"one of {preview.width}x{preview.height}"
    except UnidentifiedImageError:
        found = "none"
    except UNREADABLE as error:
        found = f"one that cannot be read: {error}"
    raise StyleError(
        f"expected the preview of {path} to be a PNG of at most {PREVIEW}x{PREVIEW} pixels, got {found}"
    ) from None


def _digest(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
