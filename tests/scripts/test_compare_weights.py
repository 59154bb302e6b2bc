"""Comparing weights of the embedded model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.compare_weights import features, frechet_distance, main
from style_aligned.evaluation.classifier import load_classifier
from style_aligned.models.mini.model import WEIGHTS


def test_the_frechet_distance_of_one_channel_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(50, 1, generator=generator), 3 * torch.randn(70, 1, generator=generator) + 2
    expected = float((first.mean() - second.mean()) ** 2 + (first.std() - second.std()) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)


def test_the_frechet_distance_does_not_depend_on_the_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(40, 3, generator=generator), torch.randn(60, 3, generator=generator)
    second = second @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.5]])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(frechet_distance(first, second), rel=1e-4)
    assert frechet_distance(first, second) > 0.5
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    # of fewer than channels, as there are of one style
    assert frechet_distance(first[:2], first[:2] + 1) == pytest.approx(3, rel=1e-5)


def test_samples_of_different_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"as many channels, got \(4, 3\) and \(4, 2\)"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))


@torch.no_grad()
def test_the_heads_see_the_features() -> None:
    classifier = load_classifier()
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 64, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(picture) for picture in pixels]
    style_logits, _ = list(classifier)[-1](features(classifier, images, batch_size=2))
    torch.testing.assert_close(style_logits.softmax(dim=-1), classifier.classify(images).styles)


def test_the_page_compares_all_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = load_classifier()
    records = [
        {"concept": concept, "style": style, "split": "held_out_cell"}
        for style in classifier.styles
        for concept in ("fox", "car")
    ]
    pictures = np.random.default_rng(0).integers(0, 256, size=(len(records), 256, 256, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pictures)
    index = {"concepts": ["fox", "car"], "styles": list(classifier.styles), "records": records}
    (tmp_path / "index.json").write_text(json.dumps(index))
    result = tmp_path / "result.json"
    main([str(WEIGHTS), "--data", str(tmp_path), "--steps", "2", "--json", str(result), "--bfloat16"])
    ours, drawings = json.loads(result.read_text())
    assert ours["name"] == str(WEIGHTS)
    assert drawings["name"] == "the drawings themselves"
    assert ours["distance"] > 1
    assert drawings["distance"] == pytest.approx(0, abs=1e-3)
    assert ours["distances"].keys() == set(classifier.styles)
    page = capsys.readouterr().out
    assert f"| {WEIGHTS} | {ours['style']:.1%} | {ours['concept']:.1%} | {ours['distance']:.2f} |" in page
