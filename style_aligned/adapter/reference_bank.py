"""What the targets need of their references: taken from the batch, or recorded in one pass and replayed in others."""

from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Size, Tensor, device as Device


@dataclass(frozen=True, eq=False)
class References:
    """What is known of the features of the references at one place of a model.

    Attributes:
        tokens: The features. None where the targets do not attend to them.
        mean: Their mean over the tokens, in float32 or better. None where nothing is normalized to it.
        variance: Their unbiased variance over the tokens.
    """

    tokens: Float[Tensor, "groups reference_tokens dim"] | None = None
    mean: Float[Tensor, "groups 1 dim"] | None = None
    variance: Float[Tensor, "groups 1 dim"] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @property
    def groups(self) -> int:
        """The number of groups, each with a reference."""
        return next(iter(self.tensors.values())).shape[0]

    def to(self, device: Device | None) -> "References":
        """Return the same on a device. None means where they are."""
        return self if device is None else replace(self, **{k: x.to(device=device) for k, x in self.tensors.items()})


class ReferenceBank:
    """What the targets need of their references at each place of a model, for one step.

    A pass on the references alone records it, passes on targets alone replay it: see
    [`StyleAlignedAdapter.record`][style_aligned.adapter.StyleAlignedAdapter.record].

    Attributes:
        device: Where it is kept. None means where it is computed.
        latents_shape: The shape of the references' latents. None means that no U-Net has recorded.
    """

    def __init__(self, device: Device | str | None = None) -> None:
        """Initialize the ReferenceBank.

        Args:
            device: Where to keep what is recorded, such as `"cpu"` to spare the memory of a GPU. None leaves it where
                it is computed.
        """
        self.device = None if device is None else Device(device)
        self.latents_shape: Size | None = None
        self._target: ref[fl.Chain] | None = None
        self._options: dict[str, Any] = {}
        self._references: dict[str, References] = {}

    def __len__(self) -> int:
        return len(self._references)

    @property
    def nbytes(self) -> int:
        """The memory that it takes, in bytes."""
        return sum(x.nbytes for references in self._references.values() for x in references.tensors.values())

    def clear(self) -> None:
        """Forget what was recorded."""
        self.latents_shape = None
        self._target = None
        self._references.clear()

    def start(self, target: fl.Chain, options: dict[str, Any]) -> None:
        """Forget what was recorded, and remember what is going to record.

        Args:
            target: The target of the adapter.
            options: The options of the adapter that decide on what is recorded.
        """
        self.clear()
        self._target = ref(target)
        self._options = dict(options)  # the adapter's own may change later

    def check_recorded(self, target: fl.Chain, options: dict[str, Any]) -> None:
        """Check that what was recorded can be replayed.

        Args:
            target: The target of the adapter.
            options: The options of the adapter that decide on what is recorded.

        Raises:
            ValueError: If nothing was recorded, or another target or other options have recorded it.
        """
        if self._target is None:
            raise ValueError("expected a bank that has recorded its references, got an empty one")
        if self._target() is not target:
            raise ValueError("expected a bank that was recorded with this target, got one of another")
        if differing := [name for name, value in options.items() if self._options[name] != value]:
            names = ", ".join(differing)
            raise ValueError(f"expected a bank that was recorded with the same options, got one with other {names}")

    def check_targets(self, x: Float[Tensor, "rows channels height width"]) -> None:
        """Check that targets fit the references that were recorded. They may be of another size.

        Args:
            x: The latents of the targets.

        Raises:
            ValueError: If they do not, or nothing was recorded.
        """
        if self.latents_shape is None:
            raise ValueError("expected a bank that has recorded its references, got an empty one")
        rows, channels = self.latents_shape[:2]
        if x.shape[1] != channels or len(x) == 0 or len(x) % rows != 0:
            raise ValueError(
                f"got targets of shape {tuple(x.shape)}, expected a multiple of {rows} rows of {channels} channels, as"
                " the references that were recorded"
            )

    def store(self, place: str, references: References) -> None:
        """Keep what there is of the references at one place.

        Args:
            place: The name of the place.
            references: What is kept.
        """
        self._references[place] = references.to(self.device)

    def fetch(self, place: str, features: Tensor) -> References:
        """Return what was recorded at one place.

        Args:
            place: The name of the place.
            features: The features of the targets, of which as many consecutive rows follow each reference.

        Raises:
            ValueError: If nothing was recorded there, or the targets are no multiple of the references.
        """
        if place not in self._references:
            raise ValueError(f"expected a bank that has recorded {place}, got one of {len(self)} places without it")
        references = self._references[place].to(None if self.device is None else features.device)
        rows, groups = features.shape[0], references.groups
        if rows == 0 or rows % groups != 0:
            raise ValueError(
                f"got a batch of {rows} targets, expected a multiple of the {groups} rows that were recorded"
            )
        return references


def moments(x: Float[Tensor, "*batch tokens dim"]) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance over the tokens, in float32 or better.

    Args:
        x: The features.

    Returns:
        The mean and the variance, of shape (*batch, 1, dim). The variance of a single token is 0.
    """
    # Sums, since `torch.var_mean` over this axis takes ten times as long on the CPU.
    x = x.to(dtype=torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dim=-2, keepdim=True)
    return mean, (x - mean).square().sum(dim=-2, keepdim=True) / max(x.shape[-2] - 1, 1)
