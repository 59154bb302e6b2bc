"""Textual inversion from files, against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.foundationals.clip.concepts import ConceptExtender
from refiners.foundationals.clip.tokenizer import CLIPTokenizer
from safetensors.torch import save_file
from torch import Tensor

from style_aligned.models.checkpoints import load_model
from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.tokenizer import TextToTokens
from style_aligned.models.extras import Extras, FileEmbedding
from style_aligned.models.mini import load_mini
from style_aligned.models.model import describe_model
from tests.models.checkpoints.pipelines import quiet
from tests.models.checkpoints.test_parts import error, random

PROMPT = "a <My-Cat>s owl, <my-cat>, ink"
State = dict[str, Tensor]


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "1")


@pytest.fixture
def model(folder: Path) -> Any:
    return load_model(folder)


def write(folder: Path, state: State, name: str = "my-cat") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(state, path)
    return path


def vectors(pipeline: Any, kind: str, count: int = 3, scale: float = 1.0) -> State:
    """A file's tensors, as trainers write them."""
    sizes = {"<my-cat>": pipeline.text_encoder.config.hidden_size}
    if kind == "xl":
        sizes = {"clip_l": sizes["<my-cat>"], "clip_g": pipeline.text_encoder_2.config.hidden_size}
    return {key: scale * random(count, size, seed=n) for n, (key, size) in enumerate(sizes.items())}


@torch.no_grad()
def encode(model: Any, text: str) -> list[Tensor]:
    embedding = model.compute_clip_text_embedding(text, "")
    return list(embedding) if isinstance(embedding, tuple) else [embedding]


@torch.no_grad()
def expected(pipeline: Any, kind: str, state: State, text: str) -> list[Tensor]:
    """The same of diffusers."""
    parts = [(pipeline.text_encoder, pipeline.tokenizer)]
    if kind == "xl":
        parts.append((pipeline.text_encoder_2, pipeline.tokenizer_2))
    with quiet():
        for (encoder, tokenizer), tensor in zip(parts, state.values(), strict=True):
            pipeline.load_textual_inversion(tensor, token="<my-cat>", text_encoder=encoder, tokenizer=tokenizer)
        try:
            more = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True} if kind == "1" else {}
            embedded = pipeline.encode_prompt(text, device="cpu", negative_prompt="", **more)
        finally:
            for encoder, tokenizer in parts:
                pipeline.unload_textual_inversion("<my-cat>", text_encoder=encoder, tokenizer=tokenizer)
    pooled = [torch.cat([embedded[3], embedded[2]])] if kind == "xl" else []
    return [torch.cat([embedded[1], embedded[0]]), *pooled]


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
def test_words_are_what_diffusers_makes_of_them(pipeline: Any, model: Any, kind: str, tmp_path: Path) -> None:
    state = vectors(pipeline, kind)
    before = encode(model, PROMPT)
    with FileEmbedding(model, write(tmp_path, state), token="<my-cat>" if kind == "xl" else None) as word:
        actual = encode(model, PROMPT)
        assert describe_model(model)["adapters"] == [word.describe()]
        assert word.describe() == {"kind": "embedding", "file": "my-cat.safetensors", "token": "<my-cat>"}
    for ours, theirs, plain in zip(actual, expected(pipeline, kind, state, PROMPT.lower()), before, strict=True):
        assert error(ours, theirs) < 1e-5
        assert error(plain, theirs) > 1e-3
    assert all(map(torch.equal, encode(model, PROMPT), before))
    assert "adapters" not in describe_model(model)


