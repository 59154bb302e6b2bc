"""One sub-adapter for each self-attention."""

from typing import Any

from jaxtyping import Float
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from torch import Tensor, cat

from style_aligned.adapter.attention import FullySharedAttention, SharedAttention
from style_aligned.adapter.layers import StyleAligned
from style_aligned.adapter.reference_bank import References
from style_aligned.adapter.sharing import get_sharing, refuse_copy


class OfTarget:
    """An attribute that an adapter has of its target: read there, and set there."""

    def __set_name__(self, _: type, name: str) -> None:
        self.name = name

    def __get__(self, adapter: Any, _: type) -> Any:
        return self if adapter is None else getattr(adapter.target, self.name)

    def __set__(self, adapter: Any, value: Any) -> None:
        setattr(adapter.target, self.name, value)


class AttentionAdapter(  # pyright: ignore[reportIncompatibleVariableOverride]
    fl.Chain, Adapter[fl.ScaledDotProductAttention], fl.ScaledDotProductAttention
):
    """Put attention that is shared with the reference in place of a `ScaledDotProductAttention`.

    It is a `ScaledDotProductAttention` itself: adapters that look for one, to put layers right before it (such as
    self-attention guidance), find it whether they are injected before or after.

    Receives:
        query (Float[Tensor, "rows tokens dim"]): The queries.
        key (Float[Tensor, "rows keys dim"]): The keys, as many as queries in a model on its own.
        value (Float[Tensor, "rows keys dim"]): The values.

    Returns:
        (Float[Tensor, "rows tokens dim"]): The attended values.
    """

    num_heads = OfTarget()  # pyright: ignore
    is_causal = OfTarget()  # pyright: ignore
    is_optimized = OfTarget()  # pyright: ignore
    slice_size = OfTarget()  # pyright: ignore
    dot_product = OfTarget()  # pyright: ignore

    def __init__(self, target: fl.ScaledDotProductAttention, place: str, *layers: fl.Module) -> None:
        """Initialize the AttentionAdapter.

        Args:
            target: The attention.
            place: Its name.
            layers: The layers that take its place, and hold it.
        """
        self._place = place
        attributes = dict(vars(target))
        with self.setup_adapter(target):
            super().__init__(*layers)
        vars(target).update(attributes)  # in place of the defaults that a ScaledDotProductAttention begins with

    def _pre_structural_copy(self) -> None:
        refuse_copy()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows keys dim"],
        value: Float[Tensor, "rows keys dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        sharing = get_sharing(self)
        if sharing.is_plain(query.shape[0], self._place):
            return self.plain_attention(self.guide(query), key, value)
        if sharing.options.halves == "both":
            return super().forward(query, key, value)
        negative, positive = zip(*(x.chunk(2) for x in (query, key, value)), strict=True)
        return cat((self.plain_attention(*negative), super().forward(*positive)))

    def guide(self, query: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows tokens dim"]:
        """Give the negative rows the reference's queries, for guidance to lead away from what it shows.

        This is the negative visual query guidance of [[arXiv:2510.06827] StyleKeeper: Prevent Content Leakage using
        Negative Visual Query Guidance](https://arxiv.org/abs/2510.06827). It is where nothing else is shared.

        Args:
            query: The queries.

        Raises:
            ValueError: If the reference is of another size, or was recorded without query guidance.
        """
        sharing, place = get_sharing(self), f"{self._place}.negative_queries"
        amount = sharing.options.query_guidance * min(sharing.options.strength, 1)
        if amount == 0 or not sharing.is_on or sharing.strength_at(self._place) != 0:
            return query
        negative, positive = query.chunk(2)
        if sharing.mode.name == "replay":
            references = sharing.fetch(place, negative)
        else:
            references = sharing.record(place, References(negative[:: sharing.group_size(query.shape[0])]))
        if references.tokens is None:
            raise ValueError(
                "expected references that were recorded with query_guidance and these layers: record again"
            )
        if references.tokens.shape[1] != query.shape[1]:
            raise ValueError("expected targets of the reference's size, got others: query_guidance needs its queries")
        own, targets = sharing.split(negative, references.groups)
        guided = targets.lerp(references.tokens.unsqueeze(dim=1).expand_as(targets), amount)
        return cat((sharing.join(own, guided), positive))

    def plain_attention(
        self,
        query: Float[Tensor, "rows tokens dim"],
        key: Float[Tensor, "rows tokens dim"],
        value: Float[Tensor, "rows tokens dim"],
    ) -> Float[Tensor, "rows tokens dim"]:
        """Attend as the original attention does, as other adapters may have adapted it since.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
        """
        return fl.Chain.forward(self.layer(len(self) - 1, fl.Chain), query, key, value)


class SharedAttentionAdapter(AttentionAdapter):
    """Align queries, keys and values with the reference's, and have the targets attend to it."""

    def __init__(
        self,
        target: fl.ScaledDotProductAttention,
        place: str,
        *,
        adain_queries: bool = True,
        adain_keys: bool = True,
        adain_values: bool = False,
        share_attention: bool = True,
    ) -> None:
        """Initialize the SharedAttentionAdapter.

        Args:
            target: The attention.
            place: The name under which the references are recorded.
            adain_queries: Whether to normalize the queries.
            adain_keys: Whether to normalize the keys.
            adain_values: Whether to normalize the values.
            share_attention: Whether the targets attend to the references.
        """

        def align(features: str, adain: bool, share: bool, scale: bool = False) -> fl.Module:
            return StyleAligned(f"{place}.{features}", adain, share, scale) if adain or share else fl.Identity()

        super().__init__(
            target,
            place,
            # queries, keys, values: (rows, tokens, dim)
            fl.Distribute(
                align("queries", adain=adain_queries, share=False),
                align("keys", adain=adain_keys, share=share_attention, scale=share_attention),
                align("values", adain=adain_values, share=share_attention),
            ),
            # queries: (rows, tokens, dim), keys, values: (rows, tokens + reference_tokens, dim)
            SharedAttention(target, place) if share_attention else fl.Chain(target),
            # (rows, tokens, dim)
        )


class FullySharedAttentionAdapter(AttentionAdapter):
    """Have all rows of a group attend to each other."""

    def __init__(self, target: fl.ScaledDotProductAttention, place: str) -> None:
        """Initialize the FullySharedAttentionAdapter.

        Args:
            target: The attention.
            place: Its name.
        """
        super().__init__(target, place, FullySharedAttention(target))


def find_attention(self_attention: fl.SelfAttention) -> tuple[fl.ScaledDotProductAttention, fl.Chain]:
    """Find the attention of a self-attention, and the chain that holds it: another adapter may be around it.

    Args:
        self_attention: The self-attention.

    Raises:
        ValueError: If there is not exactly one, or if it is causal.
    """
    attentions: list[tuple[fl.ScaledDotProductAttention, fl.Chain]] = [
        (layer, self_attention) for layer in self_attention if isinstance(layer, fl.ScaledDotProductAttention)
    ]
    if len(attentions) != 1 or isinstance(attentions[0][0], fl.Chain):  # something is around it: walking takes a while
        attentions = [
            (layer, parent)
            for layer, parent in self_attention.walk(fl.ScaledDotProductAttention, recurse=True)
            if not isinstance(layer, fl.Chain)  # an adapter that stands for one
        ]
    if len(attentions) != 1 or attentions[0][0].is_causal:
        raise ValueError(
            "expected self-attentions with one ScaledDotProductAttention that is not causal,"
            f" got {self_attention.get_path()}"
        )
    return attentions[0]


def only_self(total: int, level: float) -> list[bool]:
    """Tell which self-attentions are left alone at a given `only_self_level`, as Google's `_get_switch_vec` does.

    Args:
        total: The number of self-attentions.
        level: The fraction of them to leave alone, between 0 and 1, which comes out rounded.

    Returns:
        For each self-attention, whether it is left alone.
    """
    flipped = 0.5 < level < 1
    spread = int((1 - level if flipped else level) * total)
    every = total // spread if spread > 0 else total + 1
    alone = [spread > 0 and index % every == 0 for index in range(total)]
    return [not is_alone for is_alone in alone] if flipped else alone
