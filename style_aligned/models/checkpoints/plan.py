"""Which tensor becomes which weight, checked in full before the first one is read."""

from collections.abc import Callable
from dataclasses import dataclass

from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from torch import Tensor

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import FLOATS, StoredTensor
from style_aligned.models.checkpoints.sources import Checkpoint
from style_aligned.models.checkpoints.text_keys import Source

MODEL_PARTS = ("unet", "lda", "clip_text_encoder")


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
    def part(self) -> str:
        """The part of the model: `"unet"`, `"lda"` or `"clip_text_encoder"`."""
        return self.key.partition(".")[0]

    @property
    def part_key(self) -> str:
        """The key in the state dict of the part."""
        return self.key.partition(".")[2]

    def tensor(self, read: Callable[[StoredTensor], Tensor]) -> Tensor:
        """Read the weight, of the stored type.

        Args:
            read: Gives a stored tensor; the weight is a view of it wherever it can be.
        """
        values = read(self.stored)
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
    sources = architecture.sources(targets, checkpoint.layout)
    missing = [source.key for source in sources.values() if source.key not in checkpoint.tensors]
    if missing:
        raise CheckpointError(
            f"{checkpoint.where(missing[0])}: the tensor {missing[0]!r} is missing{_and_more(missing)}; "
            f"this is no complete {architecture.name}"
        )
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
    return Plan(weights=weights, unused=unused)


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
