"""The evaluations of styles from pictures: what they choose, measure and tell."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.evaluate_inversion import measure, psnr
from scripts.evaluate_pictures import PROMPT, Scores, choose, table
from scripts.mini_training.dataset import Drawings
from style_aligned import load_model

HELD_OUT = sorted((Path(__file__).parent / "held-out").glob("*.png"))
"""Drawings that were in no training, as scripts.mini_data paints them: the file's name is what they show."""


def make_drawings() -> Drawings:
    splits = ("train", "held_out_cell", "held_out_foundry")
    records = [
        {"concept": concept, "style": style, "split": splits[variant % 3]}
        for concept in ("fox", "cat", "key", "gem")
        for style in ("ink", "neon")
        for variant in range(6)
    ]
    images = np.zeros((len(records), 1, 1, 3), dtype=np.uint8)
    return Drawings(images, records, concepts=["fox", "cat", "key", "gem"], styles=["ink", "neon"])


def test_sets_are_of_held_out_drawings_and_show_other_things() -> None:
    drawings = make_drawings()
    chosen = choose(drawings, 6, 3, seed=1)
    assert len({index for index, _ in chosen}) == 6
    assert {drawings.records[index]["split"] for index, _ in chosen} == {"held_out_cell", "held_out_foundry"}
    assert [drawings.records[index]["style"] for index, _ in chosen] == ["ink", "neon"] * 3
    for index, concepts in chosen:
        assert {*concepts} == {"fox", "cat", "key", "gem"} - {drawings.records[index]["concept"]}
    assert chosen == choose(drawings, 6, 3, seed=1) != choose(drawings, 6, 3, seed=2)


def test_differences_are_paired() -> None:
    """Two ways of which one is always a quarter better: their own intervals are wide, that of the difference is not."""
    prompts = [0.0, 0.25, 0.5, 0.75] * 5
    better = [value + 0.25 for value in prompts]
    zeros = [0.0] * 20
    scores = {PROMPT: Scores(prompts, prompts, zeros, zeros), "noise": Scores(better, prompts, zeros, zeros)}
    lines = table(scores).splitlines()
    assert lines[-1] == "| noise | +25.0% (+25.0% to +25.0%) | +0.0% (+0.0% to +0.0%) |"
    own = next(line for line in lines if line.startswith("| noise | 6"))
    assert own.startswith("| noise | 62% (")
    assert "62% (62%" not in own


def test_the_peak_of_the_ratio_is_the_range() -> None:
    expected = torch.tensor([-1.0, 3.0])
    assert psnr(expected + 0.4, expected) == pytest.approx(20)


@pytest.mark.slow
@pytest.mark.parametrize("path", HELD_OUT, ids=lambda path: path.stem)
def test_an_inversion_of_a_held_out_drawing_leads_back_to_it(path: Path) -> None:
    model = load_model()
    with Image.open(path) as picture:
        plain, refined = (measure(model, picture, path.stem, steps=50, iterations=count) for count in (0, 2))
    assert refined >= 35
    assert refined > plain + 3
