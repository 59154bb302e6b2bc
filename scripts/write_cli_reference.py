"""Write docs/command-line.md by walking the commands, or tell with --check whether it is current."""

import sys
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from style_aligned.cli.app import app, names

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
HEAD = """# The command line

<!-- written by scripts/write_cli_reference.py: change the help texts, then run it -->

`style-aligned` is also `python -m style_aligned`. Every error is one line on standard error, with exit code 2 (130
after Ctrl-C). What a set's folder holds, and what each command does to it, is on [a page of its own](sets.md).
`style-aligned --install-completion` completes commands and options in bash, zsh, fish and PowerShell.
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join(_parts()).rstrip() + "\n"


def _parts() -> Iterator[str]:
    yield HEAD
    yield f"    style-aligned --help\n\n```\n{_help()}\n```\n"
    for command in names():
        yield f"## {command}\n\n```\n{_help(command)}\n```\n"


def _help(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="style-aligned", terminal_width=100)
    if result.exit_code != 0:
        raise RuntimeError(f"style-aligned {' '.join(command)} --help: {result.output}")
    return result.output.rstrip()


def main() -> int:
    """Write the page, or check it."""
    if sys.argv[1:] == ["--check"]:
        is_current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print("current" if is_current else f"{PAGE} is not current: run scripts/write_cli_reference.py")
        return 0 if is_current else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
