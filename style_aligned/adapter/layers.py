"""The maths of StyleAligned: small stateless layers, and the chain that they compose.

Rows are laid out in *groups* of `set_size` consecutive rows: a group is one guidance half of one set of images, and its
first row is the reference of the others, the targets. See [[arXiv:2312.02133] Style Aligned Image Generation via Shared
Attention](https://arxiv.org/abs/2312.02133).
"""

import torch
from jaxtyping import Float
from refiners.fluxion import layers as fl
from torch import Tensor
from torch.nn.functional import batch_norm

SMALL_ROW = 1 << 15
"""Elements of a row up to which PyTorch's threads cost more than they save on the CPU."""


def group_size(rows: int, set_size: int | None) -> int:
    """Give the number of consecutive rows that make one group.

    Args:
        rows: The number of rows in the batch.
        set_size: The number of images in a set, the reference included. None means that the batch holds the two
            guidance halves of a single set.

    Returns:
        The number of rows in each group.

    Raises:
        ValueError: If the rows cannot be split this way.
    """
    if set_size is None:
        if rows == 0 or rows % 2 != 0:
            raise ValueError(
                f"got a batch of {rows} rows, expected the two guidance halves of one set (an even number):"
                " without classifier-free guidance, or for several sets in one batch, give the adapter a set_size"
            )
        return rows // 2
    if rows == 0 or rows % set_size != 0:
        raise ValueError(f"got a batch of {rows} rows, expected a multiple of set_size={set_size}")
    return set_size


