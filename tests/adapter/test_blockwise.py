"""Attention in blocks: nearly as precise as fused attention, and only where it can take its place."""

from collections.abc import Callable

import pytest
import torch
from refiners.fluxion import layers as fl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention as fused_attention

from style_aligned.adapter import blockwise
from style_aligned.adapter.blockwise import attend_in_blocks
from style_aligned.adapter.shared import SharedScaledDotProductAttention

HEADS, HEAD_DIM, TOKENS = 2, 64, 512


@pytest.fixture(autouse=True)
def any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any CPU take the path of those that profit from it: elsewhere it is only slower."""
    monkeypatch.setattr(blockwise, "has_bfloat16_products", lambda: True)


@pytest.fixture(autouse=True)
def without_gradients() -> object:
    with torch.no_grad():
        yield


def draw(
    rows: int = 1, deviation: float = 1.0, head_dim: int = HEAD_DIM, tokens: int = TOKENS
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and twice as many keys and values, of shape (rows, heads, tokens, head_dim) in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, shared_key, shared_value = torch.randn(5, rows, HEADS, tokens, head_dim, generator=generator)
    key, value = torch.cat((key, shared_key), dim=-2), torch.cat((value, shared_value), dim=-2)
    return (deviation * query).bfloat16(), (deviation * key).bfloat16(), value.bfloat16()


def error(attended: Tensor, qkv: tuple[Tensor, Tensor, Tensor]) -> float:
    """The relative error, against attention written out in float64."""
    query, key, value = (x.double() for x in qkv)
    scores = torch.einsum("rhqd,rhkd->rhqk", query, key) / query.shape[-1] ** 0.5
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    expected = torch.einsum("rhqk,rhkd->rhqd", weights, value) / weights.sum(dim=-1, keepdim=True)
    return float((attended.double() - expected).norm() / expected.norm())


def together(size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys that all point the same way or the opposite one, of scores of about this size."""
    query, key, value = (x.float() for x in draw(deviation=0.5))
    direction = torch.full((HEAD_DIM,), (size * HEAD_DIM**0.5) ** 0.5 / HEAD_DIM**0.5)
    signs = torch.ones(key.shape[-2], 1)
    signs[::2] = -1
    return (query + direction).bfloat16(), (key + signs * direction).bfloat16(), value.bfloat16()


