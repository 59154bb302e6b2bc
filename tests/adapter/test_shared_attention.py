"""Attention and group normalization that are shared, against the oracle."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.attentions import scaled_dot_product_attention_non_optimized
from torch import Tensor

from style_aligned import ReferenceBank, StyleAlignedAdapter
from tests import oracle
from tests.chains import features
from tests.oracle import Options, relative_error

OPTIONS = [
    Options(set_size=3),
    Options(set_size=6),
    Options(set_size=1),
    Options(set_size=2, scale=0.5),
    Options(set_size=3, scale=2.0, shift=-0.7),
    Options(set_size=2, shift=math.log(2)),
    Options(set_size=3, adain_queries=False, adain_values=True),
    Options(set_size=3, adain_queries=False, adain_keys=False),
    Options(set_size=3, share_attention=False, adain_values=True, strength=0.6),
    Options(set_size=3, full_attention_share=True),
    Options(set_size=3, strength=0.4),
    Options(set_size=3, strength=3.0, shift=0.2, scale=0.8),
    Options(set_size=3, halves="positive", strength=1.5),
    Options(set_size=3, strength=1e-6),
]


def keywords(options: Options) -> dict[str, Any]:
    """The options of the adapter."""
    return {name: value for name, value in asdict(options).items() if name != "mask"}


def self_attention(dim: int = 16, dtype: torch.dtype = torch.float32) -> fl.SelfAttention:
    """A self-attention that mixes the channels of its input, so that queries, keys and values are not alike."""
    torch.manual_seed(0)
    return fl.SelfAttention(embedding_dim=dim, num_heads=2, dtype=dtype)


def expect(attention: fl.SelfAttention, x: Tensor, attend: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """What a self-attention comes to, if `attend` is what its attention does with queries, keys and values."""
    *projections, out = (partial(project, linear) for linear in attention.layers(fl.Linear))
    return out(attend([projection(x) for projection in projections]))


def project(linear: fl.Linear, x: Tensor) -> Tensor:
    return x.double() @ linear.weight.double().T + linear.bias.double()


def use_plain_computation(attention: fl.SelfAttention) -> None:
    inner = attention.layer("ScaledDotProductAttention", fl.ScaledDotProductAttention)
    inner.is_optimized, inner.dot_product = False, scaled_dot_product_attention_non_optimized


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_optimized", [True, False])
@pytest.mark.parametrize("slice_size", [None, 7])
def test_shared_attention_follows_the_equations(options: Options, is_optimized: bool, slice_size: int | None) -> None:
    attention, x = self_attention(), features(6, 20, 16)
    attention.layer("ScaledDotProductAttention", fl.ScaledDotProductAttention).slice_size = slice_size
    if not is_optimized:
        use_plain_computation(attention)
    expected = expect(attention, x, lambda qkv: oracle.shared_attention(*qkv, num_heads=2, options=options))
    with StyleAlignedAdapter(fl.Chain(attention), **keywords(options)) as adapter:
        assert relative_error(adapter.target(x), expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("tokens", [20, 8, 45], ids=lambda tokens: f"reference of {tokens} tokens")
@pytest.mark.parametrize("options", [o for o in OPTIONS if not o.full_attention_share and o.halves == "both"], ids=str)
def test_replay_follows_the_equations_whatever_the_size_of_the_reference(options: Options, tokens: int) -> None:
    attention, reference, x = self_attention(), features(2, tokens, 16, seed=1), features(6, 20, 16)
    bank = ReferenceBank()
    with StyleAlignedAdapter(fl.Chain(attention), **keywords(options)) as adapter:
        with adapter.record(bank):
            adapter.target(reference)
        with adapter.replay(bank):
            output = adapter.target(x)

    def attend(qkv: list[Tensor]) -> Tensor:
        references = [list(layer(reference)) for layer in list(attention.layers(fl.Linear))[:3]]
        rows = [
            oracle.attend_to_references(
                (qkv[0][row], qkv[1][row], qkv[2][row]),
                [tuple(reference[row // 3].double() for reference in references)],
                2,
                options,
            )
            for row in range(6)
        ]
        return torch.stack(rows)

    assert relative_error(output, expect(attention, x, attend)) < 1e-6


def test_the_oracle_tells_the_options_apart() -> None:
    qkv = [features(6, 20, 16, seed=seed) for seed in range(3)]
    outputs = [oracle.shared_attention(*qkv, num_heads=2, options=options) for options in OPTIONS]
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            if OPTIONS[i].strength != 1e-6:
                assert relative_error(first, second) > 1e-2
    assert relative_error(outputs[-1], outputs[2]) < 1e-4, "next to no reference is next to plain attention"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strength", [1.0, 2.0, 0.5])
def test_half_precision_is_at_most_twice_as_far_off_as_the_plain_computation(
    dtype: torch.dtype, strength: float
) -> None:
    options = Options(set_size=3, shift=0.5, scale=1.2, strength=strength)
    attention, x = self_attention(dim=32, dtype=dtype), features(6, 200, 32, dtype=dtype)
    query, key, value, out = attention.layers(fl.Linear)
    qkv = [query(x), key(x), value(x)]
    shared = oracle.shared_attention(*qkv, num_heads=2, options=options)
    expected = shared @ out.weight.double().T + out.bias.double()

    def plain_adain(x: Tensor) -> Tensor:  # as Google's code computes it, in the precision given
        reference = x[::3].repeat_interleave(3, dim=0)
        deviation = (x.var(dim=-2, keepdim=True) + 1e-5).sqrt()
        style_deviation = (reference.var(dim=-2, keepdim=True) + 1e-5).sqrt()
        y = (x - x.mean(dim=-2, keepdim=True)) / deviation * style_deviation + reference.mean(dim=-2, keepdim=True)
        return x.lerp(y, min(strength, 1))

    def heads(x: Tensor) -> Tensor:
        return x.reshape(6, -1, 2, 16).transpose(1, 2)

    q, k, v = plain_adain(qkv[0]), plain_adain(qkv[1]), qkv[2]
    k = torch.cat((k, 1.2 * k[::3].repeat_interleave(3, dim=0)), dim=1)
    v = torch.cat((v, v[::3].repeat_interleave(3, dim=0)), dim=1)
    scores = heads(q) @ heads(k).transpose(-1, -2) / 4
    scores[..., 200:] += 0.5 + math.log(strength)
    plain = out((scores.softmax(dim=-1) @ heads(v)).transpose(1, 2).reshape(6, 200, 32))

    targets = [1, 2, 4, 5]
    with StyleAlignedAdapter(fl.Chain(attention), **keywords(options)) as adapter:
        output = adapter.target(x)
    assert output.dtype == dtype
    assert relative_error(output[targets], expected[targets]) <= 2 * relative_error(plain[targets], expected[targets])


def test_gradients_are_those_of_the_equations() -> None:
    options = replace(OPTIONS[4], adain_values=True, strength=0.7)
    attention = self_attention(dim=4, dtype=torch.float64)
    x, weights = features(6, 5, 4, dtype=torch.float64).requires_grad_(), features(6, 5, 4, seed=9).double()
    with StyleAlignedAdapter(fl.Chain(attention), **keywords(options)) as adapter:
        ours = torch.autograd.grad((adapter.target(x) * weights).sum(), x)
    expected = expect(attention, x, lambda qkv: oracle.shared_attention(*qkv, num_heads=2, options=options))
    assert relative_error(ours[0], torch.autograd.grad((expected * weights).sum(), x)[0]) < 1e-8


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "shift"), [(torch.float16, 1e6), (torch.float32, 1e3)])
@pytest.mark.parametrize("is_optimized", [True, False])
def test_a_large_shift_leaves_the_reference_alone(dtype: torch.dtype, shift: float, is_optimized: bool) -> None:
    attention, x = self_attention(dtype=dtype), features(2, 10, 16, dtype=dtype)
    if not is_optimized:
        use_plain_computation(attention)
    inner = attention.layer("ScaledDotProductAttention", fl.ScaledDotProductAttention)
    query, key, value, out = attention.layers(fl.Linear)
    expected = out(inner(query(x[1:]), key(x[:1]), value(x[:1])))
    options: dict[str, Any] = {"adain_queries": False, "adain_keys": False}
    with StyleAlignedAdapter(fl.Chain(attention), set_size=2, shift=shift, **options) as adapter:
        torch.testing.assert_close(adapter.target(x)[1:], expected, rtol=1e-2, atol=1e-2)


PEAK_MEMORY = """
import resource, sys, torch
from refiners.fluxion import layers as fl
from style_aligned import StyleAlignedAdapter

