import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.train_classifier import Drawings, accuracy, augment, fold, main, normalize, save, train
from style_aligned.evaluation.classifier import Classifier, load_classifier, read_classifier_file
from style_aligned.models.mini.model import digest


def tiny_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(styles=("plain", "striped"), concepts=("left", "right"), channels=(8, 8, 8))


def drawings(count: int, seed: int) -> Drawings:
    """Bright or striped squares, in the upper or lower half."""
    generator = torch.Generator().manual_seed(seed)
    styles, concepts = torch.randint(2, (2, count), generator=generator)
    pictures = torch.randint(0, 60, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    for picture, style, concept in zip(pictures, styles, concepts, strict=True):
        square = picture[:, 8:24, 20:44] if concept == 0 else picture[:, 40:56, 20:44]
        square[:] = 220
        if style == 1:
            square[:, 4:8] = square[:, 12:16] = 30
    return Drawings(pictures=pictures, styles=styles, concepts=concepts)


def test_folding_changes_nothing_but_the_layers() -> None:
    classifier, x = tiny_classifier(), torch.rand(8, 3, 64, 64)
    names = list(classifier.state_dict())
    normalize(classifier)
    classifier.train()
    for _ in range(5):
        classifier(x)
    classifier.eval()
    expected = classifier(x)
    fold(classifier)
    assert list(classifier.state_dict()) == names
    for logits, others in zip(classifier(x), expected, strict=True):
        torch.testing.assert_close(logits, others, rtol=1e-4, atol=1e-5)


def test_augmentation_gives_other_pictures_within_range() -> None:
    x = torch.rand(16, 3, 64, 64)
    augmented = augment(x, torch.Generator().manual_seed(0))
    assert augmented.shape == x.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert all(not torch.equal(one, other) for one, other in zip(augmented, x, strict=True))
    assert torch.equal(augmented, augment(x, torch.Generator().manual_seed(0)))


def test_classifier_learns_and_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    classifier, test = tiny_classifier(), drawings(64, seed=1)
    train(classifier, drawings(256, seed=0), {"test": test}, epochs=5, batch_size=16, seed=0)
    assert "step 80/80" in capsys.readouterr().out
    style, concept = accuracy(classifier, test, "cpu")
    assert style > 0.9
    assert concept > 0.9

    path = tmp_path / "folder" / "classifier.safetensors"
    save(classifier, path, {"test": {"style": style}})
    assert [file.name for file in path.parent.iterdir()] == ["classifier.safetensors"]
    assert read_classifier_file(path)[1]["accuracy"] == {"test": {"style": style}}
    loaded = load_classifier(path)
    assert loaded.styles == classifier.styles
    for logits, others in zip(loaded(test.pictures / 255), classifier(test.pictures / 255), strict=True):
        torch.testing.assert_close(logits, others, rtol=0.01, atol=0.02)


def test_classifier_is_trained_on_an_accelerator(accelerator: str, tmp_path: Path) -> None:
    test, path = drawings(8, seed=1), tmp_path / "classifier.safetensors"
    classifier = tiny_classifier().to(accelerator)
    train(classifier, drawings(8, seed=0), {"test": test}, epochs=2, batch_size=4, seed=0)
    save(classifier, path, {})
    assert accuracy(load_classifier(path), test, "cpu") == accuracy(classifier, test, accelerator)


def test_what_is_held_out_does_not_change_the_weights(tmp_path: Path) -> None:
    splits = ["held_out_cell", "train", "held_out_foundry", "train", "train", "train"]
    records = [{"concept": "fox", "style": "ink", "split": split} for split in splits]
    (tmp_path / "index.json").write_text(json.dumps({"concepts": ["fox"], "styles": ["ink"], "records": records}))
    pictures = np.random.default_rng(0).integers(0, 256, (len(splits), 256, 256, 3), dtype=np.uint8)
    threads = str(torch.get_num_threads())
    options = ["--data", tmp_path, "--reconstructed", "0.5", "--epochs", "1", "--batch-size", "2", "--threads", threads]

    def weights_if_changed(*changed: int) -> str:
        images = pictures.copy()
        images[list(changed)] = 128
        np.save(tmp_path / "images.npy", images)
        path = tmp_path / "classifier.safetensors"
        main([*map(str, options), "--output", str(path)])
        metadata = read_classifier_file(path)[1]
        assert metadata["accuracy"].keys() == {"held_out_cell", "held_out_foundry", "held_out", "reconstructed"}
        return digest(load_classifier(path).state_dict())

    weights = weights_if_changed()
    assert weights_if_changed(0, 2) == weights
    assert weights_if_changed(1) != weights
