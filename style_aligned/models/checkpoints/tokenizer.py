"""CLIP's own tokens, in place of those of Refiners' tokenizer.

Refiners 0.4.0's tokenizer depends on the process for runs of a letter, drops underscores and letters beyond a-z, and
takes some bytes for others. The `tokenizers` library does it right; the merges are those that Refiners ships.
"""

import gzip
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from refiners.fluxion import layers as fl
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import TextEncoderWithPooling
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@cache
def load_tokenizer(merges_path: Path | str) -> Tokenizer:
    """Build CLIP's tokenizer from OpenAI's file of merges.

    Args:
        merges_path: The file, compressed with gzip.
    """
    with gzip.open(merges_path, mode="rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : VOCABULARY_SIZE - 2 * 256 - 2 + 1]
    merges: list[tuple[str, str]] = []
    for line in lines:
        first, second = line.split()
        merges.append((first, second))
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]  # one for a byte
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    vocabulary = {word: token for token, word in enumerate([*words, START, END])}

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for token in (START, END):
        tokenizer.add_special_tokens([AddedToken(token, special=True)])  # pyright: ignore[reportUnknownMemberType]
    return tokenizer


class ExactCLIPTokenizer(CLIPTokenizer):
    """Refiners' `CLIPTokenizer`, with the tokens of CLIP for every text.

    Receives:
        text (str | list[str]): One text or several.

    Returns:
        (Int[Tensor, "texts sequence_length"]): Their tokens, cut or padded to the length of a sequence.
    """

    def encode(self, text: str, max_length: int | None = None) -> Int[Tensor, " tokens"]:
        """Compute the tokens of a text.

        Args:
            text: The text.
            max_length: The number of tokens to cut to, the two that start and end the text among them.

        Raises:
            ValueError: If the text holds surrogates, which are no characters.
        """
        tokens = [token for token, _ in self.tokens_and_words(text)]
        if max_length is not None:
            tokens = tokens[: max_length - 2]
        return torch.tensor([self.start_of_text_token_id, *tokens, self.end_of_text_token_id])

    def tokens_and_words(self, text: str) -> list[tuple[int, int]]:
        """Compute the tokens of a text, each with the index of the character at which its word starts."""
        concepts = [word for word, token in self.token_to_id_mapping.items() if token >= VOCABULARY_SIZE]
        if not concepts:
            return self._tokens_of_plain_text(text)
        # newest first, as Refiners' ConceptExtender does; a word such as "cat" is not meant within "catalogue"
        alternatives = "|".join(map(_whole_word, reversed(concepts)))
        tokens: list[tuple[int, int]] = []
        end = 0
        for match in re.finditer(alternatives, text, re.IGNORECASE):
            tokens += [(token, end + word) for token, word in self._tokens_of_plain_text(text[end : match.start()])]
            word = match.group().lower()
            ids = [self.token_to_id_mapping[word]]
            while (more := self.token_to_id_mapping.get(f"{word}_{len(ids)}", 0)) >= VOCABULARY_SIZE:
                ids.append(more)  # a concept of several vectors, which are named as diffusers names them
            tokens += [(token, match.start()) for token in ids]
            end = match.end()
        return tokens + [(token, end + word) for token, word in self._tokens_of_plain_text(text[end:])]

    def cut(self, text: str) -> str:
        """Return what does not fit into a sequence, from the first word that is not whole: "" where all of it fits."""
        words = [word for _, word in self.tokens_and_words(text)]
        room = self.sequence_length - 2  # beside the tokens that start and end the text
        return text[words[room] :] if len(words) > room else ""

    def _tokens_of_plain_text(self, text: str) -> list[tuple[int, int]]:
        try:
            encoding: Encoding = load_tokenizer(self.vocabulary_path).encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise ValueError(
                f"expected a prompt of characters, got {text[:80]!r}, which holds bytes that are none"
            ) from None
        tokens: list[tuple[int, int]] = []
        previous = None
        for token, word, (start, _) in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
            is_same_word = word is not None and word == previous
            tokens.append((token, tokens[-1][1] if is_same_word else start))
            previous = word
        return tokens


class TextToTokens(fl.Chain):
    """The tokenizer in its place in a text encoder.

    Refiners' `ConceptExtender`, for textual inversion, puts a tokenizer of Refiners' own in the place of the one that
    it finds. Here it finds this chain's, and this chain computes the tokens of CLIP, with the concepts it was given.

    Receives:
        text (str | list[str]): One text or several.

    Returns:
        (Int[Tensor, "texts sequence_length"]): Their tokens.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        """Initialize the TextToTokens.

        Args:
            tokenizer: The tokenizer.
        """
        super().__init__(tokenizer)

    @property
    def tokenizer(self) -> ExactCLIPTokenizer:
        """CLIP's tokenizer, with the concepts that have been added."""
        found = self.ensure_find(CLIPTokenizer)
        return found if isinstance(found, ExactCLIPTokenizer) else exact_tokenizer(found)

    def forward(self, *args: Any) -> Int[Tensor, "texts sequence_length"]:
        return self.tokenizer(*args)


def _whole_word(text: str) -> str:
    before, after = (r"\b" if letter.isalnum() else "" for letter in (text[0], text[-1]))
    return before + re.escape(text) + after


def exact_tokenizer(tokenizer: CLIPTokenizer) -> ExactCLIPTokenizer:
    """Build the exact tokenizer with the settings and the vocabulary of another one."""
    exact = ExactCLIPTokenizer.__new__(ExactCLIPTokenizer)
    fl.Module.__init__(exact)
    vars(exact).update({name: value for name, value in vars(tokenizer).items() if not name.startswith("_")})
    return exact


def put_exact_tokenizers(text_encoder: fl.Chain) -> None:
    """Put CLIP's tokens in the place of those of Refiners' tokenizers.

    Args:
        text_encoder: The text encoder of a model, with one tokenizer or two.
    """
    for tokenizer, parent in list(text_encoder.walk(CLIPTokenizer)):
        parent.replace(tokenizer, TextToTokens(exact_tokenizer(tokenizer)))
    for pooled in text_encoder.layers(TextEncoderWithPooling):
        # a text may hold the token that ends it: Refiners expects one only
        pooled.layer("SetContext", fl.SetContext).callback = _note_first_end


def find_tokenizer(text_encoder: fl.Chain) -> ExactCLIPTokenizer | None:
    """Return CLIP's tokenizer for a text encoder, with the concepts that it was given: None for other encoders."""
    if (place := text_encoder.find(TextToTokens)) is not None:
        return place.tokenizer
    found = text_encoder.find(CLIPTokenizer)
    return exact_tokenizer(found) if type(found) is CLIPTokenizer else None


def _note_first_end(end_of_text_index: list[int], tokens: Int[Tensor, "texts sequence_length"]) -> None:
    end_of_text_index.extend(int(index) for index in (tokens == VOCABULARY_SIZE - 1).int().argmax(dim=1))
