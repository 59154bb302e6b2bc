"""Captions, by the classifier of the embedded model and by models of transformers."""

import builtins
import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from style_aligned import Style
from style_aligned.models.mini import Mini, known_concepts, known_styles
from style_aligned.styles.captions import Caption, caption_picture, load_captioner

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "castle", "painting", "of", "fox"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP with random weights, on disk as transformers writes it."""
    folder = tmp_path_factory.mktemp("blip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers: Any = importlib.import_module("transformers")
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BlipConfig(
            text_config={
                **sizes, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "bos_token_id": 2, "sep_token_id": 3,
                "eos_token_id": 3, "pad_token_id": 0, "projection_dim": 16,
            },
            vision_config={**sizes, "image_size": 32, "patch_size": 16, "projection_dim": 16},
            projection_dim=16,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
        images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
        transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "content", "style"),
    [
        ("a watercolor painting of a castle by a lake", "a castle by a lake", "watercolor painting"),
        ("This is an oil painting of two dogs.", "two dogs", "oil painting"),
        ("a black and white photo of a man", "a man", "black and white photo"),
        ("two dogs on a beach", "two dogs on a beach", ""),
        ("a fox in the pixel art style", "a fox", "pixel art"),
        ("there is a pencil drawing of a\n cat", "a cat", "pencil drawing"),
        ("a photographer at work", "a photographer at work", ""),
    ],
)
def test_content_and_style_are_told_apart(text: str, content: str, style: str) -> None:
    caption = Caption.parse(text)
    assert (caption.content, caption.style) == (content, style)
    assert caption.prompt == (f"{content}, {style}" if style else content)


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers_writes_the_prompt(random_mini: Mini, blip: Path) -> None:
    picture = Image.new("RGB", (64, 64), "orange")
    write = load_captioner(blip)
    written = write(picture)
    assert isinstance(written, str)
    assert set(written.split()) <= {word.lower() for word in WORDS}
    assert write(picture) == written
    assert written
    assert caption_picture(picture, random_mini, blip) == Caption.parse(written)


def test_the_embedded_model_has_a_classifier(random_mini: Mini) -> None:
    caption = caption_picture(Image.new("RGB", (256, 256), "orange"), random_mini)
    assert caption.style in known_styles()
    assert caption.content.removeprefix("an ").removeprefix("a ") in known_concepts()


def test_a_function_writes_the_prompt(model: Mini) -> None:
    picture = Image.new("RGB", (64, 64), "orange")
    with pytest.warns(UserWarning, match="^the picture: captioned 'a fox, ink'$"):
        style = Style.from_image(
            model, picture, captioner=lambda _: Caption("a fox", "ink"), size=(64, 64), num_inference_steps=1
        )
    assert style.prompt == "a fox, ink"
    with pytest.raises(ValueError, match="expected a caption with at least one word, got an empty one: give a prompt"):
        Style.from_image(model, picture, captioner=lambda _: " ", size=(64, 64), num_inference_steps=1)


def test_captioners_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a captioner by name or folder, got '.*nothing'") as caught:
        load_captioner(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'style-aligned\[caption\]'.*or give a prompt"):
        load_captioner("Salesforce/blip-image-captioning-base")
