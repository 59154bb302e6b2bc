"""The examples in docstrings and documents run."""

import ast
import doctest
import re
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from refiners.fluxion import layers as fl

import style_aligned

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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_of_documents(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in read_blocks(document, "python"):
        quicker = block.replace("set_inference_steps(30)", "set_inference_steps(2)")
        exec(quicker.replace("seed=5,", "seed=5, num_inference_steps=2,"), names)
    if document == "README.md":
        suffixes = [path.suffix for path in tmp_path.iterdir()]
        assert suffixes.count(".png") >= 2
        assert suffixes.count(".safetensors") >= 1


def test_contributors_find_what_they_are_told_of() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w./]+(?:/|\.\w+))`", text)
    assert len(paths) > 20
    assert [path for path in paths if "/" in path and not (ROOT / path).exists()] == []
