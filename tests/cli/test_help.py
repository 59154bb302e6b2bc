"""What the command line says of itself, and that it says it without loading torch."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["style", "make", "--help"], ["demo", "-h"]])
def test_help_does_without_torch(arguments: list[str]) -> None:
    done = python(
        "import sys; from style_aligned.cli import main; code = main(sys.argv[1:] or "
        f"{arguments!r}); heavy = {{'torch', 'numpy', 'refiners', 'safetensors', 'PIL', 'rich'}} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: style-aligned" in done.stdout


def test_wrong_options_are_told_without_torch() -> None:
    done = python(
        "import sys; from style_aligned.cli import main; code = main(['generate', '--reference', 'a fox', '--prompt',"
        " 'a cat', '--guidance', 'nan', '--output', 'x']); sys.exit('torch' if 'torch' in sys.modules else code)"
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "style-aligned: error: expected --guidance to be a finite number between -1000 and 1000, got nan\n"
    )


def test_help_is_shown_without_arguments(run: Run) -> None:
    code, output, error = run()
    assert (code, error) == (0, "")
    assert "Commands:" in output


def test_version(run: Run) -> None:
    code, output, _ = run("--version")
    assert code == 0
    assert output.startswith("style-aligned ")


def test_the_reference_page_is_current() -> None:
    root = Path(__file__).parents[2]
    page = runpy.run_path(str(root / "scripts" / "write_cli_reference.py"))["page"]
    assert (root / "docs" / "command-line.md").read_text(encoding="utf-8") == page()
