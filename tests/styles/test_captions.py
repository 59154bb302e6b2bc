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
from style_aligned.styles.captions import MAX_TOKENS, Caption, caption_picture, load_captioner

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


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Florence-2 with random weights, which writes nothing but words."""
    folder = tmp_path_factory.mktemp("florence")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    words = [*special, "a", "castle", "painting", "of", "fox", "what", "does", "the", "image", "describe", "?"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers: Any = importlib.import_module("transformers")
        tokenizers: Any = importlib.import_module("tokenizers")
        own = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
        own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=own, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
            extra_special_tokens={"image_token": "<image>"},
        )  # fmt: skip
        tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        text = transformers.BartConfig(
            vocab_size=len(words), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
            decoder_start_token_id=2, **tokens,
        )  # fmt: skip
        vision = {
            "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
            "patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2),
            "window_size": 4, "projection_dim": 32, "max_position_embeddings": 8,
        }  # fmt: skip
        config = transformers.Florence2Config(
            text_config=text.to_dict(), vision_config=vision, image_token_id=4, **tokens
        )
        torch.manual_seed(0)
        network = transformers.Florence2ForConditionalGeneration(config)
        state = network.state_dict()
        torch.nn.init.normal_(state["model.language_model.shared.weight"])  # or it writes the same all the time
        for layer in ("k_proj", "v_proj", "q_proj"):
            state[f"model.language_model.decoder.layers.0.encoder_attn.{layer}.weight"] *= 20
        network.generation_config.suppress_tokens = [*range(len(special)), *range(10, len(words))]
        network.generation_config.forced_eos_token_id = None
        network.generation_config.no_repeat_ngram_size = 3
        network.save_pretrained(folder)
        images = transformers.CLIPImageProcessor(
            size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
        )
        images.image_seq_length = 4 * 4 + 1  # all places of the vision tower, and their mean
        transformers.Florence2Processor(images, tokenizer).save_pretrained(folder)
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


@pytest.mark.filterwarnings("ignore")
def test_florence_is_asked_for_a_caption(florence: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    processor = transformers.AutoProcessor.from_pretrained(florence)
    network = transformers.Florence2ForConditionalGeneration.from_pretrained(florence).eval()
    expected: list[str] = []
    for question in ("What does the image describe?", "a castle"):  # the first is what <CAPTION> stands for
        inputs = processor(text=question, images=picture, return_tensors="pt")
        tokens = network.generate(**inputs, max_new_tokens=MAX_TOKENS)
        expected.append(processor.batch_decode(tokens, skip_special_tokens=True)[0])
    assert load_captioner(florence)(picture) == expected[0].strip() != expected[1].strip()
    assert set(expected[0].split()) <= {"a", "castle", "painting", "of", "fox"}


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
