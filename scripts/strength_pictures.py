"""Draw one set over `strength`: `python -m scripts.strength_pictures --output docs/strength.jpg`."""

import argparse
from pathlib import Path

from style_aligned import Style, generate, load_model
from style_aligned.sets.contact_sheet import Cell, Layout, Strip, contact_sheet

REFERENCE, STYLE = "a fox", "neon sign"
TARGETS = ("a guitar", "an umbrella", "a rocket", "a key")
STRENGTHS = (0, 0.25, 0.5, 1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.strength_pictures", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/strength.jpg"))
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    model = load_model()
    style = Style.from_prompt(model, f"{REFERENCE}, {STYLE}", seed=given.seed).complete()
    strips: list[list[Strip]] = []
    for strength in STRENGTHS:
        images = [sample.image for sample in generate(model, style.with_(strength=float(strength)), TARGETS)]
        cells = [Cell(style.image(model), is_reference=True), *map(Cell, images)]
        strips.append([Strip(cells, f"strength {strength:g}")])
    sheet = contact_sheet(strips, title=f"{REFERENCE}, {STYLE}", layout=Layout(cell=(160, 160)))
    sheet.convert("RGB").save(given.output, quality=88, optimize=True)


if __name__ == "__main__":
    main()