chain = fl.Chain(fl.SelfAttention(embedding_dim=64, num_heads=2))
adapter = StyleAlignedAdapter(chain, set_size=2, shift=float(sys.argv[1])).inject()
x = torch.randn(2, 4096, 64)
with torch.no_grad():
    chain(x[:, :32])  # warm up
    chain(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_weights_of_the_reference_never_lay_out_the_scores() -> None:
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK_MEMORY, shift], capture_output=True, check=True).stdout)
        for shift in ("0", "0.7")
    ]
    scores = 2 * 4096 * 8192 * 4 / 1024  # what the scores of two heads would take, in KiB as `ru_maxrss`
    assert peaks[1] - peaks[0] < scores / 10


def group_norm(dtype: torch.dtype = torch.float32) -> fl.GroupNorm:
    torch.manual_seed(0)
    layer = fl.GroupNorm(channels=8, num_groups=2, dtype=dtype).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def expect_group_norm(layer: fl.GroupNorm, x: Tensor, references: Tensor, strength: float = 1.0) -> Tensor:
    each = len(x) // len(references)
    rows = [
        oracle.shared_group_norm(row, references[index // each], 2, layer.weight, layer.bias, layer.eps, strength)
        for index, row in enumerate(x)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("set_size", [2, 3])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("strength", [1.0, 0.2, 3.0])
def test_shared_group_norm_follows_the_equations(set_size: int, offset: float, strength: float) -> None:
    layer, x = group_norm(), features(6, 8, 30).reshape(6, 8, 5, 6) + offset
    expected = expect_group_norm(layer, x, x[::set_size], strength)
    plain, chain = layer(x), fl.Chain(layer)
    with StyleAlignedAdapter(chain, share_group_norm=True, set_size=set_size, strength=strength):
        output = chain(x)
    assert torch.equal(output[::set_size], plain[::set_size])
    targets = [row for row in range(6) if row % set_size != 0]
    assert relative_error(output[targets], expected[targets]) < 1e-5
    assert relative_error(plain[targets], expected[targets]) > 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.2])
def test_shared_group_norm_with_a_reference_of_another_size(strength: float) -> None:
    layer, x, reference = group_norm(), features(4, 8, 30).reshape(4, 8, 5, 6), torch.randn(2, 8, 9, 9) + 1
    chain, bank = fl.Chain(layer), ReferenceBank()
    with StyleAlignedAdapter(chain, share_group_norm=True, strength=strength) as adapter:
        with adapter.record(bank):
            assert torch.equal(chain(reference), layer(reference))
        with adapter.replay(bank):
            output = chain(x)
    assert relative_error(output, expect_group_norm(layer, x, reference, strength)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_group_norm_is_at_most_twice_as_far_off_as_the_plain_one(dtype: torch.dtype) -> None:
    layer = group_norm()
    x = torch.randn(3, 8, 16, 16) + 4 * torch.randn(1, 8, 1, 1)  # the bias takes off what the channels stand out by
    layer.bias.copy_(-(layer(x) - layer.bias[:, None, None]).mean(dim=(0, 2, 3)))
    layer, x = layer.to(dtype=dtype), x.to(dtype)
    plain = relative_error(layer(x), expect_group_norm(layer, x, x))
    chain = fl.Chain(layer)
    with StyleAlignedAdapter(chain, share_group_norm=True, set_size=3):
        assert relative_error(chain(x), expect_group_norm(layer, x, x[:1])) <= 2 * plain
