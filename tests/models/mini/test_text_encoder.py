"""The tokenizer of whole words, and the two text encoders."""

import re
from random import Random

import pytest
import torch
from refiners.foundationals.clip.text_encoder import CLIPTextEncoderG
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import (
    DoubleTextEncoder,
    TextEncoderWithPooling,
)

from style_aligned.models.mini import MiniDoubleTextEncoder, MiniTokenizer
from style_aligned.words import words

VOCABULARY = ["a", "fox", "neon", "sign", "3d", "render"]


@pytest.fixture(scope="module")
def tokenizer() -> MiniTokenizer:
    return MiniTokenizer(VOCABULARY, sequence_length=8)


@pytest.fixture(scope="module")
def encoder() -> MiniDoubleTextEncoder:
    torch.manual_seed(0)
    return MiniDoubleTextEncoder(VOCABULARY)


def test_tokens(tokenizer: MiniTokenizer) -> None:
    assert isinstance(tokenizer, CLIPTokenizer)
    # pad 0, start 1, end 2, unknown 3, then the words
    assert tokenizer("a fox, neon sign").tolist() == [[1, 4, 5, 6, 7, 2, 0, 0]]
    assert tokenizer("").tolist() == [[1, 2, 0, 0, 0, 0, 0, 0]]
    assert tokenizer(["3D-render!", "  Fox\tfox\n"]).tolist() == [[1, 8, 9, 2, 0, 0, 0, 0], [1, 5, 5, 2, 0, 0, 0, 0]]


def test_unknown_words(tokenizer: MiniTokenizer) -> None:
    assert tokenizer("a zebra").tolist() == [[1, 4, 3, 2, 0, 0, 0, 0]]
    assert tokenizer.unknown_words("A zebra, a fox; Zebra étude 🦊") == ["zebra", "etude"]
    assert tokenizer.unknown_words("a fox") == tokenizer.unknown_words("") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ロケット", ["ロケット"]),
        ("a ドラゴン, neon", ["ドラゴン"]),  # its marks are letters' own, not accents
        ("로켓", ["로켓"]),
        ("एक किताब।", ["एक", "किताब"]),  # vowels that are marks, and a full stop
        ("crème brûlée", ["creme", "brulee"]),
        ("cre\u0300me", ["creme"]),
        ("İstanbul ẾTÉ", ["istanbul", "ete"]),
        ("bjørn straße", ["bjørn", "straße"]),
        ("ракета", ["ракета"]),
        ("🦊 !!! … ❤\ufe0f _ \u00b4", []),
    ],
)
def test_unknown_words_of_any_script(tokenizer: MiniTokenizer, text: str, expected: list[str]) -> None:
    assert tokenizer.unknown_words(text) == expected
    assert tokenizer(text)[0].tolist().count(3) == min(len(expected), 6)


def test_known_words(tokenizer: MiniTokenizer) -> None:
    assert tokenizer.known_words("A zebra, a fox") == ["a", "fox"]
    assert [text for text in ("", "!!!", "🦊", "ロケット", "zebra") if tokenizer.known_words(text)] == []


@pytest.mark.parametrize("text", ["á FÓX", "a fox\ufe0f❤\ufe0f", "\uff41 \uff46\uff4f\uff58", "a\u2003fox\u0301\u0327"])
def test_known_words_in_other_letters(tokenizer: MiniTokenizer, text: str) -> None:
    assert tokenizer(text).tolist() == tokenizer("a fox").tolist()
    assert tokenizer.unknown_words(text) == []


def test_words_of_ascii_are_those_of_the_captions() -> None:
    captions = pytest.importorskip("scripts.mini_data.captions")
    random = Random(0)
    for _ in range(500):
        text = "".join(chr(random.randrange(128)) for _ in range(40))
        assert words(text) == captions.words(text) == re.findall("[a-z0-9]+", text.lower())


def test_names_of_special_tokens_are_words_like_others(tokenizer: MiniTokenizer) -> None:
    assert tokenizer("<end>").tolist() == [[1, 3, 2, 0, 0, 0, 0, 0]]
    assert tokenizer.unknown_words("<end>") == ["end"]


def test_long_texts_are_cut_off(tokenizer: MiniTokenizer) -> None:
    tokens = tokenizer("fox " * 500)
    assert tokens.tolist() == [[1, 5, 5, 5, 5, 5, 5, 2]]


def test_refuses() -> None:
    with pytest.raises(ValueError, match="twice"):
        MiniTokenizer(["a", "fox", "a"])
    with pytest.raises(ValueError, match="got 1"):
        MiniTokenizer(["a"]).encode("a", max_length=1)


def test_encoder_is_shaped_as_sdxls(encoder: MiniDoubleTextEncoder) -> None:
    assert isinstance(encoder, DoubleTextEncoder)
    pooling = encoder.ensure_find(TextEncoderWithPooling)
    assert isinstance(pooling.target, CLIPTextEncoderG)
    with torch.no_grad():
        embedding, pooled = encoder(["a fox", ""])
    assert embedding.shape == (2, 32, 128)
    assert pooled.shape == (2, 64)
    assert embedding.isfinite().all()
    assert encoder.unknown_words("a zebra") == ["zebra"]


@torch.no_grad()
def test_encoder_tells_texts_apart_and_rows_do_not_mix(encoder: MiniDoubleTextEncoder) -> None:
    embedding, pooled = encoder(["a fox", "a sign", "zebra"])
    alone, pooled_alone = encoder("a sign")
    assert torch.allclose(embedding[1:2], alone, atol=1e-5)
    assert torch.allclose(pooled[1:2], pooled_alone, atol=1e-5)
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-2)
    assert not torch.allclose(embedding[1], embedding[2], atol=1e-2)


@torch.no_grad()
def test_later_words_do_not_change_earlier_ones(encoder: MiniDoubleTextEncoder) -> None:
    # as in CLIP, attention is causal
    (short, _), (long, _) = encoder("a fox"), encoder("a fox sign")
    assert torch.allclose(short[:, :3], long[:, :3], atol=1e-5)
    assert not torch.allclose(short[:, 3], long[:, 3], atol=1e-2)


@torch.no_grad()
def test_structural_copy_computes_the_same(encoder: MiniDoubleTextEncoder) -> None:
    for ours, copied in zip(encoder("a fox"), encoder.structural_copy()("a fox"), strict=True):
        assert torch.equal(ours, copied)
