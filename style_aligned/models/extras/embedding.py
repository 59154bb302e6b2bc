"""Textual inversion: words whose embeddings come from a file, in a model's text encoders."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.concepts import EmbeddingExtender
from refiners.foundationals.clip.text_encoder import TokenEncoder
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion import StableDiffusion_1, StableDiffusion_XL
from torch import Tensor

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor, read_header
from style_aligned.models.checkpoints.sources import expand_home
from style_aligned.models.checkpoints.tokenizer import (
    VOCABULARY_SIZE,
    ExactCLIPTokenizer,
    TextToTokens,
    exact_tokenizer,
)
from style_aligned.models.extras.lora import architecture_of
from style_aligned.models.model import beside

KEYS_OF_SDXL = ("clip_l", "clip_g")
KEYS_WITHOUT_A_WORD = (*KEYS_OF_SDXL, "emb_params")


@dataclass(frozen=True)
class Place:
    """Where one text encoder turns words into tokens and those into embeddings.

    Attributes:
        tokenizer: The tokenizer.
        parent_of_tokenizer: The chain that it is in.
        lookup: What looks up the embeddings of tokens.
        parent_of_lookup: The chain that it is in.
    """

    tokenizer: CLIPTokenizer
    parent_of_tokenizer: fl.Chain
    lookup: TokenEncoder | EmbeddingExtender
    parent_of_lookup: fl.Chain


class FileEmbedding:
    """A word from a file of textual inversion: an object or a style that a model was taught.

    Nothing changes before `inject()`. Afterwards prompts may hold the word. A word of several vectors takes as many
    tokens, as in diffusers. `with FileEmbedding(model, path):` injects it for a while. Several go in and out in any
    order.

    See [[arXiv:2208.01618] An Image is Worth One Word](https://arxiv.org/abs/2208.01618).

    Attributes:
        path: The file.
        token: The word, in lower case.
    """

    def __init__(
        self, model: StableDiffusion_XL | StableDiffusion_1, path: str | Path, *, token: str | None = None
    ) -> None:
        """Initialize the FileEmbedding.

        Args:
            model: The model.
            path: A safetensors file: with `clip_l` and `clip_g` for SDXL, with one tensor for Stable Diffusion 1.5.
                Each is of shape (vectors, dim) or (dim,).
            token: The word. None means the one that the file says, or the name of the file.

        Raises:
            CheckpointError: If the file does not fit the model, with the tensor at fault.
            ValueError: If the word holds spaces.
        """
        self.path = expand_home(path)
        self._encoder = model.clip_text_encoder
        self._model = model
        self._stack = ExitStack()
        stored, _ = read_header(self.path)
        self._vectors = self._read(stored)
        key = stored[0].key
        named = self.path.stem if len(stored) > 1 or key in KEYS_WITHOUT_A_WORD else key
        self.token = (named if token is None else token).lower()
        if not self.token or self.token.split() != [self.token]:
            raise ValueError(f"expected a word without spaces for {self.path.name}, got {self.token!r}: name one")

    @property
    def words(self) -> list[str]:
        """The word, and one more for each further vector: what diffusers calls them."""
        return [self.token if n == 0 else f"{self.token}_{n}" for n in range(len(self._vectors[0]))]

    def describe(self) -> dict[str, Any]:
        """Return what has to be known to draw the same again."""
        return {"kind": "embedding", "file": self.path.name, "token": self.token}

    def inject(self) -> "FileEmbedding":
        """Put the word into the text encoders.

        Raises:
            ValueError: If they know such a word already, or Refiners' `ConceptExtender` is there.
        """
        places = self._places()
        if any(type(place.lookup) is EmbeddingExtender for place in places):
            raise ValueError("expected a text encoder without Refiners' ConceptExtender: inject that one after this")
        for place in places:
            if known := next((word for word in self.words if word in concepts(place.tokenizer)), None):
                raise ValueError(f"expected a word that the text encoder does not know, got {known!r}: name another")
        for place, vectors in zip(places, self._vectors, strict=True):
            tokenizer, embeddings = place.tokenizer, place.lookup
            if isinstance(embeddings, TokenEncoder):
                embeddings = WordEmbeddings(embeddings)
                embeddings.inject(place.parent_of_lookup)
                if not isinstance(tokenizer, ExactCLIPTokenizer):
                    embeddings.plain_tokenizer.append(tokenizer)
                    tokenizer = exact_tokenizer(tokenizer)
                    place.parent_of_tokenizer.replace(place.tokenizer, TextToTokens(tokenizer))
            words = {word: embeddings.num_embeddings + n for n, word in enumerate(self.words)}
            for vector in vectors:
                embeddings.add_embedding(vector)
            tokenizer.token_to_id_mapping = {**tokenizer.token_to_id_mapping, **words}
        self._stack.enter_context(beside(self._model, self.describe))
        return self

    def eject(self) -> None:
        """Take the word out of the text encoders."""
        for place in self._places():
            tokenizer, embeddings = place.tokenizer, place.lookup
            if not isinstance(embeddings, WordEmbeddings):
                continue  # it is out already
            known = tokenizer.token_to_id_mapping.items()
            tokenizer.token_to_id_mapping = {word: token for word, token in known if word not in self.words}
            if not concepts(tokenizer):  # rows of words that are gone stay as long as there are others
                embeddings.eject()
                if embeddings.plain_tokenizer:
                    chain = place.parent_of_tokenizer
                    chain.ensure_parent.replace(chain, embeddings.plain_tokenizer[0])
        self._stack.close()

    def __enter__(self) -> "FileEmbedding":
        return self.inject()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.eject()

    def _places(self) -> list[Place]:
        tokenizers = self._encoder.walk(CLIPTokenizer)
        lookups = self._encoder.walk(lambda layer, _: isinstance(layer, TokenEncoder | EmbeddingExtender))
        return [
            Place(tokenizer, chain, cast(TokenEncoder | EmbeddingExtender, lookup), parent)
            for (tokenizer, chain), (lookup, parent) in zip(tokenizers, lookups, strict=True)
        ]

    def _read(self, stored: list[StoredTensor]) -> list[Tensor]:
        architecture = architecture_of(self._model)
        lookups = [place.lookup for place in self._places()]
        weights = [lookup.weight if isinstance(lookup, TokenEncoder) else lookup.old_weight for lookup in lookups]
        keys, expected = {tensor.key: tensor for tensor in stored}, KEYS_OF_SDXL[: len(weights)]
        if len(weights) == 1 and len(stored) == 1:
            expected = (stored[0].key,)
        if set(keys) != set(expected):
            what = " and ".join(expected) if len(expected) > 1 else "one tensor"
            raise CheckpointError(
                f"{self.path}: no embedding for {architecture.name}: expected {what}, got {', '.join(sorted(keys)[:3])}"
            )
        vectors: list[Tensor] = []
        for key, weight in zip(expected, weights, strict=True):
            shape, dim = keys[key].shape, weight.shape[1]
            if len(shape) not in (1, 2) or shape[-1] != dim or 0 in shape:
                raise CheckpointError(
                    f"{self.path}: {key!r} of shape {tuple(shape)} is no embedding for {architecture.name}: expected"
                    f" (vectors, {dim})"
                )
            vectors.append(keys[key].read().reshape(-1, dim))
        if len({len(rows) for rows in vectors}) > 1:
            counts = " and ".join(str(len(rows)) for rows in vectors)
            raise CheckpointError(f"{self.path}: expected as many vectors for each text encoder, got {counts}")
        return vectors


class WordEmbeddings(EmbeddingExtender):
    """The embeddings of a text encoder's tokens, and behind them those of words from files.

    Attributes:
        plain_tokenizer: Refiners' tokenizer, if it was there before.

    Receives:
        (Int[Tensor, "batch tokens"]):

    Returns:
        (Float[Tensor, "batch tokens dim"]):
    """

    def __init__(self, target: TokenEncoder) -> None:
        """Initialize the WordEmbeddings.

        Args:
            target: What looks up the embeddings of the text encoder's own tokens.
        """
        super().__init__(target)
        self.plain_tokenizer: list[CLIPTokenizer] = []  # in a list, so that it is no part of the tree


def concepts(tokenizer: CLIPTokenizer) -> list[str]:
    """Return the words that a tokenizer was taught beside CLIP's."""
    return [word for word, token in tokenizer.token_to_id_mapping.items() if token >= VOCABULARY_SIZE]
