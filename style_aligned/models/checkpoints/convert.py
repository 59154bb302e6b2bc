"""From any format that can be loaded to a folder in Refiners' format, one tensor at a time."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, dtype as DType

from style_aligned.files import versions
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import write_safetensors
from style_aligned.models.checkpoints.plan import MODEL_PARTS, Plan, Weight, make_plan
from style_aligned.models.checkpoints.sources import Checkpoint, expand_home, open_checkpoint


@dataclass(frozen=True)
class Conversion:
    """What a conversion does, or did.

    Attributes:
        checkpoint: What is converted.
        target: The folder to write.
        plan: Which tensor becomes which weight.
        half: Whether weights are stored in float16.
    """

    checkpoint: Checkpoint
    target: Path
    plan: Plan
    half: bool

    def dtype(self, weight: Weight) -> DType:
        return torch.float16 if self.half else weight.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        return sum(torch.Size(weight.shape).numel() * self.dtype(weight).itemsize for weight in self.plan.weights)

    def __str__(self) -> str:
        counts = [sum(weight.part == part for weight in self.plan.weights) for part in MODEL_PARTS]
        return "\n".join(
            [
                f"{self.checkpoint.path}: {self.checkpoint.architecture.name}, {self.checkpoint.layout} format",
                *(
                    f"  {self.target / part}.safetensors: {count} tensors"
                    for part, count in zip(MODEL_PARTS, counts, strict=True)
                ),
                f"  {self.nbytes / 1e9:.2f} GB; {len(self.plan.unused)} tensors left out: "
                f"{', '.join(self.plan.unused) or 'none'}",
            ]
        )


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    half: bool = False,
    dry_run: bool = False,
    architecture: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Convert a model to Refiners' format: a folder with `unet`, `lda` and `clip_text_encoder.safetensors`.

    The folder appears when it is complete: until then it is called `<target>.part`, and it goes away on any error.

    Args:
        source: Anything that `load_model` takes, but for the embedded model.
        target: The folder to write; it must not exist, or be empty.
        half: Store the weights in float16; otherwise they keep their type.
        dry_run: Check everything and write nothing.
        architecture: Refuse any other: `"Stable Diffusion XL"` or `"Stable Diffusion 1.5"`.
        progress: Called with the bytes written and the bytes in all, after each tensor.

    Returns:
        What was done, or would be.

    Raises:
        CheckpointError: If the source cannot be loaded, or the target cannot be written.
    """
    target = expand_home(target)
    if str(source) == "mini":
        raise CheckpointError("mini: the embedded model is in Refiners' format already")
    checkpoint = open_checkpoint(source, prefer_half=half)
    if architecture not in (None, checkpoint.architecture.name):
        raise CheckpointError(f"{checkpoint.path}: {checkpoint.architecture.name}; expected {architecture}")
    plan = make_plan(checkpoint, checkpoint.architecture.build())
    conversion = Conversion(checkpoint=checkpoint, target=target, plan=plan, half=half)
    _check_target(conversion)
    if not dry_run:
        _write(conversion, progress or (lambda done, total: None))
    return conversion


def _check_target(conversion: Conversion) -> None:
    target = conversion.target
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(f"{target}: exists already; expected a new folder")
    if target.is_symlink() or (target.is_dir() and (os.path.ismount(target) or target.samefile(Path.cwd()))):
        raise CheckpointError(f"{target}: a link, a disk or the present folder; expected a new one")
    part_folder, source = _part_folder(target).resolve(), conversion.checkpoint.path.resolve()
    if part_folder in (source, *source.parents):
        raise CheckpointError(f"{target}: {part_folder} holds the source; expected another folder")
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(f"{target}: {parent} is not a folder that can be written")
    free = shutil.disk_usage(parent).free
    if free < conversion.nbytes:
        raise CheckpointError(
            f"{target}: the disk is too full: {conversion.nbytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        )


def _write(conversion: Conversion, progress: Callable[[int, int], None]) -> None:
    checkpoint = conversion.checkpoint
    done, total = 0, conversion.nbytes

    def read(weight: Weight) -> Tensor:
        nonlocal done
        values = weight.tensor(lambda stored: stored.read())
        converted = values.to(dtype=conversion.dtype(weight))
        if not converted.isfinite().all():
            is_damaged = not values.isfinite().all()
            reason = "holds NaN or infinity" if is_damaged else "exceeds the range of float16; convert without it"
            raise CheckpointError(f"{weight.stored.path}: {weight.stored.key!r} {reason}")
        done += converted.nbytes
        progress(done, total)
        return converted

    metadata = {
        "architecture": checkpoint.architecture.name,
        "source": checkpoint.name.encode(errors="replace").decode(),  # names of files may hold bytes that are no text
        "sha256": json.dumps({_relative(file, checkpoint.path): _sha256(file) for file in checkpoint.files}),
        "options": json.dumps({"half": conversion.half}),
        "settings": json.dumps(checkpoint.settings),
        "converter": f"style-aligned {versions()['style-aligned']}",
    }
    part_folder = _part_folder(conversion.target)
    _remove(part_folder)  # of a conversion that was killed
    created = [folder for folder in part_folder.parents if not folder.exists()]
    try:
        part_folder.mkdir(parents=True)
        for part in MODEL_PARTS:
            weights = {weight.part_key: weight for weight in conversion.plan.weights if weight.part == part}
            write_safetensors(
                part_folder / f"{part}.safetensors",
                entries=[(key, conversion.dtype(weight), weight.shape) for key, weight in weights.items()],
                tensor=lambda key, weights=weights: read(weights[key]),
                metadata=metadata,
            )
        if conversion.target.exists():
            conversion.target.rmdir()  # it is empty; Windows replaces no folders
        part_folder.replace(conversion.target)
    except BaseException as error:  # an interruption too
        _remove(part_folder)
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(f"{conversion.target}: cannot be written: {error}") from error
        raise


def _part_folder(target: Path) -> Path:
    """Where a conversion writes until it is complete."""
    return target.with_name(f"{target.name}.part")


def _remove(part_folder: Path) -> None:
    """Remove what a conversion writes, and nothing else."""
    for part in MODEL_PARTS:
        (part_folder / f"{part}.safetensors").unlink(missing_ok=True)
    if part_folder.exists():
        try:
            part_folder.rmdir()
        except OSError as error:
            raise CheckpointError(f"{part_folder}: in the way, and not of a conversion: {error}") from error


def _relative(file: Path, path: Path) -> str:
    return file.relative_to(path).as_posix() if path.is_dir() else file.name


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
