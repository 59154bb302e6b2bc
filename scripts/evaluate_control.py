"""Evaluate what keeps the reference's content out of the targets, over `strength`.

    python -m scripts.evaluate_control --sets 50 --seed 23 --json control.json --plot docs/control.png

The prompt of the reference names a style, those of the targets name none. All lines are from the same sets and the same
noise. The options of each control come on top of those that are recommended for the embedded model. A line is written
to the JSON file as soon as it is known, and not computed again if it is there.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from style_aligned.evaluation.plot import Column, Panel, draw_panels
from style_aligned.evaluation.sets import SETTINGS, UNALIGNED, Variant, evaluate
from style_aligned.evaluation.statistics import Interval
from style_aligned.models.family import MINI
from style_aligned.models.mini import load_mini

CONTROLS: dict[str, dict[str, Any]] = {
    "strength alone": {},
    "first steps left alone (0.1 on)": {"steps": (0.1, 1.0)},
    "first steps left alone (0.2 on)": {"steps": (0.2, 1.0)},
    "first steps left alone (0.4 on)": {"steps": (0.4, 1.0)},
    "last steps left alone (up to 0.6)": {"steps": (0.0, 0.6)},
    "positive half alone": {"halves": "positive"},
    "positive half alone, 0.2 on": {"halves": "positive", "steps": (0.2, 1.0)},
    "without AdaIN": {"adain_queries": False, "adain_keys": False},
    "without AdaIN of queries": {"adain_queries": False},
    "without AdaIN of queries, 0.2 on": {"adain_queries": False, "steps": (0.2, 1.0)},
    "without shared group normalization": {"share_group_norm": False},
    "layers: up": {"layers": ("up",)},
    "layers: up and middle": {"layers": ("up", "middle")},
    "layers: down": {"layers": ("down",)},
    "layers: up, query guidance": {"layers": ("up",), "query_guidance": 1.0},
    "layers: up and middle, query guidance": {"layers": ("up", "middle"), "query_guidance": 1.0},
    "layers: up, 0.2 on": {"layers": ("up",), "steps": (0.2, 1.0)},
    "up to 0.8": {"steps": (0.0, 0.8)},
    "positive half alone, up to 0.6": {"halves": "positive", "steps": (0.0, 0.6)},
    "positive half alone, up and middle": {"halves": "positive", "layers": ("up", "middle")},
    "no group norms, positive half alone": {"share_group_norm": False, "halves": "positive"},
    "no group norms, positive half alone, up to 0.6": {
        "share_group_norm": False, "halves": "positive", "steps": (0.0, 0.6),
    },
    "no group norms, positive half alone, up to 0.4": {
        "share_group_norm": False, "halves": "positive", "steps": (0.0, 0.4),
    },
    "no group norms, positive half alone, up and middle": {
        "share_group_norm": False, "halves": "positive", "layers": ("up", "middle"),
    },
    "no group norms, up and middle": {"share_group_norm": False, "layers": ("up", "middle")},
    "no group norms, up and middle, 0.2 on": {
        "share_group_norm": False, "layers": ("up", "middle"), "steps": (0.2, 1.0),
    },
    "no group norms, up, 0.2 on": {"share_group_norm": False, "layers": ("up",), "steps": (0.2, 1.0)},
    "no group norms, 0.2 on": {"share_group_norm": False, "steps": (0.2, 1.0)},
    "no group norms, no AdaIN of queries": {"share_group_norm": False, "adain_queries": False},
    "no group norms, no AdaIN of queries, up and middle": {
        "share_group_norm": False, "adain_queries": False, "layers": ("up", "middle"),
    },
    "no group norms, no AdaIN of queries, up": {
        "share_group_norm": False, "adain_queries": False, "layers": ("up",),
    },
    "no group norms, no AdaIN of queries, 0.1 on": {
        "share_group_norm": False, "adain_queries": False, "steps": (0.1, 1.0),
    },
    "no group norms, no AdaIN": {"share_group_norm": False, "adain_queries": False, "adain_keys": False},
}  # fmt: skip
MEASURES = ("style", "concept", "leakage", "leakage_probability", "palette_distance")
TITLES = ("of the reference's style", "object recognised", "taken for the reference's object")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate_control", description=__doc__)
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--strength", type=float, action="append", help="repeatable (default: 1, 2 and 4)")
    parser.add_argument("--control", action="append", choices=list(CONTROLS), help="repeatable (default: all)")
    parser.add_argument("--batch-size", type=int, default=20, help="images at once (default: 20)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="quicker on processors that have it")
    parser.add_argument("--json", type=Path, help="file for the plain numbers, and to go on from")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    lines: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.is_file() else {}
    jobs = {"unaligned": UNALIGNED}
    for strength in given.strength or (1.0, 2.0, 4.0):
        for name in given.control or CONTROLS:
            options = {**MINI.options, **CONTROLS[name], "strength": strength}
            jobs[f"{name}, strength {strength:g}"] = Variant(name, options)
    model = load_mini(given.device)
    for name, variant in jobs.items():
        if name not in lines:
            results = evaluate(
                model, sets=given.sets, set_size=5, seed=given.seed, steps=given.steps, guidance=MINI.condition_scale,
                variants=(variant,), settings=SETTINGS[1:], autocast=given.bfloat16, batch_size=given.batch_size,
            )  # fmt: skip
            (row,) = results.to_dict()["rows"]
            lines[name] = {measure: row[measure] for measure in MEASURES}
            if given.json:
                given.json.write_text(json.dumps(lines, indent=1) + "\n")
        print(f"{name}: {lines[name]['style']['value']:.1%}, {lines[name]['concept']['value']:.1%}", file=sys.stderr)
    shown = {name: lines[name] for name in jobs}
    print(table(shown))
    if given.plot:
        draw(shown).save(given.plot, optimize=True)


def table(lines: dict[str, Any]) -> str:
    rows = [f"| | {' | '.join(TITLES)} | mean probability of that | palette distance |", f"|{'---|' * 6}"]
    for name, line in lines.items():
        style, concept, leakage = (_show(line[measure], form) for measure, form in (
            ("style", ".0%"), ("concept", ".0%"), ("leakage", ".1%")
        ))  # fmt: skip
        probability, palette = (line[measure]["value"] for measure in ("leakage_probability", "palette_distance"))
        rows.append(f"| {name} | {style} | {concept} | {leakage} | {probability:.1%} | {palette:.0f} |")
    return "\n".join(rows)


def draw(lines: dict[str, Any]) -> Any:
    """Draw a row for each line, with dots for estimates and bars for their intervals."""
    columns = [
        Column(title, [Interval(**line[measure]) for line in lines.values()], form, ticks)
        for title, measure, form, ticks in (
            (TITLES[0], "style", ".0%", (0.0, 0.25, 0.5, 0.75, 1.0)),
            (TITLES[1], "concept", ".0%", (0.0, 0.25, 0.5, 0.75, 1.0)),
        )
    ]
    shown = {name: name.replace("group norms", "norms").replace(", strength ", ": ") for name in lines}
    labels = [(shown[name], "#c2571a" if name == "unaligned" else "#0a7d5a") for name in lines]
    return draw_panels([Panel("Style and object", "the number is the strength", labels, columns)])


def _show(interval: dict[str, float], form: str) -> str:
    return f"{interval['value']:{form}} ({interval['low']:{form}} to {interval['high']:{form}})"


if __name__ == "__main__":
    main()
