"""The commands, and what they have in common."""

from typing import Annotated

import typer

from style_aligned.cli.draw import add, explore, generate, reroll, style
from style_aligned.cli.evaluate import evaluate
from style_aligned.cli.manage import export, remove, rename, restore, sheet, show
from style_aligned.cli.more import concepts, convert, demo
from style_aligned.cli.sections import SectionedCommand
from style_aligned.cli.web import web

app = typer.Typer(
    help="Sets of images in the style of one reference, without training.",
    rich_markup_mode=None,  # plain help: fast, and readable in a pipe
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
DRAWING = (generate, explore, add, reroll, style)
MANAGING = (remove, restore, rename, sheet, export, show)
for command in (*DRAWING, *MANAGING, web, demo, concepts, convert, evaluate):
    app.command(cls=SectionedCommand)(command)


def names() -> list[str]:
    """Return the names of the commands, in their order."""
    return [function.__name__ for command in app.registered_commands if (function := command.callback) is not None]


def _show_version(is_asked: bool) -> bool:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("style-aligned")
        except PackageNotFoundError:
            number = "(run from its sources)"
        typer.echo(f"style-aligned {number}")
        raise typer.Exit
    return is_asked


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Sets of images in the style of one reference, without training.

    Example: style-aligned generate "a fox, neon sign" "a rocket, neon sign" --output neon
    """
