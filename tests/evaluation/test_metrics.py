import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from style_aligned.evaluation import metrics as module
from style_aligned.evaluation.encoders import load_clip, load_csd, load_dino
from style_aligned.evaluation.metrics import METRICS, evaluate_folders
from style_aligned.evaluation.palette import set_palette_distance
from style_aligned.evaluation.statistics import bootstrap_mean
from style_aligned.files import describe_image, open_image, write_png

SETS = {"ink": ("a cat", "a dog", "a fox"), "neon": ("a rocket", "an umbrella")}


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sets of another program."""
    seed = 0
    for style, objects in SETS.items():
        (tmp_path / style).mkdir()
        for index, _ in enumerate(objects):
            picture(seed).save(tmp_path / style / f"{index}.png")
            seed += 1
        (tmp_path / style / "prompts.txt").write_text("".join(f"{thing}, {style}\n" for thing in objects))
    return tmp_path


def images(folder: Path) -> list[Image.Image]:
    return [open_image(path) for path in sorted(folder.glob("*.png"))]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_measures_are_those_of_the_paper(folder: Path, encoder_files: dict[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = evaluate_folders(
        [folder], models=encoder_files, batch_size=2, on_image=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 5), (5, 5)]
    assert evaluation.models == encoder_files
    assert [(one.name, one.sets, one.images) for one in evaluation.sets] == [("ink", 1, 3), ("neon", 1, 2)]
    expected: dict[str, list[float]] = {name: [] for name in METRICS}
    for style, objects in SETS.items():
        own = images(folder / style)
        for name, load in (("dino", load_dino), ("csd", load_csd)):
            vectors = load(encoder_files[name]).images(own).numpy()
            expected[name].append(float(np.mean([cosine(a, b) for a, b in combinations(vectors, 2)])))
        clip = load_clip(encoder_files["clip"])
        pairs = zip(clip.images(own).numpy(), clip.texts(objects).numpy(), strict=True)
        expected["clip"].append(float(np.mean([cosine(image, text) for image, text in pairs])))
        expected["palette"].append(set_palette_distance(own))
    (over_all,) = evaluation.groups
    assert (over_all.name, over_all.sets, over_all.images) == ("all", 2, 5)
    for name, values in expected.items():
        measured = [one.values[name] for one in evaluation.sets]
        assert [value.value for value in measured if value is not None] == pytest.approx(values, abs=1e-5), name
        total = over_all.values[name]
        assert total is not None
        known = bootstrap_mean(values)
        assert (total.value, total.low, total.high) == pytest.approx((known.value, known.low, known.high), abs=1e-5)
        for value in measured:
            assert value is not None
            assert value.low <= value.value + 1e-9
            assert value.value <= value.high + 1e-9
    json.dumps(evaluation.to_dict())


def test_aligned_and_unaligned_are_compared(tmp_path: Path) -> None:
    colors = {"reference": "navy", "000": "navy", "001": "blue", "unaligned/000": "red", "unaligned/001": "white"}
    (tmp_path / "unaligned").mkdir()
    for name, color in colors.items():
        write_png(tmp_path / f"{name}.png", Image.new("RGB", (8, 8), color), describe_image("a cat, ink", 0, {}))
    evaluation = evaluate_folders([tmp_path], metrics=["palette"])
    assert [(one.name, one.images) for one in evaluation.groups] == [("aligned", 3), ("unaligned", 3)]
    for group, chosen in zip(evaluation.groups, (["navy", "navy", "blue"], ["navy", "red", "white"]), strict=True):
        value = group.values["palette"]
        assert value is not None
        assert value.value == pytest.approx(set_palette_distance([Image.new("RGB", (8, 8), color) for color in chosen]))
        assert value.low < value.value < value.high  # of one set, over its images


def test_several_folders_are_told_apart(folder: Path) -> None:
    evaluation = evaluate_folders([folder / "ink", folder / "neon"], metrics=["palette"])
    for measures in (evaluation.groups, evaluation.sets):
        assert [one.name for one in measures] == [str(folder / "ink"), str(folder / "neon")]
    with pytest.raises(ValueError, match=r"expected different folders, got .*/ink twice"):
        evaluate_folders([folder / "ink", folder / "ink"], metrics=["palette"])


def test_what_cannot_be_told_is_left_out(folder: Path, encoder_files: dict[str, str]) -> None:
    (folder / "ink" / "prompts.txt").unlink()
    (folder / "neon" / "1.png").unlink()
    (folder / "neon" / "prompts.txt").write_text("a rocket, neon\n")
    evaluation = evaluate_folders([folder], metrics=["clip", "palette"], models=encoder_files)
    ink, neon = (one.values for one in evaluation.sets)
    assert ink["clip"] is None
    assert neon["palette"] is None
    (over_all,) = evaluation.groups
    assert over_all.values == {"clip": neon["clip"], "palette": ink["palette"]}
    (folder / "neon" / "prompts.txt").unlink()
    with pytest.raises(ValueError, match=r"expected a prompts\.txt with a line for each image in .*: CLIP compares"):
        evaluate_folders([folder], metrics=["clip"], models=encoder_files)


def test_large_sets_are_sampled_evenly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 2)
    own = images(folder / "ink")
    value = evaluate_folders([folder / "ink"], metrics=["palette"]).groups[0].values["palette"]
    assert value is not None
    assert value.value == pytest.approx(set_palette_distance([own[0], own[2]]))


@pytest.mark.parametrize(("metrics", "given"), [(["clip", "beauty"], "clip, beauty"), ([], "none")])
def test_unknown_metrics_are_refused(metrics: list[str], given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected metrics of clip, dino, csd, palette, got {given}"):
        evaluate_folders([tmp_path], metrics=metrics)


def test_damaged_images_are_named(folder: Path) -> None:
    (folder / "ink" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"expected .*/ink/1\.png to be a whole image"):
        evaluate_folders([folder], metrics=["palette"])


def test_plot(folder: Path) -> None:
    evaluation = evaluate_folders([folder], metrics=["palette"])
    plot = evaluation.to_plot(scale=1)
    assert plot.width == 1000
    assert plot.getpixel((999, 0)) == (255, 255, 255)
    alone = evaluate_folders([folder / "ink"], metrics=["palette"]).to_plot(scale=1)
    assert alone.height < plot.height  # of one set there is no part for each set
