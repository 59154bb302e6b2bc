"""Candidates for a reference: the same prompt from several seeds, each a style of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from style_aligned.files import describe_image, describe_picture, write_png
from style_aligned.models.model import Model
from style_aligned.sets import drawing
from style_aligned.sets.contact_sheet import MAX_IMAGES, Cell, Layout, Strip, contact_sheet, fit_cell, wrap
from style_aligned.sets.image_set import is_set, sole_use
from style_aligned.sets.records import SetError
from style_aligned.sets.set_file import SHEET_FILE
from style_aligned.sets.sheet import KIND, check_sheet
from style_aligned.sets.sources import STYLE_ENDING
from style_aligned.sets.work import Report
from style_aligned.styles.style import Style

MAX_COLUMNS = 8


def find_candidates(folder: Path) -> dict[int, Path]:
    """Return the style files of a folder of candidates, by their numbers."""
    found = {path.stem: path for path in folder.glob(f"*{STYLE_ENDING}")} if folder.is_dir() else {}
    return {int(name): path for name, path in sorted(found.items(), key=_by_number) if name.isdigit()}


def explore(
    model: Model,
    folder: Path,
    prompt: str,
    settings: Mapping[str, Any],
    *,
    count: int,
    report: Report | None = None,
    wait: bool = False,
) -> list[Path]:
    """Draw candidates for a reference, those that are not there yet, and their contact sheet.

    Args:
        model: The model.
        folder: The folder, with `1.safetensors` and `1.png`, `2.safetensors` …
        prompt: The prompt.
        settings: Other arguments of `Style.from_prompt`. Seeds count on from `seed`.
        count: The number of candidates.
        report: Who wants to know how far it is.
        wait: Whether to wait for another process that is at work in the folder, or to refuse.

    Returns:
        The paths of the style files.

    Raises:
        SetError: If the folder holds something else, or candidates of another prompt or seed.
    """
    report = report or Report()
    if is_set(folder):
        raise SetError(f"{folder} holds a set: take another folder for candidates")
    check_sheet(folder / SHEET_FILE)
    first = settings.get("seed", 0)
    drawer = drawing.describe_drawer(model)
    with sole_use(folder, wait=wait):
        styles = {number: Style.load(path) for number, path in find_candidates(folder).items()}
        for number, style in styles.items():
            if (style.prompt, style.seed) != (prompt, first + number - 1):
                found = f"{style.prompt!r} from seed {style.seed - number + 1}"
                raise SetError(f"{folder} holds candidates of {found}: take another folder")
        missing = [number for number in range(1, count + 1) if number not in styles]
        for number in missing:
            for path in (folder / f"{number}{STYLE_ENDING}", folder / f"{number}.png"):
                if path.exists():
                    raise SetError(f"{path} is in the way: move it, or take another folder")
        started = {
            number: drawing.start_style(model, {**settings, "prompt": prompt, "seed": first + number - 1})
            for number in missing
        }
        report.start(len(missing), sum(style.num_inference_steps for style in started.values()))
        for number in missing:
            style = started.pop(number).complete(model, on_step=report.step)
            texts = describe_image(prompt, style.seed, drawing.image_settings(style, drawer))
            write_png(folder / f"{number}.png", style.image(model), texts)
            style.save(folder / f"{number}{STYLE_ENDING}")
            styles[number] = style
            report.image(f"{number}.png")
            write_candidates_sheet(folder, styles)
        write_candidates_sheet(folder, styles)
    return [folder / f"{number}{STYLE_ENDING}" for number in sorted(styles)]


def write_candidates_sheet(folder: Path, styles: Mapping[int, Style]) -> None:
    """Write the contact sheet of candidates: each with what to type for it."""
    shown = [number for number in sorted(styles) if (folder / f"{number}.png").is_file()][:MAX_IMAGES]
    if not shown:
        return
    cells = [
        Cell(folder / f"{number}.png", f"{folder.name}/{number}", note=f"seed {styles[number].seed}")
        for number in shown
    ]
    height, width = styles[shown[0]].size
    sheet = contact_sheet(
        [[Strip(row)] for row in wrap(cells, MAX_COLUMNS)],
        title=styles[shown[0]].prompt,
        layout=Layout(cell=fit_cell((width, height))),
    )
    write_png(folder / SHEET_FILE, sheet, describe_picture(KIND))


def _by_number(item: tuple[str, Path]) -> tuple[int, str]:
    return int(item[0]) if item[0].isdigit() else 0, item[0]
