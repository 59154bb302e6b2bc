import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from refiners.fluxion import layers as fl
from torch import Tensor

from style_aligned.adapter.layers import (
    AdaIn,
    GetReferences,
    ScaleReferences,
    ShareReferences,
    StyleAligned,
    group_size,
    normalize_row,
    normalize_rows,
)
from style_aligned.adapter.shared import (
    FullySharedScaledDotProductAttention,
    SharedGroupNorm,
    SharedScaledDotProductAttention,
)
from tests import oracle
from tests.chains import features
from tests.oracle import Options, relative_error

SMALL_AND_LARGE = ((50, 8), (600, 64))  # tokens and dim, normalized in two ways on the CPU


@pytest.mark.parametrize(
    ("rows", "set_size", "expected"), [(6, None, 3), (6, 3, 3), (6, 1, 1), (6, 6, 6), (2, None, 1)]
)
def test_split_rows(rows: int, set_size: int | None, expected: int) -> None:
    assert group_size(rows, set_size) == expected


@pytest.mark.parametrize(
    ("rows", "set_size", "message"),
    [
        (5, 3, "got a batch of 5 rows, expected a multiple of set_size=3"),
        (2, 4, "got a batch of 2 rows, expected a multiple of set_size=4"),
        (0, 4, "got a batch of 0 rows"),
        (0, None, "got a batch of 0 rows, expected the two guidance halves"),
        (3, None, "got a batch of 3 rows, expected the two guidance halves of one set"),
    ],
)
def test_split_rows_that_do_not_divide(rows: int, set_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_size(rows, set_size)


def test_references_are_the_first_row_of_each_group() -> None:
    x = features(6, 4, 8)
    assert torch.equal(GetReferences(set_size=3)(x), torch.stack((x[0], x[3])))
    assert torch.equal(GetReferences(set_size=2)(x), torch.stack((x[0], x[2], x[4])))
    assert torch.equal(GetReferences()(x), torch.stack((x[0], x[3])))


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 4, 4)])
def test_references_of_a_wrong_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected features of rank 3 .* got a tensor of rank {len(shape)}"):
        GetReferences()(torch.randn(shape))


@pytest.mark.parametrize("shape", SMALL_AND_LARGE)
def test_adain_gives_the_statistics_of_the_reference(shape: tuple[int, int]) -> None:
    x = features(6, *shape)
    normalized, references = AdaIn()(x, x[::3])
    assert torch.equal(references, x[::3])
    for row in range(6):
        reference = x[row - row % 3]
        torch.testing.assert_close(normalized[row].mean(dim=0), reference.mean(dim=0))
        torch.testing.assert_close(normalized[row].std(dim=0), reference.std(dim=0), rtol=1e-4, atol=0)
        assert relative_error(normalized[row], oracle.adain(x[row].double(), reference.double())) < 1e-6


@pytest.mark.parametrize("shape", SMALL_AND_LARGE)
def test_adain_leaves_the_references_as_they_are(shape: tuple[int, int]) -> None:
    x = features(6, *shape, dtype=torch.bfloat16)
    normalized, _ = AdaIn()(x, x[::2])
    assert torch.equal(normalized[::2], x[::2])
    assert not torch.equal(normalized[1::2], x[1::2])


