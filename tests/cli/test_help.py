"""What the command line says of itself, and that it says it without loading torch."""

import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from style_aligned import cli
from style_aligned.cli.app import names
from tests.cli.conftest import Run


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["reroll", "--help"], ["show", "--help"], ["demo", "-h"]]
)
def test_help_does_without_torch(arguments: list[str]) -> None:
    done = python(
        "import sys; from style_aligned.cli import main; code = main(sys.argv[1:] or "
        f"{arguments!r}); heavy = {{'torch', 'numpy', 'refiners', 'safetensors', 'PIL', 'rich'}} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: style-aligned" in done.stdout


@pytest.mark.slow  # it measures time, which the other tests may be pressed for
def test_help_comes_at_once() -> None:
    def measure() -> float:
        start = time.perf_counter()
        assert python("from style_aligned.cli import main; main(['generate', '--help'])").returncode == 0
        return time.perf_counter() - start

    assert min(measure() for _ in range(5)) < 0.5


def test_wrong_options_are_told_without_torch() -> None:
    done = python(
        "import sys; from style_aligned.cli import main; code = main(['generate', 'a fox',"
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


@pytest.mark.parametrize(
    ("program", "folder", "path", "expected"),
    [
        ("project/.venv/bin/style-aligned", "project", "", ".venv/bin/style-aligned"),
        ("project/.venv/bin/style-aligned", "else where", "", "{root}/project/.venv/bin/style-aligned"),
        ("project/.venv/bin/style-aligned", "project/.venv/bin", "", "./style-aligned"),
        ("project/.venv/bin/style-aligned", "project", "project/.venv/bin", "style-aligned"),
        ("project/.venv/bin/style-aligned", "project", "else where", ".venv/bin/style-aligned"),
        ("else where/style-aligned", "project", "", "'{root}/else where/style-aligned'"),
        (
            str(Path(cli.__file__).with_name("__main__.py")),
            "project",
            "",
            f"{shlex.quote(sys.executable)} -m style_aligned",
        ),
    ],
)
def test_the_next_command_can_be_pasted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, folder: str, path: str, expected: str
) -> None:
    from style_aligned import demo

    for bin_folder in (tmp_path / "project" / ".venv" / "bin", tmp_path / "else where"):
        bin_folder.mkdir(parents=True)
        (bin_folder / "style-aligned").touch(mode=0o755)

    def draw_demo(model: Any, **_: Any) -> Image.Image:
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(demo, "draw_demo", draw_demo)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / program), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else "")
    monkeypatch.chdir(tmp_path / folder)
    code, output, _ = run("demo", "--output", "mine.png")
    assert code == 0
    assert output.startswith("mine.png: ")
    assert f"Next: {expected.format(root=tmp_path)} generate " in output
    assert (tmp_path / folder / "mine.png").is_file()


def test_the_reference_page_is_current() -> None:
    root = Path(__file__).parents[2]
    page = runpy.run_path(str(root / "scripts" / "write_cli_reference.py"))["page"]
    assert (root / "docs" / "command-line.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("command", names())
def test_every_help_has_an_example_that_can_be_typed(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, output, _ = run(command, "--help")
    assert code == 0
    example = " ".join(output.partition("Example: ")[2].partition("\n\n")[0].split())
    assert shlex.split(example)[:2] == ["style-aligned", command]
    options = re.findall(r" (--[a-z-]+)", example)
    declared = output.partition("Options:")[2]
    assert all(re.search(rf"^  .*{option}\b", declared, re.MULTILINE) for option in options)


def test_python_m_style_aligned(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "style_aligned", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--version")[1]


def test_completion_is_offered(run: Run) -> None:
    assert "--install-completion" in run("--help")[1]
