"""The commands in documents parse: they exist, so do their options, and values are accepted. None of them runs."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import typer

from style_aligned.cli.app import app
from style_aligned.options import STYLE_OPTIONS
from tests.test_docstrings import ROOT

SCRIPTS = ROOT / "scripts"
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "command-line.md"  # which is written from the commands
]
PYTHON = r"(?:\.venv/bin/)?python3?\s+(?:-m\s+scripts\.|scripts/)"
COMMAND = rf"(?:style-aligned\s|{PYTHON}|scripts/)"
WRAPPERS = {  # of the shell, which hand their arguments on
    "demo": ("style-aligned", "demo"),
    "reproduce_table_2": ("python", "-m", "scripts.table_2"),
}
OTHERS = ("docs", "test")  # to MkDocs and pytest


class Parsed(Exception):  # noqa: N818
    """The arguments are accepted."""


def commands_in(text: str) -> Iterator[str]:
    """Find commands in the blocks of code of a page, but those of Python, and in its inline code."""
    blocks = [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if
              language not in ("py", "python")]  # fmt: skip
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^ {4}\S.*$", prose, re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if (found := re.search(rf"(?:^|\s)({COMMAND}.*)", line)) is not None:
                yield found[1]
    for code in re.findall(rf"`({COMMAND}[^`]*)`", prose):
        yield " ".join(code.split())


FOUND = [(page, command) for page in PAGES for command in commands_in((ROOT / page).read_text(encoding="utf-8"))]


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command, up to where it would do something."""
    program, *rest = words
    if program == "style-aligned":
        parse_style_aligned(rest)
    elif program.startswith("scripts/"):
        name = program.removeprefix("scripts/")
        assert (SCRIPTS / name).exists(), f"there is no {program}"
        if name in WRAPPERS:
            parse([*WRAPPERS[name], *rest], monkeypatch)
        elif rest:
            assert name in OTHERS, f"expected no arguments, or another test for those of {program}"
    else:
        module, arguments = (rest[1], rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])
        parse_script(
            module.removeprefix("scripts/").removeprefix("scripts.").removesuffix(".py"), arguments, monkeypatch
        )


def parse_style_aligned(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    if name.startswith("-"):  # of all commands: it would be done as it is parsed
        assert not rest
        assert name in {spelling for option in group.params for spelling in option.opts} | {"--help", "-h"}
        return
    assert name in group.commands, f"there is no command {name}"
    try:
        given = group.commands[name].make_context(name, rest).params
    except typer.Exit:  # of --help
        return
    for option in STYLE_OPTIONS.values():
        if (value := given.get(option.cli_name[2:].replace("-", "_"))) is not None:
            option.check(option.read(value), option.cli_name)


def parse_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (SCRIPTS / f"{name}.py").is_file(), f"there is no scripts/{name}.py"
    source = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    if "parse_args" not in source and "from conversion import" not in source:
        assert not arguments, f"expected no arguments for scripts/{name}.py, which takes none"
        return

    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *given: Any, **others: Any) -> NoReturn:
        parser.allow_abbrev = False
        original(parser, *given, **others)
        raise Parsed

    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    if "from conversion import" in source:
        with pytest.raises(Parsed):
            importlib.import_module("scripts.conversion").main(name)
    else:
        main = importlib.import_module(f"scripts.{name}").main
        with pytest.raises(Parsed):
            main()


@pytest.mark.parametrize(("page", "command"), FOUND, ids=[f"{page}: {command[:60]}" for page, command in FOUND])
def test_commands_of_documents_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(shlex.split(command, comments=True), monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        'style-aligned generate "a fox" "a cat" --outptu set',
        'style-aligned generate "a fox" "a cat" --output set --steps many',
        'style-aligned generate "a fox" "a cat" --output set --strength -1',
        'style-aligned generate "a fox" "a cat"',
        "style-aligned drow set",
        "style-aligned --verzion",
        "scripts/demo --outptu demo.png",
        "scripts/demonstrate",
        "python -m scripts.strength_pictures --sead 5",
        "python -m scripts.strength_pictures --outp strength.jpg",
        "python -m scripts.compare_with_google --output here",
        "python -m scripts.no_such_script",
        "python scripts/convert_sd15.py --from sd15",
    ],
)
def test_a_command_that_does_not_parse_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Exception, SystemExit)):
        parse(shlex.split(command), monkeypatch)


def test_commands_are_found_wherever_they_are_written() -> None:
    page = """Type `style-aligned show
set`, or `python -m
scripts.evaluate --sets 2`, not `style-aligned`.

```sh
srun --nodes 2 style-aligned add set \\
    "a cat"  # more
```

```python
scripts/none
```

    scripts/demo
"""
    found = ['style-aligned add set      "a cat"  # more', "scripts/demo", "style-aligned show set"]
    assert [*commands_in(page)] == [*found, "python -m scripts.evaluate --sets 2"]
    assert {page for page, _ in FOUND} >= {"README.md", "CONTRIBUTING.md", "docs/sets.md", "docs/control.md"}