def test_adain_without_references_in_the_batch_normalizes_every_row() -> None:
    x = features(6, 50, 8)
    normalized, _ = AdaIn(references_included=False)(x[[1, 2, 4, 5]], x[[0, 3]])
    expected, _ = AdaIn()(x, x[[0, 3]])
    torch.testing.assert_close(normalized, expected[[1, 2, 4, 5]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("deviation", [0.0, 1e-7, 1e-4])
def test_adain_of_constant_channels_is_finite(dtype: torch.dtype, deviation: float) -> None:
    x = features(4, 64, 8)
    x[1] = 3 + deviation * x[1]
    x[2] = 0
    normalized, _ = AdaIn()(x.to(dtype), x[:1].to(dtype))
    assert normalized.isfinite().all()


def test_adain_of_a_single_token_is_finite() -> None:
    x = features(4, 1, 8)
    normalized, _ = AdaIn()(x, x[:1])
    assert torch.equal(normalized, x[:1].expand(4, -1, -1))


@pytest.mark.parametrize("shape", SMALL_AND_LARGE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adain_is_rounding_alone(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = features(4, *shape, dtype=dtype) * 10
    normalized, _ = AdaIn()(x, x[:1])
    expected, _ = AdaIn()(x.double(), x[:1].double())
    assert relative_error(normalized, expected) <= relative_error(expected.to(dtype), expected) * 1.01


@pytest.mark.parametrize("tokens", [2, 3, 100])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float64, 1e-13)]
)
def test_both_ways_to_normalize_follow_the_equation(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    x = features(3, tokens, 8, dtype=dtype)
    mean, deviation = torch.randn(2, 1, 8, dtype=torch.promote_types(dtype, torch.float32)).abs()
    exact = x.double()
    expected = (exact - exact.mean(1, keepdim=True)) / (exact.var(1, keepdim=True) + 1e-5).sqrt()
    expected = expected * deviation.double() + mean.double()
    one_by_one = torch.stack([normalize_row(row, mean, deviation, 1e-5) for row in x])
    assert relative_error(one_by_one, expected) < tolerance
    assert relative_error(normalize_rows(x, mean, deviation, 1e-5), expected) < tolerance


@pytest.mark.parametrize("layer", [AdaIn(), ShareReferences()], ids=str)
@pytest.mark.parametrize(("rows", "groups"), [(5, 2), (1, 2), (2, 0), (0, 1)])
def test_rows_that_are_no_multiple_of_the_references(layer: fl.Module, rows: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"got features of {rows} rows, expected a multiple of the {groups} ref"):
        layer(torch.randn(rows, 10, 4), torch.randn(groups, 10, 4))


def test_references_are_scaled() -> None:
    x = features(2, 4, 8)
    assert torch.equal(ScaleReferences(scale=0.5)(x), x * 0.5)
    assert ScaleReferences()(x) is x


def test_references_are_appended_to_each_row() -> None:
    x, references = features(6, 4, 8), features(2, 4, 8, seed=1)
    shared = ShareReferences()(x, references)
    assert shared.shape == (6, 8, 8)
    for row in range(6):
        assert torch.equal(shared[row], torch.cat((x[row], references[row // 3])))


def test_the_printed_chain_reads_like_the_figure() -> None:
    assert repr(StyleAligned(adain=True, share=True, scale=2.0, set_size=4)) == (
        "(CHAIN) StyleAligned(adain=True, share=True)\n"
        "    ├── (PAR)\n"
        "    │   ├── Identity()\n"
        "    │   └── GetReferences(set_size=4)\n"
        "    ├── AdaIn()\n"
        "    ├── (DISTR)\n"
        "    │   ├── Identity()\n"
        "    │   └── ScaleReferences(scale=2.0)\n"
        "    └── ShareReferences()"
    )


OPTIONS = [
    Options(set_size=3),
    Options(set_size=6),
    Options(set_size=1),
    Options(set_size=2, scale=0.5),
    Options(set_size=3, scale=2.0, shift=-0.7),
    Options(set_size=2, shift=math.log(2)),
    Options(set_size=3, adain_queries=False, adain_values=True),
    Options(set_size=3, adain_queries=False, adain_keys=False),
]


def share(options: Options, attention: fl.ScaledDotProductAttention, *qkv: Tensor) -> Tensor:
    aligned = fl.Distribute(
        StyleAligned(adain=options.adain_queries, share=False, set_size=options.set_size),
        StyleAligned(adain=options.adain_keys, share=True, scale=options.scale, set_size=options.set_size),
        StyleAligned(adain=options.adain_values, share=True, set_size=options.set_size),
    )
    shared = SharedScaledDotProductAttention(attention, shift=options.shift, set_size=options.set_size)
    return shared(*aligned(*qkv))


@pytest.mark.usefixtures("both_ways_to_normalize")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_optimized", [True, False])
@pytest.mark.parametrize("slice_size", [None, 7])
def test_shared_attention_follows_the_equations(options: Options, is_optimized: bool, slice_size: int | None) -> None:
    attention = fl.ScaledDotProductAttention(num_heads=2, is_optimized=is_optimized, slice_size=slice_size)
    qkv = [features(6, 20, 16, seed=seed) for seed in range(3)]
    expected = oracle.shared_attention(*qkv, num_heads=2, options=options)
    assert relative_error(share(options, attention, *qkv), expected) < 1e-6


def test_the_oracle_tells_the_options_apart() -> None:
    qkv = [features(6, 20, 16, seed=seed) for seed in range(3)]
    outputs = [oracle.shared_attention(*qkv, num_heads=2, options=options) for options in OPTIONS]
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert relative_error(first, second) > 1e-2


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_references_attend_as_in_plain_attention(shift: float) -> None:
    attention = fl.ScaledDotProductAttention(num_heads=2)
    qkv = [features(6, 20, 16, seed=seed) for seed in range(3)]
    output = share(Options(set_size=3, scale=0.3, shift=shift), attention, *qkv)
    assert torch.equal(output[::3], attention(*qkv)[::3])


def test_full_sharing_follows_the_equations() -> None:
    qkv = [features(6, 20, 16, seed=seed) for seed in range(3)]
    shared = FullySharedScaledDotProductAttention(fl.ScaledDotProductAttention(num_heads=2), set_size=3)
    options = Options(set_size=3, full_attention_share=True)
    assert relative_error(shared(*qkv), oracle.shared_attention(*qkv, num_heads=2, options=options)) < 1e-6


@pytest.mark.parametrize("set_size", [1, 2, 3])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_shared_group_norm_follows_the_equations(set_size: int, offset: float) -> None:
    group_norm = fl.GroupNorm(channels=8, num_groups=2)
    torch.nn.init.normal_(group_norm.weight)
    torch.nn.init.normal_(group_norm.bias)
    x = features(6, 8, 30).reshape(6, 8, 5, 6) + offset
    expected = oracle.shared_group_norm(x, 2, group_norm.weight, group_norm.bias, group_norm.eps, set_size)
    assert relative_error(SharedGroupNorm(group_norm, set_size=set_size)(x), expected) < 1e-5


@pytest.mark.usefixtures("both_ways_to_normalize")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_at_most_twice_as_far_off_as_the_plain_computation(dtype: torch.dtype) -> None:
    options = Options(set_size=3, shift=0.5, scale=1.2)
    qkv = [features(6, 200, 32, seed=seed, dtype=dtype) for seed in range(3)]
    expected = oracle.shared_attention(*qkv, num_heads=2, options=options)

    def plain_adain(x: Tensor) -> Tensor:  # as Google's code computes it, in the precision given
        reference = x[::3].repeat_interleave(3, dim=0)
        deviation = (x.var(dim=-2, keepdim=True) + 1e-5).sqrt()
        style_deviation = (reference.var(dim=-2, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean(dim=-2, keepdim=True)) / deviation * style_deviation + reference.mean(dim=-2, keepdim=True)

    def heads(x: Tensor) -> Tensor:
        return x.reshape(6, -1, 2, 16).transpose(1, 2)

    query, key, value = plain_adain(qkv[0]), plain_adain(qkv[1]), qkv[2]
    key = torch.cat((key, 1.2 * key[::3].repeat_interleave(3, dim=0)), dim=1)
    value = torch.cat((value, value[::3].repeat_interleave(3, dim=0)), dim=1)
    scores = heads(query) @ heads(key).transpose(-1, -2) / 4
    scores[..., 200:] += 0.5
    plain = (scores.softmax(dim=-1) @ heads(value)).transpose(1, 2).reshape(6, 200, 32)

    targets = [1, 2, 4, 5]
    output = share(options, fl.ScaledDotProductAttention(num_heads=2), *qkv)
    assert output.dtype == dtype
    assert relative_error(output[targets], expected[targets]) <= 2 * relative_error(plain[targets], expected[targets])


@pytest.mark.usefixtures("both_ways_to_normalize")
def test_gradients_are_those_of_the_equations() -> None:
    options = replace(OPTIONS[4], adain_values=True)
    attention = fl.ScaledDotProductAttention(num_heads=2)
    qkv = [features(6, 5, 4, seed=seed, dtype=torch.float64).requires_grad_() for seed in range(3)]
    weights = features(6, 5, 4, seed=9, dtype=torch.float64)
    ours = torch.autograd.grad((share(options, attention, *qkv) * weights).sum(), qkv)
    expected = oracle.shared_attention(*qkv, num_heads=2, options=options)
    for gradient, expected_gradient in zip(ours, torch.autograd.grad((expected * weights).sum(), qkv), strict=True):
        assert relative_error(gradient, expected_gradient) < 1e-8


PEAK_MEMORY = """
import resource, sys, torch
from refiners.fluxion import layers as fl
from style_aligned.adapter.shared import SharedScaledDotProductAttention

attention = SharedScaledDotProductAttention(fl.ScaledDotProductAttention(num_heads=2), set_size=2)
attention.shift = float(sys.argv[1])
query, key = torch.randn(2, 4096, 64), torch.randn(2, 8192, 64)
attention(query[:, :32], key[:, :64], key[:, :64])  # warm up
attention(query, key, key)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_shift_never_lays_out_the_scores() -> None:
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK_MEMORY, shift], capture_output=True, check=True).stdout)
        for shift in ("0", "0.7")
    ]
    scores = 2 * 4096 * 8192 * 4 / 1024  # what the scores of two heads would take, in KiB as `ru_maxrss`
    assert peaks[1] - peaks[0] < scores / 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_group_norm_is_at_most_twice_as_far_off_as_the_plain_one(dtype: torch.dtype) -> None:
    group_norm = fl.GroupNorm(channels=8, num_groups=2)
    x = torch.randn(3, 8, 16, 16) + 4 * torch.randn(1, 8, 1, 1)  # the bias takes off what the channels stand out by
    group_norm.bias.data = -group_norm(x).mean(dim=(0, 2, 3)).detach()
    half = fl.GroupNorm(channels=8, num_groups=2, dtype=dtype)
    half.load_state_dict({name: tensor.to(dtype) for name, tensor in group_norm.state_dict().items()})
    x = x.to(dtype)
    weight, bias = half.weight.double(), half.bias.double()
    expected = oracle.shared_group_norm(x, 2, weight, bias, half.eps, set_size=3)
    plain = oracle.shared_group_norm(x, 2, weight, bias, half.eps, set_size=1)
    error = relative_error(SharedGroupNorm(half, set_size=3)(x), expected)
    assert error <= 2 * relative_error(half(x), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_references_are_normalized_as_without_sharing(dtype: torch.dtype) -> None:
    group_norm, x = fl.GroupNorm(channels=8, num_groups=2, dtype=dtype), features(6, 8, 30, dtype=dtype)
    assert torch.equal(SharedGroupNorm(group_norm, set_size=3)(x)[::3], group_norm(x[::3]))


@pytest.mark.parametrize(("dtype", "shift"), [(torch.float16, 1e6), (torch.float32, 1e3)])
@pytest.mark.parametrize("is_optimized", [True, False])
def test_a_large_shift_leaves_the_reference_alone(dtype: torch.dtype, shift: float, is_optimized: bool) -> None:
    attention = fl.ScaledDotProductAttention(num_heads=2, is_optimized=is_optimized)
    shared = SharedScaledDotProductAttention(attention, shift=shift, set_size=2)
    query, key, value = (features(2, 10, 16, seed=seed, dtype=dtype) for seed in range(3))
    doubled = [torch.cat((x, x[:1].expand(2, -1, -1)), dim=1) for x in (key, value)]
    expected = attention(query[1:], key[:1], value[:1])
    torch.testing.assert_close(shared(query, *doubled)[1:], expected, rtol=1e-2, atol=1e-2)


def test_wrong_shapes_for_the_layers_that_take_refiners_place() -> None:
    attention = fl.ScaledDotProductAttention(num_heads=2)
    for shape in ((6, 16), (6, 3, 5, 16)):
        x = torch.randn(shape)
        with pytest.raises(ValueError, match=r"expected features of rank 3 .* got a tensor of rank"):
            FullySharedScaledDotProductAttention(attention, set_size=3)(x, x, x)
    with pytest.raises(ValueError, match=r"expected features of shape \(rows, 8, ...\), got shape \(4, 1, 4, 8\)"):
        SharedGroupNorm(fl.GroupNorm(channels=8, num_groups=2))(torch.randn(4, 1, 4, 8))
    with pytest.raises(ValueError, match="expected references of 4 tokens, as the features, got 3"):
        ShareReferences()(features(6, 4, 8), features(2, 3, 8))


def test_chains_that_nothing_would_eject_cannot_be_copied() -> None:
    with pytest.raises(RuntimeError, match="eject the adapter first"):
        fl.Chain(StyleAligned(adain=True, share=True)).structural_copy()
    with pytest.raises(RuntimeError, match="eject the adapter first"):
        fl.Chain(SharedGroupNorm(fl.GroupNorm(channels=8, num_groups=2))).structural_copy()
