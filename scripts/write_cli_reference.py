"""Write docs/command-line.md, or tell with --check whether it is current."""

import sys
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from style_aligned.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
COMMANDS = ("generate", "style make", "style show", "demo", "concepts", "convert", "evaluate")
EXAMPLES = {
    "generate": """
Two images in the style of a fox, beside what they would be without it:

    style-aligned generate --reference "a fox, neon sign" \\
        --prompt "a rocket, neon sign" --prompt "a guitar, neon sign" --compare --output neon

The folder then holds `000-a-rocket-neon-sign.png`, `001-a-guitar-neon-sign.png`, `reference.png`, the same images
without the style in `unaligned/`, the contact sheet `sheet.png`, and `style.safetensors`, from which more images can be
made in the same style. The prompt, the seed and all settings are in the text chunks of every image.

Any number of prompts, for several styles; interrupted, the same command goes on from there:

    style-aligned generate --style fox.safetensors --style lion.safetensors --prompts prompts.txt --output grid

Up to 32 images (or a batch, if that is more) are on their way at a time, with the reference of a new set, and written
once their steps are done: an interruption loses no more than those. An image depends in its last bits on what it shares
a batch with. To go on with a run, keep its `--batch-size`.

A line of a `.jsonl` file may give the seed of its image: `{"prompt": "a rocket, neon sign", "seed": 7}`.
""",
    "style make": """
    style-aligned style make --reference "a fox, neon sign" --output fox.safetensors
""",
    "style show": """
    style-aligned style show fox.safetensors --preview fox.png
""",
    "convert": """
    style-aligned convert --from sd_xl_base_1.0.safetensors --to sdxl --half
""",
    "evaluate": """
How alike the images of some folders are, and whether they show what their prompts say ([more](metrics.md)):

    style-aligned evaluate neon ink --output figures.json --plot figures.png
""",
}


def page() -> str:
    """Give the text of the page."""
    return "\n".join(_parts()).rstrip() + "\n"


def _parts() -> Iterator[str]:
    yield "# The command line\n"
    yield "<!-- written by scripts/write_cli_reference.py: change the help texts, then run it -->\n"
    yield "Every error is one line on standard error, with exit code 2 (130 after Ctrl-C). What was finished is kept.\n"
    yield f"    style-aligned --help\n\n```\n{_help()}\n```\n"
    for command in COMMANDS:
        yield f"## {command}\n"
        if command in EXAMPLES:
            yield f"{EXAMPLES[command].strip(chr(10))}\n"
        yield f"```\n{_help(*command.split())}\n```\n"


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
