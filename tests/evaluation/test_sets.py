import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refiners.fluxion.utils import save_to_safetensors
from torch.nn.functional import avg_pool2d

from scripts.evaluate import FURTHER_VARIANTS
from scripts.report import to_markdown, to_plot
from style_aligned.evaluation.classifier import Classifier, load_classifier, read_classifier_file
from style_aligned.evaluation.sets import (
    SETTINGS,
    UNALIGNED,
    VARIANTS,
    SetOfPrompts,
    Setting,
    Variant,
    draw_images,
    draw_prompts,
    evaluate,
    name_thing,
)
from style_aligned.models.mini import Mini, MiniAutoencoder, MiniDoubleTextEncoder, MiniUNet
from style_aligned.models.mini.model import DIGEST, digest
from style_aligned.sampling.generation import generate
from style_aligned.styles.style import Style

SAME_STYLE, REFERENCE_ONLY = SETTINGS
ALIGNED = Variant("aligned", {})
STYLES, CONCEPTS = ("neon sign", "bold ink"), ("fox", "owl", "rocket", "scissors")


@pytest.fixture(scope="module")
def model() -> Mini:
    """The embedded model with random weights."""
    torch.manual_seed(0)
    text_encoder = MiniDoubleTextEncoder(["a", "an", "neon", "sign", "fox", "owl", "rocket", "scissors"])
    return Mini(unet=MiniUNet(), lda=MiniAutoencoder(), clip_text_encoder=text_encoder)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(styles=STYLES, concepts=CONCEPTS, channels=(8, 8, 8))


def write(classifier: Classifier, path: Path, **changes: str | None) -> Path:
    metadata = {
        "styles": json.dumps(classifier.styles),
        "concepts": json.dumps(classifier.concepts),
        "channels": "[8, 8, 8]",
        "size": "64",
        "accuracy": '{"held_out": {"drawings": 1000, "style": 0.99, "concept": 0.9}}',
    }
    kept = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    tensors = {key: tensor.half() for key, tensor in classifier.state_dict().items()}
    save_to_safetensors(path, tensors, metadata={**kept, DIGEST: digest(tensors)})
    return path


def picture(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(side, side, 3), dtype=np.uint8))


def test_classifier_gives_probabilities_and_their_names(classifier: Classifier) -> None:
    classification = classifier.classify([picture(seed, 64) for seed in range(5)], batch_size=2)
    assert classification.styles.shape == (5, 2)
    assert classification.concepts.shape == (5, 4)
    torch.testing.assert_close(classification.styles.sum(dim=-1), torch.ones(5))
    torch.testing.assert_close(classification.concepts.sum(dim=-1), torch.ones(5))
    for names, probabilities, known in (
        (classification.style_names, classification.styles, STYLES),
        (classification.concept_names, classification.concepts, CONCEPTS),
    ):
        assert [known.index(name) for name in names] == probabilities.argmax(dim=-1).tolist()


def test_classifier_takes_any_size_and_mode(classifier: Classifier) -> None:
    large = picture(0, 256)
    pixels = torch.tensor(np.asarray(large)).permute(2, 0, 1).float() / 255
    expected = classifier(avg_pool2d(pixels, kernel_size=4)[None])[1].softmax(dim=-1)
    torch.testing.assert_close(classifier.classify([large, picture(1, 100)]).concepts[:1], expected)
    opaque = large.convert("RGBA")
    torch.testing.assert_close(classifier.classify([opaque, large.convert("L")]).concepts[:1], expected)


def test_classifier_of_nothing(classifier: Classifier) -> None:
    classification = classifier.classify([])
    assert classification.styles.shape == (0, 2)
    assert classification.concept_names == []


def test_classifier_comes_back_from_its_file(classifier: Classifier, tmp_path: Path) -> None:
    path = write(classifier, tmp_path / "classifier.safetensors")
    loaded = load_classifier(path)
    assert (loaded.styles, loaded.concepts) == (classifier.styles, classifier.concepts)
    images = [picture(seed, 64) for seed in range(3)]
    torch.testing.assert_close(
        loaded.classify(images).concepts, classifier.classify(images).concepts, atol=1e-3, rtol=0
    )
    assert read_classifier_file(path)[1]["accuracy"]["held_out"]["style"] == 0.99


def left_out(classifier: Classifier, path: Path) -> None:
    pass


def cut_off(classifier: Classifier, path: Path) -> None:
    write(classifier, path)
    path.write_bytes(path.read_bytes()[:-100])


def without_names(classifier: Classifier, path: Path) -> None:
    write(classifier, path, styles=None, accuracy=None)


