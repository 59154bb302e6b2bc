"""The commands that draw nothing: `remove`, `restore`, `rename`, `sheet`, `export` and `show`."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from style_aligned.cli import inputs
from style_aligned.cli.draw import Folder
from style_aligned.cli.options import ReportOptions, takes

Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Its file's name, its id, or a part of its prompt.", show_default=False),
]


class Names(str, Enum):
    """How exported files are named."""

    slug = "slug"
    number = "number"


class Format(str, Enum):
    """The types of exported files."""

    png = "png"
    webp = "webp"
    jpg = "jpg"


@takes(report=ReportOptions)
def remove(*, folder: Folder, images: Images, report: ReportOptions) -> None:
    """Take images out of a set. They are kept in the folder replaced: restore brings them back.

    Example: style-aligned remove icons anchor
    """
    from style_aligned.cli import reports
    from style_aligned.sets.changes import remove_image
    from style_aligned.sets.image_set import open_set
    from style_aligned.sets.names import find_images

    with open_set(folder) as image_set:
        removed = [remove_image(image_set, image) for image in find_images(image_set.state.current, images)]
        undo = reports.command("restore", folder, *(image.name for image in removed))
        reports.report_change(image_set, removed, "removed", report, undo=undo)


@takes(report=ReportOptions)
def restore(
    *,
    folder: Folder,
    images: Images,
    seed: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="The drawing to bring back, by its seed.  [default: the one replaced last]"),
    ] = None,
    report: ReportOptions,
) -> None:
    """Bring back images that were removed, or earlier drawings of images that were drawn again.

    Example: style-aligned restore icons umbrella --seed 2
    """
    from style_aligned.cli import reports
    from style_aligned.sets.changes import find_restorable, restore_image
    from style_aligned.sets.image_set import open_set

    with open_set(folder) as image_set:
        for name in images:
            find_restorable(image_set, name, seed=seed)  # all of them, before anything changes
        restored = [restore_image(image_set, name, seed=seed) for name in images]
        reports.report_change(image_set, restored, "restored", report)


@takes(report=ReportOptions)
def rename(
    *,
    folder: Folder,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Its file's name, its id, or a part of its prompt.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name of its file.")],
    report: ReportOptions,
) -> None:
    """Give the file of an image another name. Its id, prompt and seed stay.

    Example: style-aligned rename icons hat magic-hat
    """
    from style_aligned.cli import reports
    from style_aligned.sets.changes import rename_image
    from style_aligned.sets.image_set import open_set
    from style_aligned.sets.names import find_image

    with open_set(folder) as image_set:
        found = find_image(image_set.state.current, image)
        renamed = rename_image(image_set, found, name)
        undo = reports.command("rename", folder, renamed.name, found.name)
        reports.report_change(image_set, [renamed], "renamed", report, undo=undo)


@takes(report=ReportOptions)
def sheet(
    *,
    folder: Folder,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The title.  [default: the reference's prompt]")
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, max=96, metavar="COUNT", help="Images in a row.  [default: by their number]")
    ] = None,
    settings: Annotated[
        bool | None,
        typer.Option(
            "--settings/--no-settings",
            help="Show prompts, seeds and settings, or the title alone.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Write the sheet here, and leave that of the set as it is."),
    ] = None,
    report: ReportOptions,
) -> None:
    """Draw the contact sheet of a set anew. The set keeps its title and columns for later.

    Example: style-aligned sheet icons --title "Client A" --columns 4 --no-settings
    """
    inputs.check_text(title or "", "--title")
    if output is not None:
        inputs.check_output_file(output)

    from dataclasses import replace

    from style_aligned.cli import reports
    from style_aligned.sets.image_set import open_set, read_image_set
    from style_aligned.sets.records import SetError
    from style_aligned.sets.sheet import sheet_path, write_sheet

    given: dict[str, Any] = {"title": title, "columns": columns, "settings": settings}
    given = {name: value for name, value in given.items() if value is not None}
    if output is not None:
        image_set = read_image_set(folder)
        path, is_written = output, write_sheet([image_set], output, replace(image_set.state.sheet, **given))
    else:
        with open_set(folder) as image_set:
            if given:
                image_set.commit_settings(sheet=replace(image_set.state.sheet, **given))
            path = sheet_path(image_set)
            is_written = write_sheet([image_set], path)
    if not is_written:
        raise SetError(f"{folder} has no images yet")
    reports.report_result({"sheet": str(path)}, str(path), path, report)


@takes(report=ReportOptions)
def export(
    *,
    folder: Folder,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write.")],
    names: Annotated[
        Names, typer.Option(metavar="KIND", help="Names of the files: slug says what they show, number counts them.")
    ] = Names.slug,
    format: Annotated[  # noqa: A002
        Format, typer.Option(metavar="TYPE", help="The type of the files: png, webp or jpg.")
    ] = Format.png,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Fit the images into this size in pixels.  [default: as they are]"),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", help="Write the reference too.", show_default=False)
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are no earlier export.")] = False,
    report: ReportOptions,
) -> None:
    """Write the images of a set into another folder, under plain names, without settings inside.

    The reference stays behind, unless it is asked for. Names leave out articles: 001-an-owl becomes owl.

    Example: style-aligned export icons --to out --format webp --size 64
    """
    inputs.check_output_folder(to, "--to")
    fitted = inputs.parse_pixels(size)

    from style_aligned.cli import reports
    from style_aligned.sets.export import export_set
    from style_aligned.sets.image_set import read_image_set

    image_set = read_image_set(folder)
    paths = export_set(
        image_set, to, names=names.value, format=format.value, size=fitted, reference=reference, force=force
    )
    count = f"{len(paths)} image{'' if len(paths) == 1 else 's'}"
    shown = f"{count} in {to}, {'with' if reference else 'without'} the reference"
    shown += "" if reference else " (--reference writes it too)"
    reports.report_result({"files": [str(path) for path in paths]}, shown, to, report)


def show(
    *,
    target: Annotated[
        str, typer.Argument(metavar="SET|STYLE", help="A set's folder, a folder of candidates, or a style file.")
    ],
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Write the small picture of the reference that a style file holds."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --preview if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON, on standard output.")] = False,
) -> None:
    """Show what a set, a folder of candidates or a style file holds.

    Example: style-aligned show icons
    """
    if preview is not None:
        inputs.check_output_file(preview, "--preview")
        if preview.exists() and not force:
            raise ValueError(f"{preview} exists already: --force replaces it")

    from style_aligned.sets import describe
    from style_aligned.sets.explore import find_candidates
    from style_aligned.sets.image_set import is_set, read_image_set
    from style_aligned.sets.sources import find_style

    folder = Path(target)
    if is_set(folder) and preview is None:
        described = describe.describe_set(read_image_set(folder))
        lines = _set_lines(described)
    elif preview is None and (candidates := find_candidates(folder)):
        styles = [describe.describe_style(path) for path in candidates.values()]
        described = {"kind": "candidates", "folder": target, "candidates": styles}
        lines = [f"{len(styles)} candidates of {styles[0]['reference']!r}"]
        lines += [f"{Path(style['file']).with_suffix('')}  seed {style['reference_seed']}" for style in styles]
    else:
        source = find_style(target)
        assert source.path is not None
        described = describe.describe_style(source.path)
        lines = describe.to_lines({name: value for name, value in described.items() if name != "kind"})
        if preview is not None:
            _write_preview(source.path, preview)
            described["preview"] = str(preview)
            lines.append(f"{'preview:':<17} {preview}")
    typer.echo(json.dumps(described, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def _write_preview(style: Path, preview: Path) -> None:
    from style_aligned.files import write_png
    from style_aligned.styles.style import Style

    if preview.exists() and preview.samefile(style):
        raise ValueError(f"expected --preview to be another file than the style file, got {preview}")
    write_png(preview, Style.load(style).preview)


def _set_lines(described: dict[str, Any]) -> list[str]:
    from style_aligned.sets.describe import to_lines

    settings = described["settings"]
    shown = {
        "set": described["folder"],
        "reference": described["reference"]["prompt"],
        "seed": described["reference"]["seed"],
        "model": described["model"] or "unknown",
        **{name: settings[name] for name in ("steps", "guidance", "size", "options") if name in settings},
        **{name: described[name] for name in ("prefix", "suffix", "sheet") if described[name]},
    }
    rows = [("id", "name", "seed", "prompt")]
    for image in described["images"] + described["removed"]:
        state = "" if image["state"] == "there" else f"  ({image['state']})"
        replaced = f"  ({len(image['replaced'])} replaced)" if image["replaced"] else ""
        prompt = image["prompt"] if image["prompt"].isprintable() else json.dumps(image["prompt"])
        rows.append((str(image["id"]), image["name"], str(image["seed"]), f"{prompt}{state}{replaced}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = [
        f"{number:>{widths[0]}}  {name:<{widths[1]}}  {seed:>{widths[2]}}  {prompt}"
        for number, name, seed, prompt in rows
    ]
    return [*to_lines(shown), "", *table]
