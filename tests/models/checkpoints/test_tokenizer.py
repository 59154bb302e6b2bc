"""CLIP's tokens, against those of transformers' fast tokenizer."""

import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl
from refiners.foundationals.clip.concepts import ConceptExtender
from refiners.foundationals.clip.text_encoder import CLIPTextEncoderL
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import TextEncoderWithPooling

from style_aligned.models.checkpoints import load_model
from style_aligned.models.checkpoints.tokenizer import ExactCLIPTokenizer, exact_tokenizer, find_tokenizer
from tests.models.checkpoints.pipelines import make_tokenizer

PROMPTS = {
    "score_9, score_8_up, red_umbrella": [4431, 318, 280, 267, 4431, 318, 279, 318, 705, 267, 736, 318, 17143],
    "the baker’s “best” loaf — warm…": [518, 7743, 728, 503, 338, 728, 506, 949, 728, 507, 18273, 2005, 3616, 959],
    "a kite 🪁": [320, 19867, 558, 103, 479],
    "½ a melon": [33613, 320, 12146],
    "crème brûlée": [1075, 12138, 614, 711, 127, 119, 75, 13489],
    "маяк": [38018, 16912, 141, 237, 140, 374],
    "灯台": [163, 223, 107, 34517, 364],
    "sooooo fluffy lamb": [21199, 17054, 10034],
    "wait......": [1885, 5590],
}  # fmt: skip
SCRIPTS = [
    (0x20, 0x7F), (0xA0, 0x180), (0x300, 0x400), (0x400, 0x500), (0x590, 0x700), (0x900, 0xB00), (0xE00, 0xE80),
    (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2100), (0x2150, 0x2300), (0x3040, 0x3100), (0x4E00, 0x5200),
    (0xAC00, 0xB000), (0xFE00, 0xFF60), (0x1D400, 0x1D500), (0x1F300, 0x1FAFF), (0, 0x20), (0x7F, 0xA0),
]  # fmt: skip
PIECES = ["'s", "'LL", "’s", "_", "score_9", "oooooo", "-----", "<|endoftext|>", "<|StartOfText|>", "\n\t ", "  ", "ﬁ"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def ours() -> ExactCLIPTokenizer:
    return exact_tokenizer(CLIPTokenizer())


def random_texts(count: int) -> list[str]:
    """Texts that mix pieces of all scripts, runs of a letter, and signs."""
    generator = random.Random(0)

    def piece() -> str:
        start, stop = generator.choice(SCRIPTS)
        letters = "".join(chr(generator.randrange(start, stop)) for _ in range(generator.randrange(1, 7)))
        letters = generator.choice([letters, letters[0] * generator.randrange(1, 12), generator.choice(PIECES)])
        return letters + generator.choice(["", " ", ", "])

    texts = ["".join(piece() for _ in range(generator.randrange(1, 12))) for _ in range(count)]
    return texts + [unicodedata.normalize("NFD", text) for text in texts[: count // 10]]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_published_tokens(prompt: str, ours: ExactCLIPTokenizer) -> None:
    assert ours.encode(prompt).tolist() == [49406, *PROMPTS[prompt], 49407]


def test_every_text_has_the_tokens_of_clip(ours: ExactCLIPTokenizer, theirs: Any) -> None:
    texts = random_texts(3000)
    expected = theirs(texts)["input_ids"]
    for text, tokens in zip(texts, expected, strict=True):
        assert ours.encode(text).tolist() == tokens, text


def test_every_character_has_the_tokens_of_clip(ours: ExactCLIPTokenizer, theirs: Any) -> None:
    texts = [" ".join(map(chr, range(start, start + 64))) for start in range(0, 0x3400, 64)]
    for text, tokens in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours.encode(text).tolist() == tokens, hex(ord(text[0]))


def test_sequences_are_cut_and_padded(ours: ExactCLIPTokenizer, theirs: Any) -> None:
    texts = ["", "a fox", "a fox " * 50, "o" * 5000]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(ours(texts), expected)
    assert torch.equal(ours(texts[2]), expected[2:3])
    assert ours.encode("a fox in the snow", max_length=4).tolist() == [49406, 320, 3240, 49407]


def test_the_tokens_do_not_depend_on_the_process() -> None:
    code = (
        "from refiners.foundationals.clip.tokenizer import CLIPTokenizer\n"
        "from style_aligned.models.checkpoints.tokenizer import exact_tokenizer\n"
        "print(exact_tokenizer(CLIPTokenizer()).encode('noooo wait...... hellooooo').tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {b"[49406, 6759, 2822, 1885, 5590, 12887, 13643, 49407]\n"}


def test_bytes_that_are_no_text(ours: ExactCLIPTokenizer) -> None:
    with pytest.raises(ValueError, match=r"expected a prompt of characters, got 'a \\udcff fox', which holds bytes"):
        ours.encode("a \udcff fox")


def test_models_have_it_in_every_encoder(folders: dict[str, Path], pipelines: dict[str, Any]) -> None:
    text = "the baker’s score_9 — noooo"
    one = load_model(folders["1"]).clip_text_encoder
    assert torch.equal(one.ensure_find(CLIPTokenizer)(text), tokens(pipelines["1"].tokenizer, text))
    encoder = load_model(folders["xl"]).clip_text_encoder
    first, second = (tokenizer for tokenizer, _ in encoder.walk(CLIPTokenizer))
    assert torch.equal(first(text), tokens(pipelines["xl"].tokenizer, text))
    assert torch.equal(second(text), tokens(pipelines["xl"].tokenizer_2, text))
    assert (first(text)[0, -1], second(text)[0, -1]) == (49407, 0)
    assert encoder.ensure_find(TextEncoderWithPooling).tokenizer is second


def tokens(tokenizer: Any, text: str) -> torch.Tensor:
    return tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


@torch.no_grad()
def test_texts_that_hold_the_token_that_ends_them(folders: dict[str, Path], pipelines: dict[str, Any]) -> None:
    text = "a fox<|endoftext|>, neon"
    embedding, pooled = load_model(folders["xl"]).compute_clip_text_embedding(text, "")  # pyright: ignore
    expected, _, expected_pooled, _ = pipelines["xl"].encode_prompt(text, device="cpu", negative_prompt="")
    assert torch.allclose(embedding[1:], expected, atol=1e-5)
    assert torch.allclose(pooled[1:], expected_pooled, atol=1e-5)


@torch.no_grad()
def test_textual_inversion(folders: dict[str, Path]) -> None:
    model = load_model(folders["1"])
    encoder = model.clip_text_encoder
    assert isinstance(encoder, CLIPTextEncoderL)
    plain, fox = "the baker’s loaf, noooo", "the baker’s fox, noooo"
    before = encoder([plain, fox])
    extender = ConceptExtender(encoder)
    weight = encoder.layer(("Sum", "TokenEncoder"), fl.Embedding).weight
    extender.add_concept("<my-Loaf>", weight[3240])  # what "fox" has
    extender.add_concept("gardn", weight[3240])
    extender.inject()
    holder = fl.Chain(extender)
    assert torch.equal(encoder([plain, fox]), before)
    assert torch.equal(encoder(["the baker’s <MY-loaf>, noooo", "the baker’s gardn, noooo"]), before[[1, 1]])
    assert not torch.equal(encoder("the baker’s gardner, noooo"), before[1:])
    tokenizer = find_tokenizer(encoder)
    assert tokenizer is not None
    assert tokenizer.encode("<my-loaf>s gardn").tolist() == [49406, 49408, 338, 49409, 49407]
    extender.eject()
    assert torch.equal(holder[0]([plain, fox]), before)
