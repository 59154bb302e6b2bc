"""Reproduce Table 2 of the paper: scripts/reproduce_table_2 runs this.

For each style the paper generates a set of four objects, and measures all sets by CLIP and DINO. Interrupted, the same
command goes on from the images that are there. Without --model, the embedded model draws what it knows.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from style_aligned.evaluation.classifier import load_classifier
from style_aligned.evaluation.metrics import METRICS, Evaluation, evaluate_folders
from style_aligned.evaluation.sets import SETTINGS, SetOfPrompts, Setting, Variant, draw_images, draw_prompts
from style_aligned.files import describe_image, is_whole_image, numbered, slug, write_bytes, write_png
from style_aligned.models.checkpoints import load_model

PROMPTS = Path(__file__).with_name("table_2_prompts.jsonl")
VARIANTS = (
    Variant("StyleAligned", {}),
    Variant("without AdaIN", {"adain_queries": False, "adain_keys": False}),
    Variant("full attention sharing", {"full_attention_share": True}),
    Variant("unaligned", None),
)
PAPER = {
    "StyleAligned": {"clip": 0.287, "dino": 0.51},
    "without AdaIN": {"clip": 0.289, "dino": 0.428},
    "full attention sharing": {"clip": 0.28, "dino": 0.55},
}


@dataclass(frozen=True)
class SetOfObjects(SetOfPrompts):
    """Objects in a style, such as "a guitar" in "in papercut art style"."""

    def prompts(self, setting: Setting) -> list[str]:
        """Return the prompts, such as "a guitar in papercut art style"."""
        return [f"{thing} {self.style}" for thing in self.concepts]


def read_prompts(path: Path, seed: int) -> list[SetOfPrompts]:
    """Read sets of prompts: a JSON object a line, with a `style` and `objects`."""
    sets: list[SetOfPrompts] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry: Any = json.loads(line)
            style, objects = str(entry["style"]), tuple(map(str, entry["objects"]))
        except (ValueError, KeyError, TypeError):
            example = '{"style": "in papercut art style", "objects": ["a guitar", "a sailboat"]}'
            raise SystemExit(
                f"{path}, line {number}: expected a JSON object such as {example}, got {line[:80]!r}"
            ) from None
        first = seed + 1000 * number
        sets.append(SetOfObjects(style, objects, tuple(range(first, first + len(objects)))))
    return sets


def missing_sets(sets: Sequence[SetOfPrompts], folder: Path) -> Iterator[tuple[SetOfPrompts, list[Path]]]:
    """Return the sets that are not drawn yet, with the paths of their images."""
    for number, one in enumerate(sets):
        inside = folder / numbered(number, len(sets), one.style)
        paths = [inside / f"{numbered(index, len(one.concepts), name)}.png" for index, name in enumerate(one.concepts)]
        if not all(is_whole_image(path) for path in paths):
            yield one, paths


def draw_variant(model: Any, sets: Sequence[SetOfPrompts], variant: Variant, folder: Path, **options: Any) -> None:
    """Draw the sets of one variant that are not there yet, each in one batch."""
    missing = list(missing_sets(sets, folder))
    for one, paths in track(missing, variant.name, disable=not missing):
        setting = SETTINGS[0]
        (images,) = draw_images(model, [one], setting, variant, **options)
        write_bytes(paths[0].with_name("objects.txt"), "".join(f"{name}\n" for name in one.concepts).encode())
        for path, image, prompt, seed in zip(paths, images, one.prompts(setting), one.seeds, strict=True):
            settings = {**options, "options": variant.options, "aligned": variant.options is not None}
            write_png(path, image, describe_image(prompt, seed, settings))


def to_markdown(evaluation: Evaluation, folders: dict[str, str]) -> str:
    """Write the results as a table, beside the numbers of the paper.

    Args:
        evaluation: The results.
        folders: The name of each variant by its folder.
    """
    names = list(evaluation.groups[0].values)
    lines = [
        "| | " + " | ".join(f"{METRICS[name].title} | in the paper" for name in names) + " |",
        "|---|" + "---|---|" * len(names),
    ]
    for group in evaluation.groups:
        variant, cells = folders[group.name], list[str]()
        for name in names:
            value, form = group.values[name], METRICS[name].form
            cells.append("-" if value is None else f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]")
            cells.append(str(PAPER.get(variant, {}).get(name, "")))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/reproduce_table_2", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("table-2"), help="folder of the images and the results")
    parser.add_argument("--model", default="mini", help="as of style-aligned generate (default: the embedded one)")
    parser.add_argument("--prompts", type=Path, help=f"JSON lines of style and objects (default: {PROMPTS.name})")
    parser.add_argument("--sets", type=int, default=100, help="the first so many styles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="(default: 50; 15 for the embedded model)")
    parser.add_argument("--guidance", type=float, help="(default: 5; 2 for the embedded model)")
    parser.add_argument("--metrics", default="clip,dino", help=f"of {', '.join(METRICS)}")
    for name in ("clip", "dino", "csd"):
        parser.add_argument(f"--{name}", help="another model, by name or path")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    is_embedded = options.model == "mini"
    if is_embedded and options.prompts is None:
        known = load_classifier()
        sets = draw_prompts(known.concepts, known.styles, sets=options.sets, set_size=4, seed=options.seed)
    else:
        sets = read_prompts(options.prompts or PROMPTS, options.seed)[: options.sets]
    model = load_model(options.model, device=options.device, dtype=getattr(torch, options.dtype))
    steps = options.steps or (15 if is_embedded else 50)
    guidance = options.guidance if options.guidance is not None else 2.0 if is_embedded else 5.0
    folders = {str(options.output / slug(variant.name)): variant.name for variant in VARIANTS}
    for variant, folder in zip(VARIANTS, folders, strict=True):
        draw_variant(model, sets, variant, Path(folder), steps=steps, guidance=guidance)
    del model
    models = {name: path for name in ("clip", "dino", "csd") if (path := getattr(options, name)) is not None}
    evaluation = evaluate_folders(
        [Path(folder) for folder in folders], metrics=options.metrics.split(","), models=models, device=options.device
    )
    page = to_markdown(evaluation, folders)
    write_bytes(options.output / "table-2.json", (json.dumps(evaluation.to_dict(), indent=2) + "\n").encode())
    write_bytes(options.output / "table-2.md", page.encode())
    evaluation.to_plot().save(options.output / "table-2.png")
    print(page)


if __name__ == "__main__":
    main()