@pytest.mark.parametrize("kind", ["xl", "1"], indirect=True)
@pytest.mark.parametrize("is_plain", [False, True], ids=["of a checkpoint", "of Refiners"])
def test_several_in_any_order(pipeline: Any, model: Any, kind: str, is_plain: bool, tmp_path: Path) -> None:
    encoder = model.clip_text_encoder
    if is_plain:
        for place in list(encoder.layers(TextToTokens)):
            tokenizer = place.tokenizer
            place.ensure_parent.replace(place, CLIPTokenizer(pad_token_id=tokenizer.pad_token_id))
    tree, before = repr(encoder), encode(model, "a dog")
    files = [
        write(tmp_path, vectors(pipeline, kind, count, scale), name)
        for count, scale, name in ((1, 1, "cat"), (2, 2, "dog"))
    ]
    cat, dog = (FileEmbedding(model, file, token=file.stem) for file in files)
    with cat:
        alone = encode(model, "a cat")
    with dog:
        dogs = encode(model, "a dog")
        with cat:
            assert all(map(torch.equal, encode(model, "a cat"), alone))
    cat.inject()
    dog.inject()
    cat.eject()
    assert all(map(torch.equal, encode(model, "a dog"), dogs))
    dog.eject()
    dog.eject()
    assert repr(encoder) == tree
    assert all(map(torch.equal, encode(model, "a dog"), before))
    with Extras(model, embeddings=[(files[0], "cat"), (files[1], "wolf")]) as extras:
        assert all(map(torch.equal, encode(model, "a wolf"), dogs))
        assert [described["token"] for described in extras.describe()] == ["cat", "wolf"]
    assert repr(encoder) == tree


def test_the_word_of_a_file(pipeline: Any, model: Any, tmp_path: Path) -> None:
    (vector,) = vectors(pipeline, "1").values()
    assert FileEmbedding(model, write(tmp_path, {"<Sea>": vector[0]}, "any")).token == "<sea>"
    assert FileEmbedding(model, write(tmp_path, {"emb_params": vector}, "Sea-2")).words == [
        "sea-2",
        "sea-2_1",
        "sea-2_2",
    ]
    with pytest.raises(
        ValueError, match=r"expected a word without spaces for my sea\.safetensors, got 'my sea': name one"
    ):
        FileEmbedding(model, write(tmp_path, {"emb_params": vector}, "my sea"))


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("a", (3, 31), r"'a' of shape \(3, 31\) is no embedding for .+: expected \(vectors, 32\)"),
        ("a", (1, 3, 32), r"'a' of shape \(1, 3, 32\) is no embedding"),
        ("a", (0, 32), r"'a' of shape \(0, 32\) is no embedding"),
    ],
)
def test_files_that_do_not_fit(key: str, shape: tuple[int, ...], message: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        FileEmbedding(model, write(tmp_path, {key: torch.zeros(shape)}))
    with pytest.raises(CheckpointError, match="expected one tensor, got clip_g, clip_l"):
        FileEmbedding(model, write(tmp_path, {"clip_l": torch.zeros(32), "clip_g": torch.zeros(32)}))


@pytest.mark.parametrize("kind", ["xl"], indirect=True)
def test_files_that_do_not_fit_sdxl(pipeline: Any, model: Any, kind: str, tmp_path: Path) -> None:
    state = vectors(pipeline, kind)
    with pytest.raises(CheckpointError, match="expected as many vectors for each text encoder, got 3 and 2"):
        FileEmbedding(model, write(tmp_path, {**state, "clip_g": state["clip_g"][:2].clone()}))
    with pytest.raises(CheckpointError, match="expected clip_l and clip_g, got clip_l"):
        FileEmbedding(model, write(tmp_path, {"clip_l": state["clip_l"]}))


def test_what_is_refused(pipeline: Any, model: Any, tmp_path: Path) -> None:
    path = write(tmp_path, vectors(pipeline, "1"))
    with (
        FileEmbedding(model, path),
        pytest.raises(ValueError, match="a word that the text encoder does not know, got '<my-cat>': name another"),
    ):
        FileEmbedding(model, path).inject()
    extender = ConceptExtender(model.clip_text_encoder)
    extender.add_concept("owl", random(pipeline.text_encoder.config.hidden_size))
    extender.inject()
    with pytest.raises(ValueError, match="without Refiners' ConceptExtender: inject that one after this"):
        FileEmbedding(model, path).inject()
    extender.eject()
    with pytest.raises(ValueError, match="the embedded model takes no LoRA, embedding, image prompt or control model"):
        FileEmbedding(load_mini(), path)
    (tmp_path / "learned_embeds.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match=r"learned_embeds\.bin.+safetensors"):
        FileEmbedding(model, tmp_path / "learned_embeds.bin")
