"""The weights that the package carries: the embedded model's and the classifier's."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.mini_training.export import main, save_signed, sign
from scripts.report import DRAWINGS
from style_aligned import Style, StyleAlignedAdapter, generate
from style_aligned.evaluation.classifier import WEIGHTS as CLASSIFIER, load_classifier, read_classifier_file
from style_aligned.evaluation.sets import SETTINGS, VARIANTS, evaluate
from style_aligned.models.checkpoints import time_ids
from style_aligned.models.mini import Mini, known_concepts, known_styles, load_mini
from style_aligned.models.mini.model import FILES, WEIGHTS
from style_aligned.models.mini.names import name_thing
from style_aligned.models.solvers import sample_noise


@pytest.fixture(scope="module")
def model() -> Mini:
    return load_mini()


def test_concepts_and_styles() -> None:
    concepts, styles = known_concepts(), known_styles()
    assert (len(concepts), len(styles)) == (114, 8)
    assert {"fox", "rocket", "scissors"} < set(concepts)
    assert {"neon sign", "pixel art"} < set(styles)
    classifier = read_classifier_file()[1]
    assert (classifier["concepts"], classifier["styles"]) == (concepts, styles)


def test_vocabulary_has_every_word_of_the_canonical_captions(model: Mini) -> None:
    captions = [f"{name_thing(concept)}, {style}" for concept in known_concepts() for style in known_styles()]
    assert len(captions) == 114 * 8
    tokenizer = model.clip_text_encoder.tokenizer
    assert {word for caption in captions for word in tokenizer.unknown_words(caption)} == set()
    assert max(len(tokenizer.encode(caption)) for caption in captions) <= tokenizer.sequence_length
    assert tokenizer.unknown_words("a xylophone, neon sign") == ["xylophone"]


def test_vocabulary_is_that_of_the_training_captions(model: Mini) -> None:
    captions = pytest.importorskip("scripts.mini_data.captions")
    assert list(model.clip_text_encoder.tokenizer.vocabulary) == captions.vocabulary()


def test_size() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert sizes.keys() == {*FILES, CLASSIFIER.name}
    assert sum(sizes.values()) < 16_000_000


def test_the_solver_is_precise_in_half_precision() -> None:
    solver = load_mini(dtype=torch.float16).solver
    assert solver.dtype == torch.float32
    assert torch.equal(solver.cumulative_scale_factors, load_mini().solver.cumulative_scale_factors)


@pytest.mark.slow  # it measures time, which other tests may be pressed for
def test_loads_in_under_a_second() -> None:
    def load() -> float:
        start = time.perf_counter()
        load_mini()
        return time.perf_counter() - start

    assert min(load() for _ in range(3)) < 1


@torch.no_grad()
def test_draws(model: Mini) -> None:
    model.set_inference_steps(4)
    embedding, pooled = model.compute_clip_text_embedding("a fox, neon sign", "")
    assert embedding.isfinite().all()
    x = model.init_latents((256, 256), noise=torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)))
    for step in model.steps:
        x = model(
            x, step=step, clip_text_embedding=embedding, pooled_text_embedding=pooled, time_ids=model.default_time_ids
        )
    assert x.isfinite().all()
    image = model.lda.latents_to_image(x)
    assert (image.size, image.mode) == ((256, 256), "RGB")
    pixels = np.asarray(image, dtype=np.float32)
    assert pixels.std() > 20
    # a drawing has flat parts: pixels are far more like their neighbours than in noise
    assert np.abs(np.diff(pixels, axis=1)).mean() < pixels.std() / 2


def test_refuses_a_classifier_of_changed_weights(tmp_path: Path) -> None:
    path, whole = tmp_path / "classifier.safetensors", CLASSIFIER.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(4096) + whole[middle + 4096 :])
    with pytest.raises(ValueError, match=r"classifier\.safetensors is corrupted: expected weights with the SHA-256"):
        load_classifier(path)
    _, metadata = read_classifier_file(CLASSIFIER)
    assert metadata.keys() == {"styles", "concepts", "channels", "size", "accuracy"}
    tensors = load_file(CLASSIFIER)
    save_file(tensors, path, {"styles": "[]", "concepts": "[]", "channels": "[]", "size": "0", "accuracy": "{}"})
    with pytest.raises(ValueError, match="is corrupted, or not of this package"):
        load_classifier(path)


def test_signing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((WEIGHTS / name).read_bytes())
    path = tmp_path / "unet.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, {"format": "pt", "steps": "7"})
    with pytest.raises(ValueError, match="got none"):
        load_mini(folder=tmp_path)

    main([str(tmp_path / name) for name in FILES])
    printed = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"{tmp_path}/") for line in printed] == [
        "unet.safetensors: signed",
        "autoencoder.safetensors: had its digest",
        "text_encoder.safetensors: had its digest",
    ]
    assert {file.name for file in tmp_path.iterdir()} == set(FILES)
    assert load_mini(folder=tmp_path)
    signed = load_file(path)
    assert signed.keys() == tensors.keys()
    assert all(torch.equal(signed[name].view(torch.int16), tensors[name].view(torch.int16)) for name in tensors)
    assert b'"steps":"7"' in path.read_bytes()[:100_000]
    assert path.stat().st_mode & 0o777 == 0o644  # for all who use an installed package
    assert not sign(path)

    # what is damaged is not made good
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"unet\.safetensors is corrupted"):
        sign(path)


def test_exports_are_signed(tmp_path: Path) -> None:
    save_signed(tmp_path / "new" / "a.safetensors", {"a": torch.ones(2)}, {"format": "pt"})
    assert not sign(tmp_path / "new" / "a.safetensors")


@torch.no_grad()
def test_a_set_is_that_of_one_batch_within_a_ten_thousandth(model: Mini) -> None:
    size, steps, prompts = (128, 128), 8, ["a rocket, neon sign", "a guitar", "scissors, sticker"]
    options, noise = {"share_group_norm": True}, torch.cat([sample_noise(model, seed, (128, 128)) for seed in range(4)])
    style = Style.from_prompt(
        model, "a fox, neon sign", num_inference_steps=steps, condition_scale=2.0, size=size, options=options
    )
    samples = list(generate(model, style, prompts, batch_size=2))
    model.set_inference_steps(steps)
    text, pooled = model.compute_clip_text_embedding([style.prompt, *prompts], [""] * 4)
    x = noise
    with StyleAlignedAdapter(model.unet, share_group_norm=True):
        for step in model.steps:
            x = model(
                x, step=step, clip_text_embedding=text, pooled_text_embedding=pooled, condition_scale=2.0,
                time_ids=time_ids(size, rows=8),
            )  # fmt: skip
    torch.testing.assert_close(style.latents[-1:], x[:1], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat([sample.latents for sample in samples]), x[1:], rtol=0, atol=1e-4)
    assert x.std() > 0.3


def test_the_page_is_of_the_packages_classifier() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, title in DRAWINGS.items():
        score = read_classifier_file()[1]["accuracy"][name]
        assert f"| {title} | {score['drawings']} | {score['style']:.1%} | {score['concept']:.1%} |" in page


@pytest.mark.slow
def test_the_model_draws_what_it_is_asked_for_in_the_style_of_the_reference(model: Mini) -> None:
    """What `docs/evaluation.md` tells, on the same sets."""
    compared = [variant for variant in VARIANTS if variant.name in ("unaligned", "shared group normalization")]
    results = evaluate(model, seed=2, variants=compared, autocast=True)
    same_style, reference_only = (setting.name for setting in SETTINGS)
    unaligned, aligned = (results.row(same_style, variant.name) for variant in compared)
    assert unaligned.style.value >= 0.95
    assert unaligned.concept.value >= 0.7
    assert aligned.palette_ratio is not None
    assert aligned.palette_ratio.value <= 0.5
    unaligned, aligned = (results.row(reference_only, variant.name) for variant in compared)
    assert unaligned.style.value < 0.3
    assert aligned.style.value >= 0.8
    assert aligned.concept.value >= unaligned.concept.value - 0.1
