"""What the targets need of their references: taken from the batch, or recorded in one pass and replayed in others."""

from collections.abc import Sequence
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
        mask: Which part of the references gives the style.
    """

    def __init__(self, device: Device | str | None = None) -> None:
        """Initialize the ReferenceBank.

        Args:
            device: Where to keep what is recorded, such as `"cpu"` to spare the memory of a GPU. None leaves it where
                it is computed.
        """
        self.device = None if device is None else Device(device)
        self.latents_shape: Size | None = None
        self.mask: Mask | None = None
        self._target: ref[fl.Chain] | None = None
        self._options: dict[str, Any] = {}
        self._references: dict[str, References] = {}

    def __len__(self) -> int:
        return len(self._references)

    @property
    def nbytes(self) -> int:
        """The memory that it takes, in bytes."""
        return sum(x.nbytes for references in self._references.values() for x in references.tensors.values())

    @property
    def groups(self) -> int:
        """The number of references: rows of the batch that was recorded, or those of them that share."""
        return next((references.groups for references in self._references.values()), 0)

    def clear(self) -> None:
        """Forget what was recorded."""
        self.latents_shape = None
        self.mask = None
        self._target = None
        self._references.clear()

    def start(self, target: fl.Chain, options: dict[str, Any], mask: "Mask | None" = None) -> None:
        """Forget what was recorded, and remember what is going to record.

        Args:
            target: The target of the adapter.
            options: The options of the adapter that decide on what is recorded.
            mask: Which part of the references gives the style.
        """
        self.clear()
        self.mask = mask
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

    def count_tokens(self, place: str) -> int:
        """Return the number of tokens that were recorded at a place."""
        tokens = self._references[place].tokens
        assert tokens is not None
        return tokens.shape[1]

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
            raise ValueError(
                f"expected a bank that has recorded {place}, got one of {len(self)} places without it: record the"
                " references again, with the options of now"
            )
        references = self._references[place].to(None if self.device is None else features.device)
        rows, groups = features.shape[0], references.groups
        if rows == 0 or rows % groups != 0:
            raise ValueError(
                f"got a batch of {rows} targets, expected a multiple of the {groups} rows that were recorded"
            )
        return references


class Mask:
    """Which part of the references gives the style.

    Attributes:
        weights: The weight of each part of the picture, between 0 and 1.
        mean: The mean weight.
        latents_size: The height and width of the latents. None means those of the mask.
    """

    def __init__(self, weights: Float[Tensor, "height width"]) -> None:
        """Initialize the Mask.

        Args:
            weights: The weight of each part of the picture, between 0 and 1.
        """
        self.weights = weights.detach().float().cpu()
        self.mean = float(self.weights.mean())
        self.latents_size: tuple[int, int] | None = None
        self._of_tokens: dict[int, Tensor] = {}

    def fit(self, height: int, width: int) -> None:
        """Have the mask fit latents of a size."""
        if self.latents_size != (height, width):
            self.latents_size = height, width
            self._of_tokens.clear()

    def of_tokens(self, tokens: int, like: Tensor) -> Float[Tensor, "tokens"]:
        """Return the weight of each token of a layer: the mean over its area.

        Args:
            tokens: The number of tokens, whatever the resolution of the layer is.
            like: A tensor of the device that is needed. Weights are in float32 or better.

        Raises:
            ValueError: If the latents have no such resolution.
        """
        if tokens not in self._of_tokens:
            height, width = self.latents_size or self.weights.shape
            sizes = [(-(-height // scale), -(-width // scale)) for scale in (1, 2, 4, 8, 16, 32, 64)]
            size = next((size for size in sizes if size[0] * size[1] == tokens), None)
            if size is None:
                raise ValueError(f"expected layers at a resolution of latents of {height}x{width}, got {tokens} tokens")
            pooled = torch.nn.functional.adaptive_avg_pool2d(self.weights[None], size)
            dtype = torch.promote_types(like.dtype, torch.float32)
            self._of_tokens[tokens] = pooled.flatten().to(device=like.device, dtype=dtype)
        return self._of_tokens[tokens]


def moments(
    x: Float[Tensor, "*batch tokens dim"], weights: Float[Tensor, "tokens"] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance over the tokens, in float32 or better.

    Args:
        x: The features.
        weights: How much each token counts. None counts all alike.

    Returns:
        The mean and the variance, of shape (*batch, 1, dim). The variance of a single token is 0.
    """
    # Sums, since `torch.var_mean` over this axis takes ten times as long on the CPU.
    x = x.to(dtype=torch.promote_types(x.dtype, torch.float32))
    tokens = x.shape[-2]
    if weights is None:
        mean = x.mean(dim=-2, keepdim=True)
        return mean, (x - mean).square().sum(dim=-2, keepdim=True) / max(tokens - 1, 1)
    shares = (weights / weights.sum()).unsqueeze(dim=-1).to(dtype=x.dtype)
    mean = (shares * x).sum(dim=-2, keepdim=True)
    return mean, (shares * (x - mean).square()).sum(dim=-2, keepdim=True) * (tokens / max(tokens - 1, 1))


def mix(references: Sequence[References], shares: Sequence[float]) -> References:
    """Return several references as one: their tokens side by side, and the moments of their mixture.

    Args:
        references: The references.
        shares: What each of them counts for, summing up to 1.
    """
    if len(references) == 1:
        return references[0]
    tokens = [reference.tokens for reference in references if reference.tokens is not None]
    means = [reference.mean for reference in references if reference.mean is not None]
    variances = [reference.variance for reference in references if reference.variance is not None]
    mean = variance = None
    if means:
        mean = torch.stack([share * one for share, one in zip(shares, means, strict=True)]).sum(dim=0)
        parts = zip(shares, means, variances, strict=True)
        variance = torch.stack([share * (own + (one - mean).square()) for share, one, own in parts]).sum(dim=0)
    return References(torch.cat(tokens, dim=1) if tokens else None, mean, variance)