def center(x: Float[Tensor, "rows tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
    """Take the mean over the tokens away from features, in float32 or better.

    Args:
        x: The features.

    Returns:
        The centered features, and their mean and unbiased variance, of shape (rows, 1, dim).
    """
    # Sums, since `torch.std` and `torch.var_mean` over this axis are ten times slower on the CPU.
    promoted = x.to(dtype=torch.promote_types(x.dtype, torch.float32))
    mean = promoted.mean(dim=-2, keepdim=True)
    centered = promoted - mean if promoted is x else promoted.sub_(mean)  # a copy of our own is centered in place
    return centered, mean, centered.square().sum(dim=-2, keepdim=True) / max(x.shape[-2] - 1, 1)


def normalize_rows(
    x: Float[Tensor, "rows tokens dim"],
    mean: Float[Tensor, "1 dim"],
    deviation: Float[Tensor, "1 dim"],
    epsilon: float,
) -> Float[Tensor, "rows tokens dim"]:
    """Give the features of each row a mean and a deviation.

    Args:
        x: The features.
        mean: The mean.
        deviation: The deviation.
        epsilon: What is added to the variance of the features.
    """
    centered, _, variance = center(x)
    return torch.addcmul(mean, centered, deviation / (variance + epsilon).sqrt())


def normalize_row(
    x: Float[Tensor, "tokens dim"], mean: Float[Tensor, "1 dim"], deviation: Float[Tensor, "1 dim"], epsilon: float
) -> Float[Tensor, "tokens dim"]:
    """Give the features of one row a mean and a deviation, as a batch normalization over its tokens.

    On the CPU that takes one fused pass, and no temporary tensors that outgrow the cache. For small features it takes
    longer than the sums do, since it wakes all threads for each row.

    Args:
        x: The features, of two tokens at least.
        mean: The mean.
        deviation: The deviation.
        epsilon: What is added to the variance of the features.
    """
    ratio = (x.shape[0] - 1) / x.shape[0]  # of the biased variance, which it takes, to the unbiased one
    weight = deviation[0] * ratio**0.5
    return batch_norm(x, None, None, weight=weight, bias=mean[0], training=True, eps=epsilon * ratio)


def _rows_of_each(features: Float[Tensor, "rows tokens dim"], references: Float[Tensor, "groups _ dim"]) -> int:
    """Give the number of rows that follow each reference, itself included where it is among them."""
    rows, groups = features.shape[0], references.shape[0]
    if rows == 0 or groups == 0 or rows % groups != 0:
        raise ValueError(f"got features of {rows} rows, expected a multiple of the {groups} references")
    return rows // groups


class GetReferences(fl.Module):
    """Get the reference of each group, the first of its rows.

    This is `expand_first` of [Google's implementation](https://github.com/google/style-aligned), without the expansion:
    whatever is computed on the references is computed once a group.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.

    Returns:
        references (Float[Tensor, "groups tokens dim"]): The features of the references (a view).

    Raises:
        ValueError: If `features` are not of rank 3, or if their rows cannot be split into groups of `set_size`.
    """

    def __init__(self, set_size: int | None = None) -> None:
        """Initialize the GetReferences layer.

        Args:
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
        """
        super().__init__()
        self.set_size = set_size

    def forward(self, features: Float[Tensor, "rows *size"]) -> Float[Tensor, "groups *size"]:
        if features.ndim != 3:
            raise ValueError(
                "expected features of rank 3 (rows, tokens, dim), got a tensor of"
                f" rank {features.ndim} and shape {tuple(features.shape)}"
            )
        return features[:: group_size(features.shape[0], self.set_size)]


class AdaIn(fl.Module):
    """Give the features of each row the mean and the deviation of its reference's, channel by channel.

    See [[arXiv:1703.06868] Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization](https://arxiv.org/abs/1703.06868).
    The deviation is Google's, `sqrt(unbiased variance + epsilon)`. Statistics are taken in float32, whatever the
    precision of the features. Rows that are their own reference are left as they are, bit for bit.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features to normalize.
        references (Float[Tensor, "groups reference_tokens dim"]): The features of the references.

    Returns:
        features (Float[Tensor, "rows tokens dim"]): The normalized features.
        references (Float[Tensor, "groups reference_tokens dim"]): The features of the references (unchanged).

    Raises:
        ValueError: If the rows are no multiple of the references.
    """

    def __init__(self, epsilon: float = 1e-5, references_included: bool = True) -> None:
        """Initialize the AdaIn layer.

        Args:
            epsilon: What is added to the variance, so that constant channels do not divide by zero.
            references_included: Whether the first row of each group is its reference.
        """
        super().__init__()
        self.epsilon = epsilon
        self.references_included = references_included

    def forward(
        self,
        features: Float[Tensor, "rows tokens dim"],
        references: Float[Tensor, "groups reference_tokens dim"],
    ) -> tuple[Float[Tensor, "rows tokens dim"], Float[Tensor, "groups reference_tokens dim"]]:
        set_size = _rows_of_each(features, references)
        _, means, variances = center(references)
        deviations = (variances + self.epsilon).sqrt()
        aligned = torch.empty_like(features)
        for index in range(references.shape[0]):
            start, stop = index * set_size, (index + 1) * set_size
            if self.references_included:
                aligned[start] = references[index]
                start += 1
            mean, deviation = means[index], deviations[index]
            if features.is_cpu and features.shape[-2] > 1 and features[0].numel() > SMALL_ROW:
                for row in range(start, stop):
                    aligned[row] = normalize_row(features[row], mean, deviation, self.epsilon)
            else:
                aligned[start:stop] = normalize_rows(features[start:stop], mean, deviation, self.epsilon)

        return aligned, references


class ScaleReferences(fl.Module):
    """Scale the features of the references, for the targets to attend to them more or less.

    This is `shared_score_scale` of Google's implementation.

    Receives:
        references (Float[Tensor, "groups tokens dim"]): The features of the references.

    Returns:
        references (Float[Tensor, "groups tokens dim"]): The scaled features.
    """

    def __init__(self, scale: float = 1.0) -> None:
        """Initialize the ScaleReferences layer.

        Args:
            scale: The factor. At 1 the features are passed on as they are.
        """
        super().__init__()
        self.scale = scale

    def forward(self, references: Float[Tensor, "groups tokens dim"]) -> Float[Tensor, "groups tokens dim"]:
        return references if self.scale == 1 else references * self.scale


class ShareReferences(fl.Module):
    """Append to the tokens of each row the tokens of its reference.

    This is `concat_first` of Google's implementation.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.
        references (Float[Tensor, "groups tokens dim"]): The features of the references.

    Returns:
        shared_features (Float[Tensor, "rows 2*tokens dim"]): The concatenated features.

    Raises:
        ValueError: If the rows are no multiple of the references, or have more or fewer tokens.
    """

    def forward(
        self,
        features: Float[Tensor, "rows tokens dim"],
        references: Float[Tensor, "groups reference_tokens dim"],
    ) -> Float[Tensor, "rows shared_tokens dim"]:
        set_size = _rows_of_each(features, references)
        if references.shape[-2] != features.shape[-2]:
            tokens, reference_tokens = features.shape[-2], references.shape[-2]
            raise ValueError(f"expected references of {tokens} tokens, as the features, got {reference_tokens}")
        grouped = features.reshape(-1, set_size, *features.shape[1:])  # (groups, set_size, tokens, dim)
        shared = references.unsqueeze(dim=1).expand(-1, set_size, -1, -1)
        return torch.cat((grouped, shared), dim=-2).flatten(start_dim=0, end_dim=1)


class StyleAligned(fl.Chain):
    """Align the queries, the keys or the values of a self-attention with those of the references.

    Three of them stand right before the `ScaledDotProductAttention` of a self-attention, one each for queries, keys and
    values. See [[arXiv:2312.02133] Style Aligned Image Generation via Shared Attention](https://arxiv.org/abs/2312.02133),
    figure 4, and the article of Refiners' authors, <https://blog.finegrain.ai/posts/implementing-style-aligned/>.

    Receives:
        features (Float[Tensor, "rows tokens dim"]): The features of references and targets.

    Returns:
        features (Float[Tensor, "rows tokens dim"] | Float[Tensor, "rows 2*tokens dim"]): The aligned features, followed
            by those of the references where they are shared.
    """

    def __init__(
        self,
        adain: bool,
        share: bool,
        scale: float | None = None,
        set_size: int | None = None,
    ) -> None:
        """Initialize the StyleAligned chain.

        Args:
            adain: Whether to give the features the mean and the deviation of their reference's.
            share: Whether to append the features of the reference.
            scale: The factor for the appended features. None leaves no place for one.
            set_size: The number of consecutive rows that share a reference, itself included. None means half of the
                rows: the two guidance halves of one set.
        """
        self.adain = adain
        self.share = share
        super().__init__(
            # features: (rows, tokens, dim)
            fl.Parallel(
                fl.Identity(),
                GetReferences(set_size=set_size),
            ),
            # features: (rows, tokens, dim), references: (groups, tokens, dim)
            AdaIn(),
            fl.Distribute(
                fl.Identity(),
                ScaleReferences(scale=1.0 if scale is None else scale),
            ),
            ShareReferences(),
            # features: (rows, 2 * tokens, dim)
        )

        if not adain:
            self.remove(self.layer("AdaIn", AdaIn))

        if scale is None:
            self.remove(self.layer("Distribute", fl.Distribute))

        if not share:
            self.replace(self.layer("ShareReferences", ShareReferences), fl.GetArg(index=0))

    def _pre_structural_copy(self) -> None:
        raise RuntimeError("StyleAligned cannot be copied, since nothing would eject it: eject the adapter first.")


class AlignedFeatures(fl.Distribute):
    """The queries, keys and values of a self-attention, each through a chain of its own.

    Receives:
        features (Tensor): The queries, the keys and the values.

    Returns:
        features (Tensor): The same, aligned.
    """

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        # `torch.compile` keeps guards for each function, and takes those of other `Distribute` for this one's otherwise
        return super().forward(*args)

    def _pre_structural_copy(self) -> None:
        raise RuntimeError("StyleAligned cannot be copied, since nothing would eject it: eject the adapter first.")
