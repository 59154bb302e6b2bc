"""Which tensor becomes which weight, checked in full before the first one is read."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from torch import Tensor, dtype as DType

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import FLOAT8, FLOATS, StoredTensor
from style_aligned.models.checkpoints.sources import Checkpoint
from style_aligned.models.checkpoints.text_keys import Source

logger = logging.getLogger(__name__)

PART_NAMES = {"unet": "U-Net", "lda": "autoencoder", "clip_text_encoder": "text encoder"}
MODEL_PARTS = tuple(PART_NAMES)
SMALLER_BY = 20  # tensors: a block of a transformer, which distilled models have fewer of


@dataclass(frozen=True)
class Weight:
    """A weight of the model, and where it comes from.

    Attributes:
        key: Its key in the model's state dict.
        shape: Its shape there.
        stored: The tensor on disk.
        source: Which part of that tensor it is.
    """

    key: str
    shape: tuple[int, ...]
    stored: StoredTensor
    source: Source

    @property
    def dtype(self) -> DType:
        """The type of its numbers: layers can be in the types of the files, but for those of eight bits."""
        if self.stored.dtype not in FLOAT8:
            return self.stored.dtype
        return torch.float16 if self.stored.scale is None else torch.float32

    @property
    def part(self) -> str:
        """The part of the model: `"unet"`, `"lda"` or `"clip_text_encoder"`."""
        return self.key.partition(".")[0]

    @property
    def part_key(self) -> str:
        """The key in the state dict of the part."""
        return self.key.partition(".")[2]

    def tensor(self, read: Callable[[StoredTensor], Tensor]) -> Tensor:
        """Read the weight, of its `dtype`.

        Args:
            read: Gives a stored tensor; the weight is a view of it wherever it can be.
        """
        values = read(self.stored).to(dtype=self.dtype)
        if self.stored.scale is not None:
            scale = read(self.stored.scale).to(dtype=self.dtype).flatten()
            values = values * scale.reshape(-1, *[1] * (values.ndim - 1))
        if self.source.third is not None:
            values = values.chunk(3)[self.source.third]
        if self.source.transposed:
            values = values.T.contiguous()
        return values.reshape(self.shape)


@dataclass(frozen=True)
class Plan:
    """What to do with every tensor of a checkpoint.

    Attributes:
        weights: The weights of the model, all of them.
        unused: The keys of the tensors that are left out on purpose.
    """

    weights: list[Weight]
    unused: list[str]


def make_plan(checkpoint: Checkpoint, model: StableDiffusion_XL | StableDiffusion_1) -> Plan:
    """Assign every tensor of a checkpoint to the weights of a model.

    Args:
        checkpoint: The checkpoint.
        model: The model, which may be on the meta device.

    Raises:
        CheckpointError: If a tensor is missing, left over, of another shape, or holds no floating-point numbers.
    """
    targets = {
        f"{part}.{key}": tuple(value.shape)
        for part in MODEL_PARTS
        for key, value in getattr(model, part).state_dict().items()
    }
    architecture = checkpoint.architecture
    sources = architecture.sources(targets, checkpoint.layout, checkpoint.tensors)
    _check_complete(checkpoint, sources)
    used = {source.key for source in sources.values()}
    others = [key for key in checkpoint.tensors if key not in used]
    unused = [key for key in others if architecture.is_unused(key)]
    extra = [key for key in others if not architecture.is_unused(key)]
    if extra:
        raise CheckpointError(
            f"{checkpoint.where(extra[0])}: the tensor {extra[0]!r} has no place in "
            f"{architecture.name}{_and_more(extra)}"
        )
    weights = [
        Weight(key=key, shape=shape, stored=checkpoint.tensors[sources[key].key], source=sources[key])
        for key, shape in targets.items()
    ]
    for weight in weights:
        _check(weight)
    if unused:
        logger.info("%s: left out, as no model needs it: %s", checkpoint.path, ", ".join(unused))
    return Plan(weights=weights, unused=unused)


def _check_complete(checkpoint: Checkpoint, sources: dict[str, Source]) -> None:
    """Check that there is a tensor for each weight, or else say what is there and what is missing."""
    missing: dict[str, list[str]] = {part: [] for part in MODEL_PARTS}
    counts = dict.fromkeys(MODEL_PARTS, 0)
    for target, source in sources.items():
        part = target.partition(".")[0]
        counts[part] += 1
        if source.key not in checkpoint.tensors:
            missing[part].append(source.key)
    keys = [key for part in MODEL_PARTS for key in missing[part]]
    if not keys:
        return
    absent = [part for part in MODEL_PARTS if len(missing[part]) == counts[part]]
    if absent:
        there = [PART_NAMES[part] for part in MODEL_PARTS if part not in absent]
        has = f"it has {' and '.join(f'the {name}' for name in there)} of {checkpoint.architecture.name}"
        lacks = " and ".join(f"no {PART_NAMES[part]}" for part in absent)
        remedy = "give one with --vae, or load_model(vae=…)" if absent == ["lda"] else "expected a complete model"
        raise CheckpointError(f"{checkpoint.path}: {has}, but {lacks} (such as {missing[absent[0]][0]!r}): {remedy}")
    where, what = checkpoint.where(keys[0]), f"the tensor {keys[0]!r} is missing{_and_more(keys)}"
    used = {source.key for source in sources.values()}
    others = [key for key in checkpoint.tensors if key not in used and not checkpoint.architecture.is_unused(key)]
    if len(missing["unet"]) == len(keys) >= SMALLER_BY and not others:
        raise CheckpointError(
            f"{where}: {what}; this is a smaller U-Net that was distilled from {checkpoint.architecture.name} (such as"
            " SSD-1B or Segmind-Vega), which Refiners has not"
        )
    raise CheckpointError(f"{where}: {what}; this is no complete {checkpoint.architecture.name}")


def _check(weight: Weight) -> None:
    stored, shape = weight.stored, weight.stored.shape
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"{stored.path}: {stored.key!r} holds {str(stored.dtype).removeprefix('torch.')} numbers; quantised "
            "weights are not supported"
        )
    if weight.source.transposed:
        shape = shape[::-1]
    expected = weight.shape
    if weight.source.third is not None:
        expected = (3 * expected[0], *expected[1:])
    scale = stored.scale
    if scale is not None and (scale.dtype not in FLOATS or math.prod(scale.shape) not in (1, stored.shape[0])):
        raise CheckpointError(
            f"{scale.path}: {scale.key!r} has shape {scale.shape}; expected one number, or one for each of"
            f" {stored.shape[0]} rows of {stored.key!r}"
        )
    # a linear layer and a convolution by one pixel are the same, so either may be stored for the other
    is_same = shape == expected or (len(shape) != len(expected) and _trim(shape) == _trim(expected))
    if not is_same:
        raise CheckpointError(
            f"{stored.path}: {stored.key!r} has shape {stored.shape}, which does not fit {weight.key!r} of shape "
            f"{weight.shape}"
        )


def _trim(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _and_more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
