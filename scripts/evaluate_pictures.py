"""Evaluate styles from pictures: held-out drawings that no training has seen become styles, and sets are drawn in them.

    python -m scripts.evaluate_pictures --data FOLDER --sets 50 --json pictures.json --sheets FOLDER \\
        --overview docs/photo-to-set.jpg

The prompts of the targets name no style. Each way of making the style draws the same prompts from the same noise. The
classifier tells whether a target is in the picture's style, and whether it shows what its prompt says; the palette
distance is the mean over the pairs of the picture and the targets. Intervals are bootstrapped over sets. Differences
from styles of prompts are paired, as both draw the same prompts from the same noise.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scripts.evaluate import lay_out
from scripts.mini_training.dataset import Drawings
from style_aligned import Style, generate, load_model
from style_aligned.evaluation.classifier import load_classifier
from style_aligned.evaluation.palette import set_palette_distance
from style_aligned.evaluation.statistics import Interval, bootstrap_mean
from style_aligned.models.mini.names import name_thing
from style_aligned.models.model import Model
from style_aligned.sets.contact_sheet import Cell, Layout, Strip, contact_sheet

PROMPT = "from a prompt"
METHODS: dict[str, dict[str, Any] | None] = {
    "unaligned": None,
    PROMPT: None,
    "noise": {"method": "noise"},
    "noise, fresh at each step": {"method": "noise", "fresh_noise": True},
    "ddim": {"method": "ddim"},
}


SHOWN, SHOWN_METHOD = 30, "noise"


@dataclass
class Scores:
    """What came out for one way of making styles, a number for each set.

    Attributes:
        style: The fraction of targets in the style of the picture.
        concept: The fraction of targets that show what their prompt says.
        palette: The palette distance.
        seconds: How long it took to make the style.
    """

    style: list[float] = field(default_factory=list[float])
    concept: list[float] = field(default_factory=list[float])
    palette: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])


def choose(drawings: Drawings, sets: int, targets: int, seed: int) -> list[tuple[int, list[str]]]:
    """Choose held-out drawings, the styles in turn, and for each the concepts of its targets."""
    rng = np.random.default_rng(seed)
    held_out = drawings.held_out()
    by_style = {
        style: rng.permutation([i for i in held_out if drawings.records[i]["style"] == style]).tolist()
        for style in drawings.styles
    }
    chosen: list[tuple[int, list[str]]] = []
    for number in range(sets):
        index = by_style[drawings.styles[number % len(drawings.styles)]].pop()
        others = [concept for concept in drawings.concepts if concept != drawings.records[index]["concept"]]
        chosen.append((index, [str(concept) for concept in rng.choice(others, size=targets, replace=False)]))
    return chosen


def make_style(model: Model, name: str, picture: Image.Image, prompt: str, seed: int, steps: int) -> Style:
    arguments = METHODS[name]
    if arguments is None:
        return Style.from_prompt(model, prompt, seed=seed, num_inference_steps=steps)
    return Style.from_image(model, picture, prompt, seed=seed, num_inference_steps=steps, **arguments)


def draw_overview(rows: list[list[Image.Image]], side: int = 96) -> Image.Image:
    """Lay out sets in two columns, each with its picture first."""
    strips = [lay_out(images, side) for images in rows]
    gap, (width, height) = side // 4, strips[0].size
    step = height + gap // 4
    page = Image.new("RGB", (2 * width + gap, step * ((len(strips) + 1) // 2)), "white")
    for number, strip in enumerate(strips):
        page.paste(strip, (number % 2 * (width + gap), number // 2 * step))
    return page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate_pictures", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the prepared drawings")
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="quicker on processors that have it")
    parser.add_argument("--json", type=Path, help="file for the plain numbers, written after each set")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet of each set")
    parser.add_argument("--overview", type=Path, help=f"file for the first {SHOWN} sets of {SHOWN_METHOD!r}")
    given = parser.parse_args(arguments)
    drawings, model, classifier = Drawings.load(given.data), load_model(), load_classifier()
    scores = {name: Scores() for name in METHODS}
    shown: list[list[Image.Image]] = []
    for number, (index, concepts) in enumerate(choose(drawings, given.sets, given.targets, given.seed)):
        record = drawings.records[index]
        picture = Image.fromarray(np.array(drawings.images[index]))
        prompt = f"{name_thing(record['concept'])}, {record['style']}"
        seed = 1000 * (given.seed + 1) + 10 * number
        strips: list[Strip] = []
        for name, score in scores.items():
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.bfloat16):
                style = make_style(model, name, picture, prompt, seed, given.steps)
                score.seconds.append(time.perf_counter() - start)
                prompts = [name_thing(concept) for concept in concepts]
                samples = list(generate(model, style, prompts, aligned=name != "unaligned"))
            images = [sample.image for sample in samples]
            reference = picture if name != PROMPT else style.image(model)
            if name == SHOWN_METHOD and len(shown) < SHOWN:
                shown.append([reference, *images])
            found = classifier.classify(images)
            score.style.append(float(np.mean([found_style == record["style"] for found_style in found.style_names])))
            score.concept.append(float(np.mean([a == b for a, b in zip(found.concept_names, concepts, strict=True)])))
            score.palette.append(set_palette_distance([reference, *images]))
            cells = [Cell(reference, record["concept"], is_reference=True)]
            cells += [Cell(image, concept) for image, concept in zip(images, concepts, strict=True)]
            strips.append(Strip(cells, name, f"palette distance {score.palette[-1]:.0f}"))
        if given.sheets:
            given.sheets.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet([[strip] for strip in strips], title=prompt, layout=Layout(cell=(128, 128)))
            sheet.save(given.sheets / f"{number:03}.png")
        if given.json:
            given.json.write_text(json.dumps({name: vars(score) for name, score in scores.items()}, indent=1))
        print(f"{number + 1}/{given.sets} {prompt}", file=sys.stderr, flush=True)
    if given.overview:
        draw_overview(shown).save(given.overview, quality=85, optimize=True)
    print(table(scores))


def table(scores: dict[str, Scores]) -> str:
    """Return what came out, and how far it is from styles of prompts."""
    lines = [
        "| | in the picture's style | object recognised | palette distance | seconds for the style |",
        "|---|---|---|---|---|",
    ]
    differences = ["| against styles from prompts | style | object |", "|---|---|---|"]
    for name, score in scores.items():
        style, concept, palette = (bootstrap_mean(values) for values in (score.style, score.concept, score.palette))
        lines.append(
            f"| {name} | {_show(style, '.0%')} | {_show(concept, '.0%')} | {_show(palette, '.1f')}"
            f" | {np.median(score.seconds):.2f} |"
        )
        if name != PROMPT:
            of_style = np.subtract(score.style, scores[PROMPT].style).tolist()
            of_concept = np.subtract(score.concept, scores[PROMPT].concept).tolist()
            shown = [_show(bootstrap_mean(values), "+.1%") for values in (of_style, of_concept)]
            differences.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *differences])


def _show(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


if __name__ == "__main__":
    main()
