"""The examples in docstrings and documents run."""

import ast
import doctest
import re
import shlex
import textwrap
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from refiners.fluxion import layers as fl

import style_aligned
from style_aligned.cli import main
from style_aligned.models.family import FAMILIES, MINI

PACKAGE = Path(style_aligned.__file__).parent
ROOT = PACKAGE.parent


def examples() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (docstring := ast.get_docstring(node)):
                name = f"{path.relative_to(PACKAGE)}:{getattr(node, 'name', '')}"
                found += [
                    (name, textwrap.dedent(code)) for code in re.findall(r"```py\n(.*?)```", docstring, re.DOTALL)
                ]
    return found


@pytest.mark.parametrize(("name", "code"), examples(), ids=[name for name, _ in examples()])
def test_example(name: str, code: str) -> None:
    exec(code, {**{name: getattr(style_aligned, name) for name in style_aligned.__all__}, "torch": torch, "fl": fl})


def test_there_are_examples() -> None:
    assert len(examples()) >= 2


MODULES = [
    ".".join(("style_aligned", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_prompted_examples(module: str) -> None:
    failed, tried = doctest.testmod(import_module(module))
    assert tried > 0
    assert failed == 0


# documents: what is marked as python runs; what is marked as py does not, as it takes SDXL or a GPU


def read_blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if read_blocks(path.relative_to(ROOT).as_posix(), "python")
]


@pytest.fixture
def small_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a model that draws small pictures in two steps where nothing else is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FAMILIES, "Mini", replace(MINI, num_inference_steps=2, default_size=(64, 64)))
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_of_documents(document: str, small_folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in read_blocks(document, "python"):
        exec(block.replace("set_inference_steps(30)", "set_inference_steps(2)"), names)
    if document == "README.md":
        suffixes = [path.suffix for path in small_folder.iterdir()]
        assert suffixes.count(".png") >= 2
        assert suffixes.count(".safetensors") >= 1


@pytest.mark.usefixtures("small_folder")
@pytest.mark.filterwarnings("ignore:painting.jpg:UserWarning")  # that it was captioned, and enlarged
def test_the_commands_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (80, 64), "teal").save("painting.jpg")
    lines = "".join(read_blocks("README.md", "sh")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("style-aligned ")]
    commands = [command for command in commands if not {"--model", "serve", "web"} & set(command)]  # SDXL, and the page
    assert commands
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)


def test_contributors_find_what_they_are_told_of() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w./]+(?:/|\.\w+))`", text)
    assert len(paths) > 20
    assert [path for path in paths if "/" in path and not (ROOT / path).exists()] == []
