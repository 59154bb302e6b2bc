"""Evaluate the embedded model, and write the page of it, with its plot and pictures: `python -m scripts.evaluate`."""

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from scripts.report import to_markdown, to_plot
from style_aligned.evaluation.classifier import load_classifier, read_classifier_file
from style_aligned.evaluation.sets import SETTINGS, VARIANTS, SetOfPrompts, Setting, Variant, evaluate
from style_aligned.models.family import MINI
from style_aligned.models.mini import load_mini

FURTHER_VARIANTS = (
    Variant("aligned in about 3/4 of the layers", {"only_self_level": 0.25}),
    Variant("aligned in about 1/2 of the layers", {"only_self_level": 0.5}),
    Variant("aligned in about 1/4 of the layers", {"only_self_level": 0.75}),
    Variant("AdaIN alone", {"share_attention": False}),
    Variant("AdaIN of values too", {"adain_values": True}),
    Variant("shared group normalization, shift log 2", {"share_group_norm": True, "shift": math.log(2)}),
    Variant("shift log 2", {"shift": math.log(2)}),
    Variant("shift -log 2", {"shift": -math.log(2)}),
)
COMPARED = (VARIANTS[0], VARIANTS[2])
ALL_VARIANTS = (*VARIANTS, *FURTHER_VARIANTS)


def lay_out(images: list[Image.Image], side: int) -> Image.Image:
    """Lay out images in a row."""
    row = Image.new("RGB", (side * len(images), side))
    for index, image in enumerate(images):
        row.paste(image.resize((side, side)), (side * index, 0))
    return row


class Gallery:
    """The first sets of one style, as they come: unaligned on the left, as the command line aligns them on the right.

    Args:
        sets: How many of them.
        side: The side of an image, in pixels.
    """

    def __init__(self, sets: int = 30, side: int = 72) -> None:
        self.sets = sets
        self.side = side
        self.columns: tuple[list[Image.Image], list[Image.Image]] = ([], [])

    def add(self, setting: Setting, variant: Variant, images: list[Image.Image]) -> None:
        """Add the images of a set, if they belong here."""
        if setting == SETTINGS[0] and variant in COMPARED:
            column = self.columns[COMPARED.index(variant)]
            if len(column) < self.sets:
                column.append(lay_out(images, self.side))

    def draw(self) -> Image.Image | None:
        """Draw them, if there are any."""
        rows = list(zip(*self.columns, strict=False))
        if not rows:
            return None
        width = rows[0][0].width
        picture = Image.new("RGB", (2 * width + self.side // 2, self.side * len(rows)), "white")
        for index, row in enumerate(rows):
            for column, images in enumerate(row):
                picture.paste(images, (column * (width + self.side // 2), index * self.side))
        return picture


class Sheets:
    """Keeps the images of sets as they come, a sheet for each variant and setting: a row for each set.

    Args:
        folder: Where to write the sheets.
        side: The side of an image on them, in pixels.
    """

    def __init__(self, folder: Path, side: int = 128) -> None:
        self.folder = folder
        self.side = side
        self.rows: dict[str, list[Image.Image]] = {}

    def add(self, setting: Setting, variant: Variant, prompts: SetOfPrompts, images: list[Image.Image]) -> None:
        """Add the images of a set."""
        name = f"{setting.name} {variant.name}".replace(" ", "-").replace("/", "-of-")
        self.rows.setdefault(name, []).append(lay_out(images, self.side))

    def write(self) -> None:
        """Write the sheets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            sheet = Image.new("RGB", (rows[0].width, self.side * len(rows)))
            for index, row in enumerate(rows):
                sheet.paste(row, (0, self.side * index))
            sheet.save(self.folder / f"{name}.png")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the page and its pictures")
    parser.add_argument("--sheets", type=Path, help="folder for sheets of all images (default: none)")
    parser.add_argument("--json", type=Path, help="file for the plain numbers (default: none)")
    parser.add_argument("--weights", type=Path, help="folder of the model's weights (default: the package's)")
    parser.add_argument("--classifier", type=Path, help="the classifier's weights (default: the package's)")
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--set-size", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=MINI.condition_scale)
    names = [variant.name for variant in ALL_VARIANTS]
    parser.add_argument("--variant", action="append", choices=names, help="repeatable (default: the 5 of VARIANTS)")
    parser.add_argument("--setting", action="append", choices=[setting.name for setting in SETTINGS], help="repeatable")
    parser.add_argument("--batch-size", type=int, default=20, help="images at once (default: 20)")
    parser.add_argument("--bfloat16", action="store_true", help="quicker on processors that have it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model = load_mini(device=options.device, **({} if options.weights is None else {"folder": options.weights}))
    path = {} if options.classifier is None else {"path": options.classifier}
    classifier = load_classifier(device=options.device, **path)
    sheets = None if options.sheets is None else Sheets(options.sheets)
    gallery = Gallery()

    def keep(setting: Setting, variant: Variant, prompts: SetOfPrompts, images: list[Image.Image]) -> None:
        gallery.add(setting, variant, images)
        if sheets is not None:
            sheets.add(setting, variant, prompts, images)

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns) as progress:
        task = progress.add_task("evaluating")
        results = evaluate(
            model,
            sets=options.sets,
            set_size=options.set_size,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
            variants=VARIANTS if options.variant is None else [v for v in ALL_VARIANTS if v.name in options.variant],
            settings=[s for s in SETTINGS if options.setting is None or s.name in options.setting],
            classifier=classifier,
            batch_size=options.batch_size,
            autocast=options.bfloat16,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            on_set=keep,
        )
    options.output.mkdir(parents=True, exist_ok=True)
    command = shlex.join(("python", "-m", "scripts.evaluate", *sys.argv[1:]))
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    picture = gallery.draw()
    page = to_markdown(
        results,
        classifier=read_classifier_file(**path)[1],
        parameters=parameters,
        command=command,
        sets_shown=0 if picture is None else len(gallery.columns[0]),
    )
    (options.output / "evaluation.md").write_text(page, encoding="utf-8")
    to_plot(results).save(options.output / "evaluation.png", optimize=True)
    if picture is not None:
        picture.save(options.output / "evaluation-sets.jpg", quality=85, optimize=True)
    if sheets is not None:
        sheets.write()
    if options.json is not None:
        options.json.write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(page)
    print(f"{time.perf_counter() - start:.0f} s; wrote {options.output / 'evaluation.md'} and its pictures")


if __name__ == "__main__":
    main()
