"""What the targets need of their references, recorded in one pass and replayed in others."""

from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Size, Tensor, device as Device

from style_aligned.adapter.layers import center


class ReferenceBank:
    """The references' features at each site of a model, for one step.

    A pass on the references alone records them, passes on targets alone replay them: see
    [`StyleAlignedAdapter.record`][style_aligned.adapter.StyleAlignedAdapter.record].

    Attributes:
        device: Where the features are kept. None means where they are computed.
        latents_shape: The shape of the references' latents. None means that nothing was recorded.
        options: The options of the adapter that has recorded them.
        target: Its target, of which keys and values are.
    """

    def __init__(self, device: Device | str | None = None) -> None:
        """Initialize the ReferenceBank.

        Args:
            device: Where to keep the features, such as `"cpu"` to spare the memory of a GPU. None leaves them where
                they are computed.
        """
        self.device = None if device is None else Device(device)
        self.latents_shape: Size | None = None
        self.options: dict[str, Any] | None = None
        self.target: ref[fl.Chain] | None = None
        self._features: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._features)

    @property
    def nbytes(self) -> int:
        """The memory that the features take, in bytes."""
        return sum(features.nbytes for features in self._features.values())

    def start(self, target: fl.Chain, options: dict[str, Any]) -> None:
        """Forget what was recorded, and remember what is going to record.

        Args:
            target: The target of the adapter.
            options: The options of the adapter that decide on what is recorded.
        """
        self.clear()
        self.target = ref(target)
        self.options = options

    def check_recorded(self, target: fl.Chain, options: dict[str, Any]) -> None:
        """Check that what was recorded can be replayed.

        Args:
            target: The target of the adapter.
            options: The options of the adapter that decide on what is recorded.

        Raises:
            ValueError: If another target or other options have recorded it. A bank that is empty passes.
        """
        if self.target is not None and self.target() is not target:
            raise ValueError("expected a bank that was recorded with this target, got one of another")
        if self.options is not None and self.options != options:
            differing = ", ".join(name for name in options if self.options[name] != options[name])
            raise ValueError(f"expected a bank that was recorded with the same options, got one with other {differing}")

    def check_targets(self, x: Float[Tensor, "rows channels height width"]) -> None:
        """Check that targets fit the references that were recorded.

        Args:
            x: The latents of the targets.

        Raises:
            ValueError: If they do not, or nothing was recorded.
        """
        if self.latents_shape is None:
            raise ValueError("expected a bank that has recorded its references, got an empty one")
        rows, *shape = self.latents_shape
        if list(x.shape[1:]) != shape or len(x) == 0 or len(x) % rows != 0:
            raise ValueError(
                f"got targets of shape {tuple(x.shape)}, expected a multiple of {rows} rows of shape {tuple(shape)},"
                " as the references that were recorded"
            )

    def clear(self) -> None:
        """Forget what was recorded."""
        self.latents_shape = None
        self.options = None
        self.target = None
        self._features.clear()

    def store(self, key: str, features: Tensor) -> None:
        """Keep the features of the references at one site, in place of those of the step before.

        Args:
            key: The name of the site.
            features: The features.
        """
        self._features[key] = features if self.device is None else features.to(device=self.device)

    def fetch(self, key: str, device: Device) -> Tensor:
        """Give the features of the references at one site.

        Args:
            key: The name of the site.
            device: Where they are needed.

        Raises:
            ValueError: If nothing was recorded there.
        """
        if key not in self._features:
            raise ValueError(f"expected a bank that has recorded {key}, got one of {len(self)} sites without it")
        return self._features[key].to(device=device)


class RecordReferences(fl.Module):
    """Record the features of references, and pass them on.

    Receives:
        references (Float[Tensor, "groups tokens dim"]): The features of the references.

    Returns:
        references (Float[Tensor, "groups tokens dim"]): The same.
    """

    bank: ReferenceBank | None = None

    def __init__(self, key: str, moments_only: bool = False) -> None:
        """Initialize the RecordReferences layer.

        Args:
            key: The name of the site in the bank.
            moments_only: Whether mean and deviation over the tokens are all that is needed.
        """
        super().__init__()
        self.key = key
        self.moments_only = moments_only

    def forward(self, references: Float[Tensor, "groups tokens dim"]) -> Float[Tensor, "groups tokens dim"]:
        assert self.bank is not None
        self.bank.store(self.key, summarize(references) if self.moments_only else references)
        return references


class ReplayReferences(fl.Module):
    """Give the recorded features of the references, in place of `GetReferences`.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of the targets, of which as many consecutive rows
            follow each reference, or other features of the references.

    Returns:
        references (Float[Tensor, "groups reference_tokens dim"]): The features of the references.

    Raises:
        ValueError: If nothing was recorded, or the targets are no multiple of the references.
    """

    bank: ReferenceBank | None = None

    def __init__(self, key: str) -> None:
        """Initialize the ReplayReferences layer.

        Args:
            key: The name of the site in the bank.
        """
        super().__init__()
        self.key = key

    def forward(self, features: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "groups reference_tokens dim"]:
        assert self.bank is not None
        references = self.bank.fetch(self.key, device=features.device)
        if len(features) == 0 or len(features) % len(references) != 0:
            raise ValueError(
                f"got a batch of {len(features)} targets, expected a multiple of the {len(references)} rows that were"
                " recorded"
            )
        return references


def summarize(x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows 2 dim"]:
    """Give the two tokens that have the mean and the (unbiased) deviation of all of them, in float32 or better."""
    _, mean, variance = center(x)
    distance = (variance / 2).sqrt()
    return torch.cat((mean - distance, mean + distance), dim=-2)
