"""The maths of StyleAligned: small stateless layers, and the chain that they compose.

See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133), and the
article of Refiners' authors, <https://blog.finegrain.ai/posts/implementing-style-aligned/>. Which rows are references,
and how much they count, the layers find in their context: see [`Sharing`][style_aligned.adapter.sharing.Sharing].
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Tensor
from torch.nn.functional import batch_norm

from style_aligned.adapter.reference_bank import References, moments
from style_aligned.adapter.sharing import get_sharing


class GetReferences(fl.ContextModule):
    """Get the references: the first row of each group, or what was recorded of them.

    This is `expand_first` of [Google's implementation](https://github.com/google/style-aligned), without the expansion:
    whatever is computed of a reference is computed once a group.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features.

    Returns:
        references (References): Tokens and moments of the references, as far as they are needed.

    Raises:
        ValueError: If the features are not of rank 3, or their rows cannot be split into groups.
    """

    def __init__(self, place: str, adain: bool = True, share: bool = True) -> None:
        """Initialize the GetReferences layer.

        Args:
            place: The name under which they are recorded.
            adain: Whether their moments are needed.
            share: Whether their tokens are needed.
        """
        super().__init__()
        self.place = place
        self.adain = adain
        self.share = share

    def forward(self, features: Float[Tensor, "rows *size"]) -> References:
        if features.ndim != 3:
            raise ValueError(
                "expected features of rank 3 (rows, tokens, dim), got a tensor of"
                f" rank {features.ndim} and shape {tuple(features.shape)}"
            )
        sharing = get_sharing(self)
        if sharing.mode.name == "replay":
            return sharing.fetch(self.place, features)
        tokens = features[:: sharing.shared_group_size(features.shape[0])]
        mask, (mean, variance) = sharing.mask_here, (None, None)
        if self.adain:
            mean, variance = moments(tokens, None if mask is None else mask.of_tokens(tokens.shape[1], tokens))
        return sharing.record(self.place, References(tokens if self.share else None, mean, variance))


class AdaIn(fl.ContextModule):
    """Give the features of each target the mean and the deviation of its reference's, channel by channel.

    See [[arXiv:1703.06868] Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization](https://arxiv.org/abs/1703.06868).
    The deviation is Google's, `sqrt(unbiased variance + epsilon)`. Statistics are taken in float32, whatever the
    precision of the features. At a strength below 1 the result is that far on the way from the features to the
    normalized ones. References are left as they are, bit for bit.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features to normalize.
        references (References): The moments of the references.

    Returns:
        features (Float[Tensor, "rows tokens dim"]): The normalized features.
        references (References): The references (unchanged).
    """

    def __init__(self, place: str, epsilon: float = 1e-5) -> None:
        """Initialize the AdaIn layer.

        Args:
            place: The name of the place, which may have a strength of its own.
            epsilon: What is added to the variance, so that constant channels do not divide by zero.
        """
        super().__init__()
        self._place = place
        self.epsilon = epsilon

    def forward(
        self, features: Float[Tensor, "rows tokens dim"], references: References
    ) -> tuple[Float[Tensor, "rows tokens dim"], References]:
        sharing = get_sharing(self)
        own, targets = sharing.split(features, references.groups)
        if targets.shape[1] == 0:
            return features, references
        normalized = self.normalize(targets, references)
        if (strength := sharing.strength_at(self._place)) < 1:
            normalized = targets.lerp(normalized, strength)
        return sharing.join(own, normalized), references

    def normalize(
        self, x: Float[Tensor, "groups targets tokens dim"], references: References
    ) -> Float[Tensor, "groups targets tokens dim"]:
        """Normalize the features of the targets.

        Args:
            x: The features.
            references: The moments of the references.
        """
        assert references.mean is not None
        assert references.variance is not None
        groups, targets, tokens, dim = x.shape
        mean = references.mean.unsqueeze(dim=1)
        if tokens == 1:
            return mean.to(dtype=x.dtype).expand_as(x)
        # A batch normalization over the tokens, with a channel for each row and dimension: a single fused pass, which
        # takes half the time of sums on the CPU. It divides by the biased variance, hence the ratio.
        ratio = (tokens - 1) / tokens
        deviation = (ratio * (references.variance.unsqueeze(dim=1) + self.epsilon)).sqrt()
        normalized = batch_norm(
            x.permute(2, 0, 1, 3).reshape(tokens, -1),
            running_mean=None,
            running_var=None,
            weight=deviation.expand(-1, targets, -1, -1).flatten(),
            bias=mean.expand(-1, targets, -1, -1).flatten(),
            training=True,
            eps=self.epsilon * ratio,
        )
        return normalized.reshape(tokens, groups, targets, dim).permute(1, 2, 0, 3)


class ScaleReferences(fl.ContextModule):
    """Scale the tokens of the references, for the targets to attend to them more or less.

    This is `shared_score_scale` of Google's implementation.

    Receives:
        references (References): The references.

    Returns:
        references (References): The references with scaled tokens.
    """

    def forward(self, references: References) -> References:
        scale = get_sharing(self).options.scale
        assert references.tokens is not None
        return references if scale == 1 else replace(references, tokens=references.tokens * scale)


class ShareReferences(fl.ContextModule):
    """Append the tokens of its reference to those of each row.

    This is `concat_first` of Google's implementation. Where there are no targets, nothing is appended.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features.
        references (References): The references. They may have more or fewer tokens than the features.

    Returns:
        shared_features (Float[Tensor, "rows tokens+reference_tokens dim"]): The concatenated features.
    """

    def forward(
        self, features: Float[Tensor, "rows tokens dim"], references: References
    ) -> Float[Tensor, "rows shared_tokens dim"]:
        if get_sharing(self).mode.name == "record":
            return features
        assert references.tokens is not None
        grouped = features.reshape(references.groups, -1, *features.shape[1:])  # (groups, rows of each, tokens, dim)
        shared = references.tokens.unsqueeze(dim=1).expand(-1, grouped.shape[1], -1, -1)
        return torch.cat((grouped, shared), dim=-2).flatten(start_dim=0, end_dim=1)


class StyleAligned(fl.Chain):
    """Align the queries, the keys or the values of a self-attention with those of the references.

    Three of them stand right before the `ScaledDotProductAttention` of a self-attention, one each for queries, keys and
    values. See figure 4 of [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133).

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.

    Returns:
        features (Float[Tensor, "rows tokens dim"] | Float[Tensor, "rows tokens+reference_tokens dim"]): The aligned
            features, followed by those of the references where they are shared.
    """

    def __init__(self, place: str, adain: bool, share: bool, scale: bool = False) -> None:
        """Initialize the StyleAligned chain.

        Args:
            place: The name under which the references are recorded.
            adain: Whether to give the features the mean and the deviation of their reference's.
            share: Whether to append the features of the reference.
            scale: Whether to scale the appended features.
        """
        self.adain = adain
        self.share = share
        self.scale = scale
        super().__init__(
            # features: (rows, tokens, dim)
            fl.Parallel(
                fl.Identity(),
                GetReferences(place, adain=adain, share=share),
            ),
            # features: (rows, tokens, dim), references: (groups, reference_tokens, dim)
            AdaIn(place),
            fl.Distribute(
                fl.Identity(),
                ScaleReferences(),
            ),
            ShareReferences(),
            # features: (rows, tokens + reference_tokens, dim)
        )

        if not adain:
            self.remove(self.layer("AdaIn", AdaIn))

        if not scale:
            self.remove(self.layer("Distribute", fl.Distribute))

        if not share:
            self.replace(self.layer("ShareReferences", ShareReferences), fl.GetArg(index=0))
