"""Group normalization that is shared with the reference."""

from typing import NoReturn

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Tensor

from style_aligned.adapter.reference_bank import Mask, References
from style_aligned.adapter.sharing import get_sharing, refuse_copy


class GroupNorm(fl.GroupNorm, fl.ContextModule):
    """Group normalization with statistics over a target and its reference together.

    It stands in place of a `fl.GroupNorm`, with its name and its parameters. Google's `share_group_norm` concatenates
    the two images to take their common statistics; these follow from the moments of each, and so the two need not be of
    one size. The reference counts `strength` times.

    Receives:
        x (Float[Tensor, "rows channels *size"]): The features.

    Returns:
        (Float[Tensor, "rows channels *size"]): The normalized features.
    """

    def __init__(self, target: fl.GroupNorm, place: str) -> None:
        """Initialize the GroupNorm layer.

        Args:
            target: The normalization to share.
            place: The name under which the references are recorded.
        """
        super().__init__(channels=target.channels, num_groups=target.num_groups, eps=target.eps, device="meta")
        self.weight, self.bias = target.weight, target.bias
        self.place = place
        self._target = [target]

    def eject(self) -> None:
        """Put the original normalization back, with the parameters of now: others may have been loaded."""
        (target,) = self._target
        target.weight, target.bias = self.weight, self.bias
        self.ensure_parent.replace(self, target)

    def structural_copy(self) -> NoReturn:
        """Refuse to be copied: a copy of the model would share nothing.

        Raises:
            RuntimeError: Always.
        """
        refuse_copy()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "rows channels *size"]
    ) -> Float[Tensor, "rows channels *size"]:
        sharing = get_sharing(self)
        if sharing.is_plain(x.shape[0], self.place):
            return super().forward(x)
        if sharing.options.halves == "both":
            return self.share(x)
        negative, positive = x.chunk(2)
        return torch.cat((super().forward(negative), self.share(positive)))

    def share(self, x: Float[Tensor, "rows channels *size"]) -> Float[Tensor, "rows channels *size"]:
        """Normalize the rows of those guidance halves that share.

        Args:
            x: The features.
        """
        sharing = get_sharing(self)
        if sharing.mode.name == "replay":
            references = sharing.fetch(self.place, x)
        else:
            references = self.moments(x[:: sharing.shared_group_size(x.shape[0])], sharing.mask_here)
            sharing.record(self.place, references)
        own, targets = sharing.split(x, references.groups)
        if targets.shape[1] == 0:
            return super().forward(x)
        own = super().forward(own.flatten(start_dim=0, end_dim=1)).reshape(own.shape)
        return sharing.join(own, self.normalize(targets, references))

    def moments(self, x: Float[Tensor, "rows channels *size"], mask: Mask | None) -> References:
        """Take the moments of each row, in float32 or better.

        Args:
            x: The features.
            mask: Which part of them counts.

        Returns:
            The mean and the variance, of shape (rows, 1, num_groups).
        """
        grouped = self._group(x)
        if mask is None:
            mean = grouped.mean(dim=-1, keepdim=True)
            variance = (grouped - mean).square().mean(dim=-1, keepdim=True)
        else:
            pixels = x[0, 0].numel()
            weights = mask.of_tokens(pixels, grouped).repeat(grouped.shape[-1] // pixels)
            shares = weights / weights.sum()
            mean = (shares * grouped).sum(dim=-1, keepdim=True)
            variance = (shares * (grouped - mean).square()).sum(dim=-1, keepdim=True)
        return References(mean=mean.transpose(1, 2), variance=variance.transpose(1, 2))

    def normalize(
        self, x: Float[Tensor, "groups targets channels *size"], references: References
    ) -> Float[Tensor, "groups targets channels *size"]:
        """Normalize the targets with the statistics that they have in common with their references.

        Args:
            x: The features of the targets.
            references: The moments of the references.
        """
        assert references.mean is not None
        assert references.variance is not None
        rows = x.flatten(start_dim=0, end_dim=1)
        grouped = self._group(rows)  # (rows, num_groups, elements)
        mean = grouped.mean(dim=-1, keepdim=True)
        centered = grouped - mean
        variance = centered.square().mean(dim=-1, keepdim=True)
        reference_mean, reference_variance = (
            moment.transpose(1, 2).repeat_interleave(x.shape[1], dim=0)
            for moment in (references.mean, references.variance)
        )

        # the variance of the two together is the mean of theirs, and what the distance of their means adds
        sharing = get_sharing(self)
        strength = sharing.strength_at(self.place) * sharing.mask_weight()
        part = strength / (1 + strength)
        distance = mean - reference_mean
        pooled = variance.lerp(reference_variance, part) + part * (1 - part) * distance.square()
        # as factor and summand of each channel, which takes a single pass over the features
        weight, bias = (
            parameter.to(dtype=grouped.dtype).reshape(self.num_groups, -1) for parameter in (self.weight, self.bias)
        )
        factor = weight / (pooled + self.eps).sqrt()  # (rows, num_groups, channels of each)
        summand = bias + part * distance * factor
        shape = (*rows.shape[:2], *(1 for _ in rows.shape[2:]))
        normalized = torch.addcmul(summand.reshape(shape), centered.reshape(rows.shape), factor.reshape(shape))
        return normalized.to(dtype=x.dtype).reshape(x.shape)

    def _group(self, x: Tensor) -> Tensor:
        # statistics in float32 and by sums: `torch.var_mean` takes eight times as long on the CPU
        grouped = x.reshape(x.shape[0], self.num_groups, -1)
        return grouped.to(dtype=torch.promote_types(x.dtype, torch.float32))
