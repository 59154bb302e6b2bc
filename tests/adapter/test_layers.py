from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError
from torch import Tensor

from style_aligned.adapter.layers import AdaIn, GetReferences, ScaleReferences, ShareReferences, StyleAligned
from style_aligned.adapter.reference_bank import References, moments
from style_aligned.adapter.sharing import CONTEXT, Mode, Sharing, SharingOptions
from tests import oracle
from tests.chains import features
from tests.oracle import relative_error

TARGETS = [1, 2, 4, 5]


def sharing(layer: fl.Module, mode: Any = "batch", **options: Any) -> fl.Chain:
    """A chain with a layer that finds in its context what the adapter would put there."""
    chain = fl.Chain(layer)
    chain.set_context(CONTEXT, {"sharing": Sharing(SharingOptions(**options), Mode(mode))})
    return chain


def adain(x: Tensor, reference: Tensor, **options: Any) -> Tensor:
    references = References(None, *moments(reference))
    normalized, unchanged = sharing(AdaIn("here"), **options)(x, references)
    assert unchanged is references
    return normalized


@pytest.mark.parametrize(
    ("rows", "set_size", "expected"),
    [(6, None, [0, 3]), (6, 3, [0, 3]), (6, 2, [0, 2, 4]), (6, 1, [0, 1, 2, 3, 4, 5]), (6, 6, [0]), (2, None, [0, 1])],
)
def test_references_are_the_first_row_of_each_group(rows: int, set_size: int | None, expected: list[int]) -> None:
    x = features(rows, 4, 8)
    references = sharing(GetReferences("here"), set_size=set_size)(x)
    assert torch.equal(references.tokens, x[expected])
    torch.testing.assert_close(references.mean, x[expected].mean(dim=1, keepdim=True))
    torch.testing.assert_close(references.variance, x[expected].var(dim=1, keepdim=True))


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
def test_rows_that_do_not_divide(rows: int, set_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sharing(SharingOptions(set_size=set_size)).group_size(rows)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 4, 4)])
def test_references_of_a_wrong_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(ChainError, match=rf"expected features of rank 3 .* got a tensor of rank {len(shape)}"):
        sharing(GetReferences("here"))(torch.randn(shape))


@pytest.mark.parametrize("strength", [1.0, 0.3, 2.0])
def test_adain_gives_the_statistics_of_the_reference(strength: float) -> None:
    x = features(6, 50, 8)
    normalized = adain(x, x[::3], strength=strength)
    amount = min(strength, 1)
    for row in TARGETS:
        expected = oracle.adain(x[row].double(), x[row - row % 3].double())
        assert relative_error(normalized[row], (1 - amount) * x[row] + amount * expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adain_leaves_the_references_as_they_are(dtype: torch.dtype) -> None:
    x = features(6, 50, 8, dtype=dtype)
    normalized = adain(x, x[::2], set_size=2)
    assert torch.equal(normalized[::2], x[::2])
    assert not torch.equal(normalized[1::2], x[1::2])


def test_adain_to_a_reference_of_another_size() -> None:
    x, reference = features(2, 50, 8), features(1, 20, 8, seed=1)
    normalized = adain(x, reference, mode="replay")
    for row in range(2):
        assert relative_error(normalized[row], oracle.adain(x[row].double(), reference[0].double())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("deviation", [0.0, 1e-7, 1e-4])
def test_adain_of_constant_channels_is_finite(dtype: torch.dtype, deviation: float) -> None:
    x = features(4, 64, 8)
    x[1] = 3 + deviation * x[1]
    x[2] = 0
    assert adain(x.to(dtype), x[:1].to(dtype), set_size=4).isfinite().all()


def test_adain_of_a_single_token_is_the_reference() -> None:
    x = features(4, 1, 8)
    assert torch.equal(adain(x, x[:1], set_size=4), x[:1].expand(4, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adain_is_rounding_alone(dtype: torch.dtype) -> None:
    x = features(4, 600, 64, dtype=dtype) * 10
    normalized, expected = adain(x, x[:1], set_size=4), adain(x.double(), x[:1].double(), set_size=4)
    assert relative_error(normalized, expected) <= relative_error(expected.to(dtype), expected) * 1.01


def test_references_are_scaled() -> None:
    references = References(features(2, 4, 8))
    assert references.tokens is not None
    assert torch.equal(sharing(ScaleReferences(), scale=0.5)(references).tokens, references.tokens * 0.5)
    assert sharing(ScaleReferences())(references) is references


def test_references_are_appended_to_each_row() -> None:
    x, references = features(6, 4, 8), features(2, 3, 8, seed=1)
    shared = sharing(ShareReferences())(x, References(references))
    assert shared.shape == (6, 7, 8)
    for row in range(6):
        assert torch.equal(shared[row], torch.cat((x[row], references[row // 3])))


def test_the_printed_chain_reads_like_the_figure() -> None:
    assert repr(StyleAligned("layer", adain=True, share=True, scale=True)) == (
        "(CHAIN) StyleAligned(adain=True, share=True, scale=True)\n"
        "    ├── (PAR)\n"
        "    │   ├── Identity()\n"
        "    │   └── GetReferences(place=layer)\n"
        "    ├── AdaIn()\n"
        "    ├── (DISTR)\n"
        "    │   ├── Identity()\n"
        "    │   └── ScaleReferences()\n"
        "    └── ShareReferences()"
    )
