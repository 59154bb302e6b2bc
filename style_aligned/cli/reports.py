"""What the commands that draw report in the end: a line, or JSON."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from style_aligned.cli.options import ReportOptions
from style_aligned.sets.image_set import ImageSet
from style_aligned.sets.records import SetImage
from style_aligned.sets.sheet import sheet_path, write_sheet


def command(name: str, *arguments: str | Path) -> str:
    """Return a command as people type it."""
    return shlex.join(["style-aligned", name, *map(str, arguments)])


def propose_generate(style: Path, prompt: str) -> str:
    """Return the command that draws in a style, with what follows the first comma of its prompt as the suffix."""
    content, comma, rest = prompt.partition(",")
    suffix = f"{comma}{rest}" if content.strip() and rest.strip() else ""
    is_plain = suffix.isprintable() and re.search(r'["$`\\!]', suffix) is None
    quoted = f'"{suffix}"' if is_plain else shlex.quote(suffix)
    return f'{command("generate", style)} "…"{f" --suffix {quoted}" if suffix else ""} --output FOLDER'


def report_change(
    image_set: ImageSet, images: Sequence[SetImage], what: str, report: ReportOptions, *, undo: str = ""
) -> None:
    """Draw the contact sheet anew after a change, and report it, with the command that undoes it."""
    sheet = sheet_path(image_set)
    write_sheet([image_set], sheet)
    described = {
        "folder": str(image_set.folder),
        "sheet": str(sheet),
        what: [describe_image(image) for image in images],
    }
    report_result(
        described,
        f"{what}: {', '.join(image.name for image in images)}; all together: {sheet}",
        sheet,
        report,
        undo=undo,
    )


def report_drawn(
    output: Path, sets: Sequence[ImageSet], sheet: Path, report: ReportOptions, *, new: int, there: int, twins: int
) -> None:
    """Report what a command has drawn: new images, beside those that were there, and images without the style."""
    already = f" ({there} {'was' if there == 1 else 'were'} there already)" if there else ""
    without = f", {twins} drawn without the style" if twins else ""
    shown = f"{new} new image{'' if new == 1 else 's'} in {output}{already}{without}; all together: {sheet}"
    counts = {"new": new, "there": there, "unaligned": twins}
    report_result({**describe_sets(output, sets, sheet), **counts}, shown, sheet, report)


def describe_sets(
    output: Path, sets: Sequence[ImageSet], sheet: Path, drawn: Sequence[SetImage] | None = None
) -> dict[str, Any]:
    """Return what JSON says of sets."""
    described: dict[str, Any] = {
        "folder": str(output),
        "sheet": str(sheet),
        "sets": [
            {
                "folder": str(image_set.folder),
                "reference": describe_image(image_set.state.reference),
                "images": [describe_image(image) for image in image_set.state.current],
            }
            for image_set in sets
        ],
    }
    if drawn is not None:
        described["drawn"] = [describe_image(image) for image in drawn]
    return described


def describe_image(image: SetImage) -> dict[str, Any]:
    """Return what JSON says of an image."""
    number = {} if image.id < 0 else {"id": image.id}
    return {**number, "prompt": image.prompt, "seed": image.drawing.seed, "file": image.drawing.file}


def report_result(
    described: Mapping[str, Any], shown: str, path: Path, report: ReportOptions, *, undo: str = ""
) -> None:
    """Print the result, as a line or as JSON, and open the file that shows it if that was asked for.

    Args:
        described: The result as JSON has it.
        shown: The result in a line.
        path: The file that shows it.
        report: What was asked for.
        undo: The command that undoes it, which gets a line of its own.
    """
    if undo:
        described, shown = {**described, "undo": undo}, f"{shown}\nundo: {undo}"
    typer.echo(json.dumps(described, indent=2, ensure_ascii=False) if report.json else shown)
    if report.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