def of_other_names(classifier: Classifier, path: Path) -> None:
    write(classifier, path, styles='["neon sign"]')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (left_out, r"classifier\.safetensors is missing"),
        (cut_off, "is not a whole safetensors file"),
        (without_names, "does not say its styles, accuracy"),
        (of_other_names, "does not hold a classifier's weights"),
    ],
)
def test_damaged_classifiers_are_refused(
    damage: Callable[[Classifier, Path], None], message: str, classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    damage(classifier, path)
    with pytest.raises(ValueError, match=message):
        load_classifier(path)


def test_prompts_name_the_style_where_they_are_to() -> None:
    prompts = SetOfPrompts(style="neon sign", concepts=("fox", "owl", "scissors"), seeds=(0, 1, 2))
    assert prompts.prompts(SAME_STYLE) == ["a fox, neon sign", "an owl, neon sign", "scissors, neon sign"]
    assert prompts.prompts(REFERENCE_ONLY) == ["a fox, neon sign", "an owl", "scissors"]


def test_prompts_are_in_the_words_of_the_training_data() -> None:
    concepts = pytest.importorskip("scripts.mini_data.concepts")
    for concept in concepts.CONCEPTS:
        assert name_thing(concept.name) == concept.phrases()[0]


def test_sets_are_drawn_evenly_and_anew_for_each_seed() -> None:
    concepts = [f"thing {number}" for number in range(20)]
    styles = [f"style {number}" for number in range(8)]
    drawn = draw_prompts(concepts, styles, sets=50, set_size=5, seed=0)
    assert set(Counter(one.style for one in drawn).values()) == {6, 7}
    assert all(len(set(one.concepts)) == 5 for one in drawn)
    assert len({seed for one in drawn for seed in one.seeds}) == 250
    assert drawn == draw_prompts(concepts, styles, sets=50, set_size=5, seed=0)
    assert drawn != draw_prompts(concepts, styles, sets=50, set_size=5, seed=1)
    assert drawn[:10] == draw_prompts(concepts, styles, sets=10, set_size=5, seed=0)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_images_are_those_of_generate(model: Mini, setting: Setting) -> None:
    sets = draw_prompts(CONCEPTS, STYLES, sets=2, set_size=3, seed=0)
    drawn = draw_images(model, sets, setting, ALIGNED, steps=2, guidance=4.0)
    for prompts, images in zip(sets, drawn, strict=True):
        reference, *targets = prompts.prompts(setting)
        style = Style.from_prompt(
            model, reference, seed=prompts.seeds[0], num_inference_steps=2, condition_scale=4.0, share_group_norm=False
        )
        expected = [style.image(model)]
        expected += [sample.image for sample in generate(model, style, targets, seeds=prompts.seeds[1:])]
        for image, other in zip(images, expected, strict=True):
            assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1


def test_variants_differ_in_their_targets_alone(model: Mini) -> None:
    sets = draw_prompts(CONCEPTS, STYLES, sets=1, set_size=2, seed=0)
    images = {
        variant.name: draw_images(model, sets, SAME_STYLE, variant, steps=2, guidance=4.0)[0]
        for variant in (*VARIANTS, *FURTHER_VARIANTS)
    }
    targets = [image[1].tobytes() for image in images.values()]
    assert len(set(targets)) == len(VARIANTS) + len(FURTHER_VARIANTS)
    for name, (reference, _) in images.items():
        difference = np.abs(np.asarray(reference).astype(int) - np.asarray(images["unaligned"][0])).max()
        assert (difference > 1) == (name == "full attention sharing")


def test_low_precision_gives_nearly_the_same(model: Mini) -> None:
    sets = draw_prompts(CONCEPTS, STYLES, sets=1, set_size=2, seed=0)
    exact, quick = (
        np.array(draw_images(model, sets, SAME_STYLE, ALIGNED, steps=2, guidance=4.0, autocast=autocast)[0], dtype=int)
        for autocast in (False, True)
    )
    difference = np.abs(exact - quick)
    assert 0 < difference.mean() < 2


def test_evaluation_compares_variants_on_the_same_sets(model: Mini, classifier: Classifier) -> None:
    progress: list[tuple[int, int]] = []
    seen: list[tuple[str, str, SetOfPrompts, int]] = []
    results = evaluate(
        model,
        sets=3,
        set_size=2,
        steps=1,
        variants=[ALIGNED, UNALIGNED],
        classifier=classifier,
        batch_size=4,
        on_progress=lambda done, total: progress.append((done, total)),
        on_set=lambda setting, variant, one, images: seen.append((setting.name, variant.name, one, len(images))),
    )
    order = [(setting.name, variant) for setting in SETTINGS for variant in ("unaligned", "aligned")]
    assert [(row.setting, row.variant) for row in results.rows] == order
    assert progress == [(done, 8) for done in range(1, 9)]  # 2 settings, 2 variants, 2 batches of 1 step
    assert [one[:2] for one in seen] == [names for names in order for _ in range(3)]
    for start in range(0, 12, 3):
        assert [one[2] for one in seen[start : start + 3]] == [one[2] for one in seen[:3]]
    unaligned = results.row("same style", "unaligned")
    assert unaligned.palette_ratio is not None
    assert (unaligned.palette_ratio.low, unaligned.palette_ratio.high) == pytest.approx((1, 1))
    for row in results.rows:
        for score in (row.style, row.concept):
            assert 0 <= score.low <= score.value <= score.high <= 1
    json.dumps(results.to_dict())


def test_scores_are_of_targets_alone(model: Mini, monkeypatch: pytest.MonkeyPatch, classifier: Classifier) -> None:
    """A classifier that sees the reference's style everywhere, and of two targets the right concept in one, and the
    reference's own in the other."""
    sets = draw_prompts(CONCEPTS, STYLES, sets=2, set_size=3, seed=0)
    told = iter(sets)
    counts: list[int] = []

    def findings(self: Classifier, images: list[Image.Image]) -> object:
        counts.append(len(images))
        one = next(told)
        probabilities = torch.zeros(2, len(CONCEPTS))
        probabilities[1, CONCEPTS.index(one.concepts[0])] = 0.6
        names = {"style_names": [one.style] * 2, "concept_names": [one.concepts[1], one.concepts[0]]}
        return type("Findings", (), {**names, "concepts": probabilities})()

    monkeypatch.setattr(Classifier, "classify", findings)
    results = evaluate(
        model, sets=2, set_size=3, steps=1, variants=[ALIGNED], settings=[REFERENCE_ONLY], classifier=classifier
    )
    assert counts == [2, 2]
    (row,) = results.rows
    assert row.style.value == 1
    assert row.concept.value == 0.5
    assert row.leakage.value == 0.5
    assert row.leakage_probability.value == pytest.approx(0.3)
    assert row.palette_ratio is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": 0}, "expected sets to be at least 1, got 0"),
        ({"set_size": 1}, "expected set_size between 2 and the number of concepts, 4, got 1"),
        ({"set_size": 5}, "expected set_size between 2 and the number of concepts, 4, got 5"),
        ({"steps": 0}, "expected steps between 1 and 1000, got 0"),
        ({"guidance": float("nan")}, "expected guidance to be a finite number, got nan"),
        ({"batch_size": 0}, "expected batch_size to be at least 1, got 0"),
        ({"variants": []}, "expected at least one variant and one setting"),
    ],
)
def test_bad_arguments_are_refused(
    model: Mini, classifier: Classifier, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(model, classifier=classifier, **arguments)  # pyright: ignore[reportArgumentType]


def test_report_has_a_line_for_each_variant(model: Mini, classifier: Classifier, tmp_path: Path) -> None:
    results = evaluate(
        model, sets=2, set_size=2, steps=1, variants=VARIANTS[:2], settings=SETTINGS[:1], classifier=classifier
    )
    metadata = read_classifier_file(write(classifier, tmp_path / "classifier.safetensors"))[1]
    command = "python -m scripts.evaluate --sets 2"
    page = to_markdown(results, classifier=metadata, parameters=500_000, command=command)
    assert "evaluation-sets.jpg" not in page
    page = to_markdown(results, classifier=metadata, parameters=500_000, command=command, sets_shown=2)
    assert "The first 2 of these sets" in page
    lines = page.splitlines()
    assert all(len(line) <= 120 or line.startswith("|") for line in lines)
    assert [line.split("|")[1].strip() for line in lines if line.startswith(("| un", "| **al"))] == [
        "unaligned",
        "**aligned**",
    ]
    assert "| all of these | 1000 | 99.0% | 90.0% |" in lines
    assert "Made by `python -m scripts.evaluate --sets 2`." in lines
    plot = to_plot(results, scale=1)
    assert plot.width == 1000
    assert len(plot.getcolors(maxcolors=1 << 24) or []) > 5


def test_the_package_has_a_classifier_of_what_the_model_draws() -> None:
    classifier, accuracy = load_classifier(), read_classifier_file()[1]["accuracy"]["held_out"]
    assert (len(classifier.styles), len(classifier.concepts)) == (8, 114)
    assert accuracy["style"] >= 0.98
    assert accuracy["concept"] >= 0.85
    plain = classifier.classify([Image.new("RGB", (256, 256), color) for color in ("white", "black")])
    assert plain.concepts.isfinite().all()
