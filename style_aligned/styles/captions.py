"""Captions: what a picture shows and in which style, for a prompt that its style can be made with."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from style_aligned.models.mini.classifier import load_classifier
from style_aligned.models.mini.model import Mini
from style_aligned.models.mini.names import name_thing
from style_aligned.models.model import Model
from style_aligned.words import show

DEFAULT_CAPTIONER = "Salesforce/blip-image-captioning-base"
MAX_TOKENS = 60  # of a caption
KINDS = (
    "painting", "drawing", "sketch", "illustration", "photo", "photograph", "picture", "image", "cartoon", "sticker",
    "poster", "rendering", "render", "print", "mosaic", "statue", "sculpture", "engraving", "etching", "woodcut",
    "collage", "watercolor", "watercolour", "icon", "logo", "comic", "portrait", "mural", "embroidery", "sign",
)  # fmt: skip
STYLE_FIRST = re.compile(
    rf"^(?:(?:this is|there is|the image shows|the picture shows)\s+)?(?:an?|the)?\s*"
    rf"(?P<style>(?:[\w'-]+\s+){{0,4}}?(?:{'|'.join(KINDS)}))\s+(?:of|showing|with|that shows)\s+(?P<content>.+)$",
    re.IGNORECASE,
)
STYLE_LAST = re.compile(
    r"^(?P<content>.+?),?\s+(?:done )?in\s+(?:the\s+|an?\s+)?(?P<style>.+?)\s+style$", re.IGNORECASE
)
SIMPLE_TASK = "<CAPTION>"


@dataclass(frozen=True)
class Caption:
    """What a picture shows and in which style, apart: the style can end the prompts of a whole set.

    Attributes:
        content: What it shows, such as "a castle".
        style: Its style, such as "watercolor". Empty where a caption names none.
    """

    content: str
    style: str = ""

    @property
    def prompt(self) -> str:
        """Both together, such as "a castle, watercolor"."""
        return f"{self.content}, {self.style}" if self.style else self.content

    @classmethod
    def parse(cls, text: str) -> "Caption":
        """Take a caption apart into content and style, as far as it tells them apart.

        Example:
            >>> Caption.parse("a watercolor painting of a castle by a lake.")
            Caption(content='a castle by a lake', style='watercolor painting')
            >>> Caption.parse("two dogs on a beach")
            Caption(content='two dogs on a beach', style='')
        """
        text = re.sub(r"\s+", " ", text).strip().rstrip(".")
        match = STYLE_FIRST.match(text) or STYLE_LAST.match(text)
        if match is None:
            return cls(text)
        return cls(match["content"].strip(), match["style"].strip())


Captioner = Callable[[Image.Image], Caption | str]
"""Something that says what a picture shows."""


def caption_picture(image: Image.Image, model: Model, captioner: Captioner | str | Path | None = None) -> Caption:
    """Write a caption.

    Args:
        image: The picture, in RGB.
        model: The model that is to draw. The embedded one has a classifier that knows its concepts and styles.
        captioner: A function, or the name on the Hugging Face hub or the folder of a model that writes captions. None
            means the classifier for the embedded model, and BLIP for others.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If there is no such model, or it writes nothing.
    """
    if captioner is None and isinstance(model, Mini):
        return classify(image, model)
    name = captioner or DEFAULT_CAPTIONER
    write = name if callable(name) else load_captioner(name, device=str(model.device))
    written = write(image)
    caption = written if isinstance(written, Caption) else Caption.parse(written)
    if not caption.content:
        raise ValueError("expected a caption with at least one word, got an empty one: give a prompt")
    return caption


def classify(image: Image.Image, model: Mini) -> Caption:
    """Name concept and style of a picture by the classifier of the embedded model.

    Args:
        image: The picture.
        model: The embedded model.
    """
    classification = load_classifier(device=model.device).classify([image])
    return Caption(name_thing(classification.concept_names[0]), classification.style_names[0])


def load_captioner(name_or_path: str | Path, *, device: str = "cpu") -> Captioner:
    """Load a model that writes captions: BLIP, Florence-2, or any other that transformers has for images and text.

    Args:
        name_or_path: Its name on the Hugging Face hub, or its folder.
        device: Where to run it.

    Returns:
        A function that takes a picture and returns what it shows.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If there is no such model.
    """
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a captioner needs transformers (pip install 'style-aligned[caption]'), or give a prompt: {error}",
            name=error.name,
        ) from None
    name, library = str(name_or_path), cast(Any, transformers)
    try:
        config = library.AutoConfig.from_pretrained(name)
        processor = library.AutoProcessor.from_pretrained(name)
        network = _model_class(library, config).from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        sentence = str(error).strip().partition("\n")[0]
        raise ValueError(f"expected a captioner by name or folder, got {show(name)}: {sentence}") from None
    network = network.to(device).eval()
    task = SIMPLE_TASK if "florence" in str(config.model_type).lower() else ""

    def write(image: Image.Image) -> str:
        given = {"text": task} if task else {}
        inputs = processor(images=image.convert("RGB"), return_tensors="pt", **given).to(device)
        with torch.no_grad():
            tokens = network.generate(**inputs, max_new_tokens=MAX_TOKENS)
        text = str(processor.batch_decode(tokens, skip_special_tokens=True)[0])
        return text.removeprefix(task).strip()

    return write


def _model_class(library: Any, config: Any) -> Any:
    """The class of a model that writes text about an image: the first that transformers has for its configuration."""
    for name in ("AutoModelForImageTextToText", "AutoModelForVision2Seq"):
        auto = getattr(library, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return auto
    raise ValueError(f"a model of the kind {config.model_type!r} writes no captions")
