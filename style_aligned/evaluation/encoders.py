"""The networks that look at images: DINO, CLIP and CSD, through transformers."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, device as Device
from torch.nn.functional import normalize

from style_aligned.evaluation.csd import is_csd, load_csd_model

DINO = "facebook/dino-vitb8"
CLIP = "openai/clip-vit-base-patch32"
CSD = "yuxi-liu-wired/CSD"
EXTRA = "pip install 'style-aligned[metrics]'"


class ImageEncoder:
    """Turns images into directions: vectors of length one, whose inner product is their cosine similarity."""

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        processor: Any,
        features: Callable[[Tensor], Tensor],
        tokenizer: Any = None,
    ) -> None:
        """Initialize the ImageEncoder.

        Args:
            name: The name or path of the model.
            model: The network.
            processor: Brings images into the form that the network takes, as an image processor of transformers does.
            features: Computes the vectors, of shape (images, features), from pixels.
            tokenizer: The tokenizer of a network that compares images with texts.
        """
        self.name = name
        self._model = model
        self._processor = processor
        self._features = features
        self._tokenizer = tokenizer

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "images features"]:
        """Encode images.

        Args:
            images: The images, of any size.

        Returns:
            A vector of length one for each.
        """
        inputs = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        pixels = inputs["pixel_values"].to(next(self._model.parameters()).device)
        return normalize(self._features(pixels).float(), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Encode texts, which CLIP compares with images.

        Args:
            texts: The texts. What is too long for the network is cut off.

        Returns:
            A vector of length one for each.
        """
        model: Any = self._model
        length = model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
        return normalize(_pooled(model.get_text_features(**tokens)).float(), dim=-1).cpu()


def load_dino(name: str = DINO, device: Device | str = "cpu") -> ImageEncoder:
    """Load DINO, or another vision transformer: an image is encoded by the class token of the last layer.

    Args:
        name: A folder in the format of transformers, or a name on the Hugging Face hub.
        device: Where to compute.

    Raises:
        ValueError: If there is no such model, or transformers is not installed.
    """
    with _loading(name, "a vision transformer") as transformers:
        model = transformers.AutoModel.from_pretrained(name, use_safetensors=True).to(device).eval()
        processor = _load_processor(transformers, name)

    def features(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).last_hidden_state[:, 0]

    return ImageEncoder(name, model, processor, features)


def load_clip(name: str = CLIP, device: Device | str = "cpu") -> ImageEncoder:
    """Load CLIP.

    Args:
        name: A folder in the format of transformers, or a name on the Hugging Face hub.
        device: Where to compute.

    Raises:
        ValueError: If there is no such model, or transformers is not installed.
    """
    with _loading(name, "a CLIP model") as transformers:
        model = transformers.CLIPModel.from_pretrained(name, use_safetensors=True).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        processor = _load_processor(transformers, name)

    def features(pixels: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=pixels))

    return ImageEncoder(name, model, processor, features, tokenizer)


def load_csd(name: str = CSD, device: Device | str = "cpu") -> ImageEncoder:
    """Load CSD, which tells styles apart and disregards what images show.

    See [[arXiv:2404.01292] Measuring Style Similarity in Diffusion Models](https://arxiv.org/abs/2404.01292).

    Args:
        name: A `.safetensors` file with the names of its authors, a folder or a name on the Hugging Face hub with a
            `model.safetensors` of the kind, or a `CLIPVisionModelWithProjection` of transformers.
        device: Where to compute.

    Raises:
        ValueError: If there is no such model, or transformers is not installed.
    """
    with _loading(name, "the CSD model") as transformers:
        file = _find_weights(name)
        if is_csd(file):
            model, processor = load_csd_model(file)
        else:
            model = transformers.CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True)
            processor = _load_processor(transformers, name)
        model = model.to(device).eval()

    def features(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).image_embeds

    return ImageEncoder(name, model, processor, features)


def _load_processor(transformers: Any, name: str) -> Any:
    """Load what prepares images, without torchvision: it gives other pixels, and is not always there."""
    is_old = int(transformers.__version__.split(".")[0]) < 5
    options: dict[str, Any] = {"use_fast": False} if is_old else {"backend": "pil"}
    return transformers.AutoImageProcessor.from_pretrained(name, **options)


def _find_weights(name: str) -> Path:
    """Return the path of a model's weights, which are fetched from the hub if they are not here."""
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.exists():
        return path
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

    return Path(hf_hub_download(name, "model.safetensors"))


def _pooled(output: Any) -> Tensor:
    return getattr(output, "pooler_output", output)  # newer versions of transformers wrap it


@contextmanager
def _loading(name: str, what: str) -> Generator[Any, None, None]:
    """Lend transformers to load a model: what goes wrong becomes one line, and nothing is written to the screen."""
    try:
        import transformers
        from transformers.utils import logging as reports
    except ImportError:
        raise ValueError(f"expected transformers to be installed, which loads {what}: {EXTRA}") from None
    verbosity = reports.get_verbosity()
    has_bar = reports.is_progress_bar_enabled()
    reports.set_verbosity(logging.CRITICAL)
    reports.disable_progress_bar()
    try:
        yield transformers
    except Exception as error:  # of the hub, of transformers, of safetensors: each has its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"expected {what} in safetensors at {name}, which could not be loaded: {reason}") from error
    finally:
        reports.set_verbosity(verbosity)
        if has_bar:
            reports.enable_progress_bar()
