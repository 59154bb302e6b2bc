"""Where the command line starts: it runs a command, and turns what goes wrong into one line and an exit code."""

import os
import sys
from collections.abc import Sequence

from style_aligned.cli.console import ERROR, INTERRUPTED, Interrupted, describe, print_line, show_notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; by default those of the process. Without any, it shows the help.

    Returns:
        The exit code: 0, or 2 after an error, or 130 after Ctrl-C. An error is one line on standard error; set
        `STYLE_ALIGNED_DEBUG=1` to have the traceback instead.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")  # names of files hold what a terminal may not be able to show
    told = ""
    try:
        code = _run(arguments or ["--help"])
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Interrupted as interruption:
        code, told = INTERRUPTED, f": {interruption}"
    except Exception as error:
        if os.environ.get("STYLE_ALIGNED_DEBUG"):
            raise
        print_line(f"error: {describe(error)}")
        return ERROR
    if code == INTERRUPTED:
        print_line(f"interrupted{told}")
    return code


def _run(arguments: list[str]) -> int:
    import typer  # here, where an interruption of it is noticed

    from style_aligned.cli.app import app

    with show_notes():
        try:
            code = app(arguments, prog_name="style-aligned", standalone_mode=False)
        except typer.Abort:
            return INTERRUPTED
    return code if isinstance(code, int) else 0
