"""What other adapters, and people, do to a `ScaledDotProductAttention` holds where it is shared, whatever is set."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.fluxion.layers.attentions import scaled_dot_product_attention
from refiners.fluxion.layers.chain import ChainError
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter
from tests import oracle
from tests.adapter.test_shared_attention import expect, keywords, self_attention
from tests.chains import features
from tests.oracle import Options, relative_error

MASK = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.2], [1.0, 1.0, 0.0, 0.3, 0.0], [0.0, 0.1, 0.9, 1.0, 1.0], [0.0] * 5])
OPTIONS = [  # AdaIN of the queries would take off, in one of the orders, what another adapter gives them
    replace(options, adain_queries=False)
    for options in (
        Options(),
        Options(strength=2.0),
        Options(strength=0.5),
        Options(shift=0.3, scale=0.8),
        Options(mask=MASK.flatten()),
        Options(strength=1e-6),
        Options(halves="positive", strength=1.5),
    )
]
WEIGHTED = pytest.mark.parametrize("options", [{"strength": 2.0}, {"shift": 0.3}], ids=str)
ONCE = r"or have the reference count once \(strength 1, shift 0, no mask, one reference of the targets' size\)"


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Around(fl.Chain, Adapter[fl.ScaledDotProductAttention]):
    """Layers around an attention."""

    def __init__(self, target: fl.ScaledDotProductAttention, before: fl.Module, *after: fl.Module) -> None:
        with self.setup_adapter(target):
            super().__init__(before, target, *after)


class Instead(fl.Chain, Adapter[fl.ScaledDotProductAttention]):
    """Something else than the attention."""

    def __init__(self, target: fl.ScaledDotProductAttention) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.GetArg(index=2))


def attention_of(layer: fl.Chain) -> fl.ScaledDotProductAttention:
    return layer.ensure_find(fl.ScaledDotProductAttention)


def linear(attention: fl.SelfAttention, number: int) -> fl.Linear:
    return attention.layer(1, fl.Distribute).layer(number, fl.Linear)


def align(attention: fl.SelfAttention, options: Options) -> StyleAlignedAdapter[Any]:
    adapter = StyleAlignedAdapter(fl.Chain(attention), **keywords(options))
    adapter.reference_mask = None if options.mask is None else MASK
    return adapter


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ours_first", [True, False])
def test_an_adapter_around_the_attention(options: Options, ours_first: bool) -> None:
    attention, louder, x = self_attention(), self_attention(), features(6, 20, 16)
    linear(louder, 0).weight.mul_(2)
    linear(louder, 0).bias.mul_(2)
    expected = expect(louder, x, lambda qkv: 3 * oracle.shared_attention(*qkv, num_heads=2, options=options))
    plain = attention(x)

    queries_twice = fl.Distribute(fl.Multiply(scale=2.0), fl.Identity(), fl.Identity())
    other = Around(attention_of(attention), queries_twice, fl.Multiply(scale=3.0))
    ours = align(attention, options)
    if ours_first:
        ours.inject()
    other.inject(attention)
    alone = attention(x) if not ours_first else None
    if not ours_first:
        ours.inject()
    assert relative_error(ours.target(x), expected) < 1e-6
    ours.eject()
    assert alone is None or torch.equal(attention(x), alone)
    other.eject()
    assert torch.equal(attention(x), plain)


@pytest.mark.parametrize("ours_first", [True, False])
def test_layers_beside_the_attention(ours_first: bool) -> None:
    options = Options(strength=2.0, adain_queries=False)
    attention, x = self_attention(), features(6, 20, 16)
    expected = expect(attention, x, lambda qkv: 3 * oracle.shared_attention(*qkv, num_heads=2, options=options))
    inner, ours = attention_of(attention), align(attention, options)
    if ours_first:
        ours.inject()
    attention.ensure_find_parent(inner).insert_after_type(fl.ScaledDotProductAttention, fl.Multiply(scale=3.0))
    if not ours_first:
        ours.inject()
    assert relative_error(ours.target(x), expected) < 1e-6


def test_a_replay_through_another_adapter() -> None:
    attention, x, bank = self_attention(), features(6, 20, 16), ReferenceBank()
    inner, ours = attention_of(attention), align(attention, Options(strength=2.0)).inject()
    unchanged = fl.Distribute(fl.Identity(), fl.Identity(), fl.Identity())
    other = Around(inner, unchanged, fl.Multiply(scale=3.0)).inject(attention)
    expected = ours.target(x)
    with ours.record(bank):
        ours.target(x[::3])
    with ours.replay(bank):
        torch.testing.assert_close(ours.target(x[[1, 2, 4, 5]]), expected[[1, 2, 4, 5]], rtol=1e-5, atol=1e-6)
    other.eject()
    assert relative_error(ours.target(x), expected) > 1e-2


@WEIGHTED
def test_an_adapter_instead_of_the_attention(options: dict[str, Any]) -> None:
    attention, x = self_attention(), features(6, 20, 16)
    chain, inner = fl.Chain(attention), attention_of(attention)
    adapter = StyleAlignedAdapter(chain, set_size=3).inject()
    other = Instead(inner).inject(attention)
    with pytest.raises(ChainError):  # as it knows of no reference, it gives back as many rows as there are values
        chain(x)
    for name, value in options.items():
        setattr(adapter, name, value)
    with pytest.raises(
        ChainError, match=rf"expected layer\.0 to compute with .* got Instead that goes without: eject it, {ONCE}"
    ):
        chain(x)
    assert inner.dot_product is scaled_dot_product_attention
    other.eject()
    with StyleAlignedAdapter(fl.Chain(self_attention()), set_size=3, **options) as undisturbed:
        assert torch.equal(chain(x), undisturbed.target(x))


@WEIGHTED
def test_a_dot_product_of_somebodys_own(options: dict[str, Any]) -> None:
    def dot_product(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
        return scaled_dot_product_attention(query, key, 2 * value, is_causal)

    attention, x = self_attention(), features(6, 20, 16)
    expected = expect(attention, x, lambda qkv: 2 * oracle.shared_attention(*qkv, num_heads=2, options=Options()))
    chain = fl.Chain(attention)
    adapter = StyleAlignedAdapter(chain, set_size=3).inject()
    attention_of(attention).dot_product = dot_product
    assert relative_error(chain(x), expected) < 1e-6, "where the reference counts once, it serves"
    for name, value in options.items():
        setattr(adapter, name, value)
    with pytest.raises(ChainError, match=f"one of Refiners' dot products, .*, got dot_product: set it back, {ONCE}"):
        chain(x)
    adapter.eject()
    assert attention_of(attention).dot_product is dot_product


def test_an_adapter_that_adds_keys() -> None:
    attention, x = self_attention(), features(6, 20, 16)
    inner, adapter = attention_of(attention), align(attention, Options()).inject()
    twice = fl.Concatenate(fl.Identity(), fl.Identity(), dim=1)
    Around(inner, fl.Distribute(fl.Identity(), twice, twice.structural_copy())).inject(attention)
    assert adapter.target(x).shape == x.shape
    adapter.strength = 2.0
    with pytest.raises(ChainError, match=f"expected the 40 keys .* got 80 from another adapter: eject it, {ONCE}"):
        adapter.target(x)


@pytest.mark.parametrize("options", [{}, {"strength": 2.0}, {"full_attention_share": True}], ids=str)
def test_attributes_set_while_injected_are_those_of_the_attention(options: dict[str, Any]) -> None:
    """As when memory runs out, and `slice_size` is to save some."""
    attention, x, queries = self_attention(), features(6, 20, 16), list[int]()
    inner = attention_of(attention)

    class Counting(fl.ScaledDotProductAttention):
        def _split_to_multi_head(self, x: Tensor) -> Tensor:
            queries.append(x.shape[1])
            return super()._split_to_multi_head(x)

    inner.__class__ = Counting
    with StyleAlignedAdapter(fl.Chain(attention), set_size=3, **options) as adapter:
        expected = adapter.target(x)
        (stand_in,) = adapter.target.layers(fl.ScaledDotProductAttention)
        assert stand_in is not inner
        assert (stand_in.num_heads, stand_in.slice_size, stand_in.is_optimized) == (2, None, True)
        assert stand_in.is_causal is False
        queries.clear()
        stand_in.slice_size = 7
        torch.testing.assert_close(adapter.target(x), expected)
        assert set(queries[::3]) <= {7, 60 % 7, 20 % 7}, "queries go in slices"
        inner.slice_size = 5
        assert stand_in.slice_size == 5
    assert inner.slice_size == 5
    assert attention_of(attention) is inner
