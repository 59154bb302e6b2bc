"""The commands that draw: `generate`, `explore`, `add`, `reroll` and `style`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from style_aligned.cli import inputs
from style_aligned.cli.extras import ExtraOptions
from style_aligned.cli.options import (
    DrawOptions,
    InitOptions,
    ModelOptions,
    PromptOptions,
    ReferenceOptions,
    ReportOptions,
    StyleOptions,
    takes,
)
from style_aligned.cli.picture import PictureOptions

SEVERAL = "Several styles"  # a section of the help
Folder = Annotated[Path, typer.Argument(metavar="SET", help="The folder of the set.")]


@takes(
    prompt_options=PromptOptions,
    reference_options=ReferenceOptions,
    picture_options=PictureOptions,
    extra_options=ExtraOptions,
    init=InitOptions,
    style_options=StyleOptions,
    draw=DrawOptions,
    model=ModelOptions,
    report=ReportOptions,
)
def generate(
    *,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STYLE] [PROMPT]...",
            help="Where the style comes from: a prompt, a picture, a set's folder, or a style file, with or without"
            " its ending; then what to draw. With --reference or --style, all are prompts.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the set, new or of before.")],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROMPT", help="Prompt of the reference. Repeat it for several styles.", rich_help_panel=SEVERAL
        ),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A style file, a set's folder or a picture. Repeat it for several styles.",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    blend: Annotated[
        bool,
        typer.Option(
            "--blend",
            help="Draw one set in a blend of the styles, each with its weight: --style fox:0.7 --style owl:0.3.",
            rich_help_panel=SEVERAL,
        ),
    ] = False,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to draw. Repeat it for more images.")
    ] = None,
    prompt_options: PromptOptions,
    reference_options: ReferenceOptions,
    picture_options: PictureOptions,
    extra_options: ExtraOptions,
    init: InitOptions,
    style_options: StyleOptions,
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw prompts in the style of a reference, as a set in a folder.

    The reference comes first, then what to draw. The same command goes on after an interruption, and draws only what is
    missing. Several styles get a folder each.

    Example: style-aligned generate "a fox, neon sign" "a rocket" "an umbrella" --suffix ", neon sign" --output neon
    """
    inputs.check_output_folder(output)

    from style_aligned.cli import run

    run.generate(
        output,
        texts=texts or [],
        references=reference or [],
        styles=style or [],
        blend=blend,
        prompts=prompt or [],
        prompt_options=prompt_options,
        reference_options=reference_options,
        picture_options=picture_options,
        extra_options=extra_options,
        init=init,
        options=style_options.given,
        draw=draw,
        model=model,
        report=report,
    )


@takes(
    reference_options=ReferenceOptions,
    extra_options=ExtraOptions,
    style_options=StyleOptions,
    model=ModelOptions,
    report=ReportOptions,
)
def explore(
    *,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt of the reference.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the candidates.")],
    count: Annotated[int, typer.Option(min=1, max=1000, metavar="COUNT", help="The number of candidates.")] = 8,
    reference_options: ReferenceOptions,
    extra_options: ExtraOptions,
    style_options: StyleOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw candidates for a reference, from different seeds, side by side on a sheet.

    Each is a style of its own: looks/3 is the third one, for generate.

    Example: style-aligned explore "a mushroom, sticker" --count 8 --output looks
    """
    inputs.check_prompt(prompt, "the prompt")
    inputs.check_output_folder(output)

    from style_aligned.cli import run

    run.explore(output, prompt, count, reference_options, extra_options, style_options.given, model, report)


@takes(
    prompt_options=PromptOptions,
    extra_options=ExtraOptions,
    init=InitOptions,
    style_options=StyleOptions,
    draw=DrawOptions,
    model=ModelOptions,
    report=ReportOptions,
)
def add(
    *,
    folder: Folder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="What to draw. None draws what is missing.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEED", help="Seed of the first new image; the others count on from it."),
    ] = None,
    prompt_options: PromptOptions,
    extra_options: ExtraOptions,
    init: InitOptions,
    style_options: StyleOptions,
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Add images to a set, in its style. What is there stays as it is.

    The set's own prefix and suffix are put to the prompts. Images that were deleted, and those that an interruption
    left out, are drawn too.

    Example: style-aligned add icons "an owl" "an anchor"
    """
    inputs.check_number("--seed", seed, minimum=0, maximum=inputs.MAX_SEED)

    from style_aligned.cli import run

    run.add(folder, texts or [], seed, prompt_options, extra_options, init, style_options.given, draw, model, report)


@takes(
    extra_options=ExtraOptions,
    init=InitOptions,
    style_options=StyleOptions,
    draw=DrawOptions,
    model=ModelOptions,
    report=ReportOptions,
)
def reroll(
    *,
    folder: Folder,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Its file's name, its id, or a part of its prompt.", show_default=False
        ),
    ],
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEED", help="The seed.  [default: the next one that the set has not used]"),
    ] = None,
    count: Annotated[
        int,
        typer.Option(min=1, max=1000, metavar="COUNT", help="Draw it so often. The first one becomes the set's image."),
    ] = 1,
    extra_options: ExtraOptions,
    init: InitOptions,
    style_options: StyleOptions,
    draw: DrawOptions,
    model: ModelOptions,
    report: ReportOptions,
) -> None:
    """Draw images of a set again, from another seed.

    The old ones are kept in the folder replaced: restore brings them back.

    Example: style-aligned reroll icons umbrella
    """
    inputs.check_number("--seed", seed, minimum=0, maximum=inputs.MAX_SEED)

    from style_aligned.cli import run

    run.reroll(folder, images, seed, count, extra_options, init, style_options.given, draw, model, report)


@takes(
    reference_options=ReferenceOptions,
    picture_options=PictureOptions,
    extra_options=ExtraOptions,
    style_options=StyleOptions,
    model=ModelOptions,
)
def style(
    *,
    text: Annotated[
        str, typer.Argument(metavar="PROMPT|PICTURE", help="The prompt of the reference, or a picture for it.")
    ],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="The .safetensors file to write.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a picture shows: the same as --caption.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    reference_options: ReferenceOptions,
    picture_options: PictureOptions,
    extra_options: ExtraOptions,
    style_options: StyleOptions,
    model: ModelOptions,
) -> None:
    """Make a style file from a prompt or a picture, without a set.

    Example: style-aligned style painting.jpg --prompt "a castle, watercolor" --output sea.safetensors
    """
    from style_aligned.sets.sources import Source, find_source, looks_like_path

    source = find_source(text) if looks_like_path(text) else Source("prompt", inputs.check_prompt(text, "the prompt"))
    if source.kind == "style":
        raise ValueError(f"expected a prompt or a picture to make a style of, got {text!r}, which is a style already")
    if prompt is not None:
        inputs.reject({"--caption": picture_options.caption}, "beside --prompt, which says the same")
        picture_options = replace(picture_options, caption=inputs.check_prompt(prompt, "--prompt"))
    if source.kind == "prompt":
        picture_options.reject()
    elif picture_options.caption_only:
        from style_aligned.cli import run

        run.caption([source.path], picture_options, model)
        return
    if output is None:
        raise typer.BadParameter("expected --output FILE")
    inputs.check_output_file(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"expected --output to end in .safetensors, as style files do, got {output}")
    if output.exists() and not force:
        raise ValueError(f"{output} exists already: --force replaces it")

    from style_aligned.cli import run

    run.make_style(output, source, reference_options, picture_options, extra_options, style_options.given, model)
