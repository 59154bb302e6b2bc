"""The results of an evaluation as a page and as a plot."""

from typing import Any

from PIL import Image

from style_aligned.evaluation.plot import Column, Panel, draw_panels
from style_aligned.evaluation.sets import SETTINGS, Results, Row, Setting
from style_aligned.evaluation.statistics import Interval

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALIGNED, ABLATED, PLAIN = "#0a7d5a", "#4a78c8", "#c2571a"

INTRODUCTION = """\
# Evaluation on the embedded model

Do the images of a set share a style, and does each show what its prompt says? These two questions the paper
([arXiv 2312.02133](https://arxiv.org/abs/2312.02133)) asks of SDXL, with DINO and CLIP; here they are asked of the
model that this package carries, with a classifier of its own. Every line is from the same {sets} sets of
{set_size} images (a reference and {targets} targets): the same concepts, the styles in turn, the same noise; {steps}
steps, guidance {guidance:g}, seed {seed}. No set was left out.

- **style**: the fraction of targets that the classifier finds in the style that the reference's prompt names;
- **concept**: the fraction of targets whose concept is the classifier's first guess out of {concepts};
- **leakage**: the fraction of targets whose first guess is the concept of their reference instead, and behind it the
  mean probability of that concept;
- **palette distance**: how far apart the colours of a set's images are, as the mean over its pairs, in units of CIELAB
  (`style_aligned.evaluation.palette.palette_distance`: plain colour statistics, no network); **ratio**: against
  unaligned.

**Aligned** are the defaults of `StyleAlignedAdapter`, which are the paper's. For this model the command line takes
**shared group normalization**.

In brackets are 95% intervals, by drawing the sets anew 10,000 times. They speak of other sets of this model, not of
other models.
"""

CLASSIFIER = """\
## The classifier

A network of {parameters:.2f} million parameters over 64x64 pixels, trained on drawings and never on a generated image
(`python -m scripts.train_classifier --data DATA`). Generated images are softer than drawings: so 40% of the drawings
are also shown as the embedded model's autoencoder gives them back. On drawings that it was not trained on:

| drawings | number | style | concept, first guess out of {concepts} |
|---|---|---|---|
"""

PICTURE = """\
The first {sets} of these sets, each with its reference first: unaligned on the left, with shared group normalization on
the right.

![Sets of images, unaligned and aligned](evaluation-sets.jpg)
"""

MAIN = ("aligned", "shared group normalization")

DRAWINGS = {
    "held_out_cell": "a concept in a style in which it was never shown",
    "held_out_foundry": "a concept as a foundry drew it whose drawings of it were never shown",
    "held_out": "all of these",
    "reconstructed": "all of these, as the embedded model's autoencoder gives them back",
}


def to_markdown(
    results: Results, *, classifier: dict[str, Any], parameters: int, command: str, sets_shown: int = 0
) -> str:
    """Write the results as a page in Markdown.

    Args:
        results: The results.
        classifier: What [`read_classifier_file`][style_aligned.evaluation.classifier.read_classifier_file] read of the
            classifier's file.
        parameters: The number of its parameters.
        command: The command that made the page.
        sets_shown: The number of sets on the picture of sets beside the page. Zero means that there is no picture.
    """
    concepts = len(classifier["concepts"])
    settings = {key: getattr(results, key) for key in ("sets", "set_size", "seed", "steps", "guidance")}
    parts = [INTRODUCTION.format(**settings, targets=results.set_size - 1, concepts=concepts)]
    parts.append(f"Made by `{command}`.\n")
    parts.append("![The same as a plot](evaluation.png)\n")
    for setting in _settings(results):
        lines = [
            f"## {setting.name.capitalize()}\n",
            f"{setting.description.capitalize()}.\n",
            "| | style | concept | leakage | palette distance | ratio |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in results.rows if row.setting == setting.name]
        parts.append("\n".join(lines) + "\n")
        if setting == SETTINGS[0] and sets_shown:
            parts.append(PICTURE.format(sets=sets_shown))
    lines = [
        f"| {text} | {score['drawings']} | {score['style']:.1%} | {score['concept']:.1%} |"
        for name, text in DRAWINGS.items()
        if (score := classifier["accuracy"].get(name)) is not None
    ]
    parts.append(CLASSIFIER.format(parameters=parameters / 1e6, concepts=concepts) + "\n".join(lines) + "\n")
    return "\n".join(parts)


def to_plot(results: Results, scale: int = 2) -> Image.Image:
    """Draw the results: a row for each variant, a dot for each estimate, a bar for its interval.

    Args:
        results: The results.
        scale: The number of pixels to a unit of length. The plot is 1000 units wide.
    """
    return draw_panels([_panel(results, setting) for setting in _settings(results)], scale)


def _settings(results: Results) -> list[Setting]:
    """The settings that results are of, in their order."""
    known = {setting.name: setting for setting in SETTINGS}
    names = dict.fromkeys(row.setting for row in results.rows)
    return [known.get(name, Setting(name, name, targets_have_style=True)) for name in names]


def _line(row: Row) -> str:
    ratio = "" if row.palette_ratio is None else _show(row.palette_ratio, ".2f")
    name = f"**{row.variant}**" if row.variant in MAIN else row.variant
    distance = _show(row.palette_distance, ".1f")
    leakage = f"{_show(row.leakage, '.1%')}, {row.leakage_probability.value:.1%}"
    return f"| {name} | {_show(row.style, '.0%')} | {_show(row.concept, '.0%')} | {leakage} | {distance} | {ratio} |"


def _show(interval: Interval, form: str) -> str:
    if interval.low == interval.high == interval.value:
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _panel(results: Results, setting: Setting) -> Panel:
    rows = [row for row in results.rows if row.setting == setting.name]
    columns = [
        Column("style of the reference's prompt", [row.style for row in rows], ".0%", FRACTIONS),
        Column("concept of the prompt", [row.concept for row in rows], ".0%", FRACTIONS),
    ]
    ratios = [row.palette_ratio for row in rows if row.palette_ratio is not None]
    if len(ratios) == len(rows):
        columns.append(Column("palette distance / unaligned", ratios, ".2f", FRACTIONS))
    else:
        columns.append(Column("palette distance", [row.palette_distance for row in rows], ".1f"))
    colors = {"unaligned": PLAIN, "aligned": ALIGNED}
    labels = [(row.variant, colors.get(row.variant, ABLATED)) for row in rows]
    return Panel(setting.name.capitalize(), setting.description, labels, columns)
