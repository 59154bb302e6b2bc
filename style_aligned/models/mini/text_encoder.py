"""The embedded model's text encoders: two small CLIP text encoders over a vocabulary of whole words."""

from collections.abc import Sequence
from pathlib import Path

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.text_encoder import CLIPTextEncoder, CLIPTextEncoderG, CLIPTextEncoderL
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.text_encoder import DoubleTextEncoder
from torch import Tensor, device as Device, dtype as DType, tensor

from style_aligned.words import words

SEQUENCE_LENGTH = 32
EMBEDDING_DIM = 64
HEAD_DIM = 32


class MiniTokenizer(CLIPTokenizer):
    """Tokenizer of whole words, with Refiners' interface.

    A word outside of the vocabulary becomes the unknown token; words beyond the sequence's length are cut off.
    Refiners' `ConceptExtender` cannot add words to it: it reads CLIP's file of byte pairs, and there are none.

    Receives:
        (str | list[str]): One text, or several.

    Returns:
        (Int[Tensor, "batch sequence_length"]):
    """

    SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unknown>")

    def __init__(self, vocabulary: Sequence[str], sequence_length: int = SEQUENCE_LENGTH) -> None:
        """Initialize the tokenizer.

        Args:
            vocabulary: The words it knows; their order gives their numbers.
            sequence_length: The number of tokens of every text, start and end included.
        """
        fl.Module.__init__(self)  # past the constructor that reads CLIP's vocabulary
        self.vocabulary_path = Path()
        self.vocabulary = tuple(vocabulary)
        self.sequence_length = sequence_length
        tokens = (*self.SPECIAL_TOKENS, *self.vocabulary)
        self.token_to_id_mapping = {token: i for i, token in enumerate(tokens)}
        if len(self.token_to_id_mapping) != len(tokens):
            raise ValueError("a word occurs twice in the vocabulary")
        self.pad_token_id, self.start_of_text_token_id, self.end_of_text_token_id, self.unknown_token_id = range(4)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(words={len(self.vocabulary)}, sequence_length={self.sequence_length})"

    def encode(self, text: str, max_length: int | None = None) -> Tensor:
        """Turn a text into tokens.

        Args:
            text: The text.
            max_length: The number of tokens, start and end included, after which the text is cut off.

        Returns:
            The tokens, of shape (length,).
        """
        tokens = [self.token_to_id_mapping.get(word, self.unknown_token_id) for word in words(text)]
        if max_length is not None:
            if max_length < 2:
                raise ValueError(f"expected room for two tokens at least (start and end), got {max_length}")
            tokens = tokens[: max_length - 2]
        return tensor([self.start_of_text_token_id, *tokens, self.end_of_text_token_id])

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that are not in the vocabulary, each once, in the text's order."""
        return [word for word in dict.fromkeys(words(text)) if word not in self.token_to_id_mapping]

    def known_words(self, text: str) -> list[str]:
        """The words of a text that are in the vocabulary, each once, in the text's order."""
        return [word for word in dict.fromkeys(words(text)) if word in self.token_to_id_mapping]


class MiniTextEncoderL(CLIPTextEncoderL):
    """The first text encoder, in the place of SDXL's CLIP L. Its last layer is not used, as in SDXL."""

    def __init__(
        self,
        tokenizer: MiniTokenizer,
        embedding_dim: int = EMBEDDING_DIM,
        num_layers: int = 2,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        CLIPTextEncoder.__init__(
            self,
            embedding_dim=embedding_dim,
            max_sequence_length=tokenizer.sequence_length,
            vocabulary_size=len(tokenizer.token_to_id_mapping),
            num_layers=num_layers,
            num_attention_heads=embedding_dim // HEAD_DIM,
            feedforward_dim=4 * embedding_dim,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
        )


class MiniTextEncoderG(CLIPTextEncoderG):
    """The second text encoder, in the place of SDXL's OpenCLIP bigG. Its last layer makes the pooled embedding only."""

    def __init__(
        self,
        tokenizer: MiniTokenizer,
        embedding_dim: int = EMBEDDING_DIM,
        num_layers: int = 3,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        CLIPTextEncoder.__init__(
            self,
            embedding_dim=embedding_dim,
            max_sequence_length=tokenizer.sequence_length,
            vocabulary_size=len(tokenizer.token_to_id_mapping),
            num_layers=num_layers,
            num_attention_heads=embedding_dim // HEAD_DIM,
            feedforward_dim=4 * embedding_dim,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
        )


class MiniDoubleTextEncoder(DoubleTextEncoder):
    """Both text encoders, as `StableDiffusion_XL.compute_clip_text_embedding` calls them.

    Receives:
        (str | list[str]): One text, or several.

    Returns:
        (tuple[Float[Tensor, "batch sequence_length 2*embedding_dim"], Float[Tensor, "batch embedding_dim"]]):
            the text embedding and the pooled text embedding.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        embedding_dim: int = EMBEDDING_DIM,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Initialize the text encoders.

        Args:
            vocabulary: The words they know.
            embedding_dim: The number of channels of each.
            device: The PyTorch device to use.
            dtype: The PyTorch data type to use.
        """
        super().__init__(
            # a tokenizer each: one layer cannot sit in two chains
            MiniTextEncoderL(MiniTokenizer(vocabulary), embedding_dim=embedding_dim, device=device, dtype=dtype),
            MiniTextEncoderG(MiniTokenizer(vocabulary), embedding_dim=embedding_dim, device=device, dtype=dtype),
            projection=fl.Linear(embedding_dim, embedding_dim, bias=False, device=device, dtype=dtype),
        )

    @property
    def tokenizer(self) -> MiniTokenizer:
        return self.ensure_find(MiniTokenizer)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model was never taught, each once, in the text's order."""
        return self.tokenizer.unknown_words(text)