@pytest.mark.parametrize(
    "qkv",
    [
        draw(deviation=0.01),
        draw(deviation=0.7),
        draw(deviation=2.0),
        draw(deviation=1.5, head_dim=40),
        draw(deviation=1.0, head_dim=160),
        together(20),
        together(45),
    ],
    ids=["equal scores", "small scores", "large scores", "narrow", "wide", "scores of 20", "scores of 45"],
)
def test_nearly_as_precise_as_fused_attention(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    attended, fused = attend_in_blocks(*qkv), fused_attention(*qkv)
    for head in range(HEADS):  # none is left to fused attention
        assert not torch.equal(attended[:, head], fused[:, head])
    assert error(attended, qkv) < 1.75 * error(fused, qkv)


def test_heads_with_large_scores_are_left_to_fused_attention() -> None:
    query, key, value = draw(rows=2)
    query[0, 0, 5] *= 64  # one token is enough
    key[1, 1] *= 64
    attended, fused = attend_in_blocks(query, key, value), fused_attention(query, key, value)
    for row, head, is_left in ((0, 0, True), (0, 1, False), (1, 0, False), (1, 1, True)):
        assert torch.equal(attended[row, head], fused[row, head]) is is_left


@pytest.mark.parametrize("qkv", [draw(deviation=2.0), together(20), together(45)])
def test_rounded_scores_alone_would_not_be(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value = qkv
    rounded = (query @ key.mT * HEAD_DIM**-0.5).softmax(dim=-1) @ value
    assert error(rounded, qkv) > 3 * error(attend_in_blocks(*qkv), qkv)


@pytest.mark.parametrize("scores", [1, 7 * 128, 1 << 30])  # blocks of a query, of 7 a thread and a rest, of all
def test_the_size_of_blocks_does_not_matter(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = draw(rows=2, tokens=64)
    expected = attend_in_blocks(*qkv)
    monkeypatch.setattr(blockwise, "BLOCK_SCORES", scores)
    torch.testing.assert_close(attend_in_blocks(*qkv), expected, atol=2**-8, rtol=2**-7)


def test_a_row_does_not_depend_on_others() -> None:
    query, key, value = draw(rows=3)
    together = attend_in_blocks(query, key, value)
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.equal(attend_in_blocks(query[part], key[part], value[part]), together[part])


@pytest.mark.parametrize(("part", "number"), [(0, 3), (1, 3), (2, 3)])
def test_what_is_not_a_number_stays_so(part: int, number: int) -> None:
    qkv = draw()
    qkv[part][0, 0, number, 0] = torch.nan
    attended = attend_in_blocks(*qkv)
    affected = attended[0, 0, number] if part == 0 else attended[0, 0]
    assert affected.isnan().any(dim=-1).all()
    assert attended[0, 1].isfinite().all()


def features(dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS, dim: int = HEADS * HEAD_DIM) -> list[Tensor]:
    """What the layer receives: two groups of a reference and two targets."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, count, dim, generator=generator).to(dtype) for count in (tokens, 2 * tokens, 2 * tokens)]


def shared(
    attention: fl.ScaledDotProductAttention | None = None, shift: float = 0.0
) -> SharedScaledDotProductAttention:
    return SharedScaledDotProductAttention(attention or fl.ScaledDotProductAttention(HEADS), shift=shift, set_size=3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of queries that are attended to in blocks."""
    shapes: list[torch.Size] = []

    def record(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shapes.append(query.shape)
        return attend_in_blocks(query, key, value)

    monkeypatch.setattr("style_aligned.adapter.shared.attend_in_blocks", record)
    return shapes


def test_targets_attend_in_blocks_and_references_plainly(
    calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = features()
    attended = shared()(*qkv)
    assert calls == [(2, HEADS, TOKENS, HEAD_DIM)] * 2
    monkeypatch.setattr(blockwise, "has_bfloat16_products", lambda: False)
    fused = shared()(*qkv)
    assert len(calls) == 2
    assert torch.equal(attended[::3], fused[::3])
    assert not torch.equal(attended, fused)
    torch.testing.assert_close(attended, fused, atol=2e-3, rtol=2**-6)


@pytest.mark.parametrize("slice_size", [None, 100])
def test_targets_alone_attend_in_blocks(slice_size: int | None, calls: list[torch.Size]) -> None:
    attention = fl.ScaledDotProductAttention(HEADS, slice_size=slice_size)
    layer = SharedScaledDotProductAttention(attention, references_included=False)
    qkv = features()
    attended = layer(*qkv)
    assert [size[2] for size in calls] == ([TOKENS] if slice_size is None else [100] * 5 + [12])
    assert torch.equal(attended, shared()(*qkv)) is False  # references attend to themselves there
    torch.testing.assert_close(attended, attention(*qkv), atol=2e-3, rtol=2**-6)


class OtherAttention(fl.ScaledDotProductAttention):
    """An attention of somebody's own."""


def with_a_hook() -> fl.ScaledDotProductAttention:
    def drop(_module: object, _qkv: tuple[Tensor, ...], attended: Tensor) -> Tensor:
        return attended * 0

    attention = fl.ScaledDotProductAttention(HEADS)
    attention.register_forward_hook(drop)
    return attention


def with_a_hook_before() -> fl.ScaledDotProductAttention:
    def drop_values(_module: object, qkv: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return qkv[0], qkv[1], qkv[2] * 0

    attention = fl.ScaledDotProductAttention(HEADS)
    attention.register_forward_pre_hook(drop_values)
    return attention


def patched() -> fl.ScaledDotProductAttention:
    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query * 0

    attention = fl.ScaledDotProductAttention(HEADS)
    attention.forward = forward
    return attention


@pytest.mark.parametrize("attention", [with_a_hook, with_a_hook_before, patched])
def test_what_is_attached_to_an_attention_holds_for_targets_too(
    attention: Callable[[], fl.ScaledDotProductAttention],
) -> None:
    assert (shared(attention())(*features()) == 0).all()


@pytest.mark.parametrize(
    ("layer", "qkv"),
    [
        (shared, lambda: features(torch.float32)),
        (shared, lambda: features(torch.float16)),
        (shared, lambda: features(tokens=511)),
        (shared, lambda: features(dim=80)),
        (lambda: shared(shift=0.5), features),
        (lambda: shared(OtherAttention(HEADS)), features),
        (lambda: shared(fl.ScaledDotProductAttention(HEADS, is_optimized=False)), features),
    ],
    ids=["float32", "float16", "few keys", "narrow heads", "shift", "other class", "not fused"],
)
def test_elsewhere_attention_stays_what_it_was(
    layer: Callable[[], SharedScaledDotProductAttention], qkv: Callable[[], list[Tensor]], calls: list[torch.Size]
) -> None:
    layer()(*qkv())
    assert calls == []


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("torch.compiler.is_compiling", lambda: True),
        ("torch.jit.is_tracing", lambda: True),
        ("torch.get_num_threads", lambda: 9),
        ("torch.backends.mkldnn.enabled", False),
        ("style_aligned.adapter.blockwise.has_bfloat16_products", lambda: False),
    ],
)
def test_where_it_could_not_or_would_not_help(
    name: str, replacement: object, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, replacement)
    shared()(*features())
    assert calls == []


def test_older_versions_of_torch(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.compiler, "is_compiling")
    shared()(*features())
    assert calls != []


def test_without_tensors_of_its_own_it_is_left_alone(calls: list[torch.Size]) -> None:
    layer, qkv = shared(), features()
    with FakeTensorMode() as mode:
        layer(*(mode.from_tensor(x) for x in qkv))
    layer.to("meta")(*(x.to("meta") for x in qkv))
    assert calls == []


def test_gradients_flow_through_fused_attention(calls: list[torch.Size]) -> None:
    qkv = features()
    with torch.enable_grad():
        qkv[0].requires_grad_()
        shared()(*qkv).float().square().sum().backward()
    assert calls == []
    assert qkv[0].grad is not None


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),  # fused attention uses it
        ({"avx512_bf16": False}, False),
        ({"bf16": True}, False),  # ARM: not measured
    ],
)
def test_only_where_instructions_would_be_unused(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    blockwise.has_bfloat16_products.cache_clear()
    try:
        assert blockwise.has_bfloat16_products() is expected
        monkeypatch.delattr(torch.cpu, "get_capabilities")  # PyTorch before it had the function
        blockwise.has_bfloat16_products.cache_clear()
        assert blockwise.has_bfloat16_products() is False
    finally:
        blockwise.has_bfloat16_products.cache_clear()
