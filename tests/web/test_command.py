"""The command that opens the page: what it refuses, in one line."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from style_aligned.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "network"], "expected --auth USER:PASSWORD with --share network: others can reach the page"),
        (["--share", "10.0.0.1"], "expected --auth USER:PASSWORD with --share 10.0.0.1"),
        (["--share", "yes"], "expected --share to be no, network or an IP address, got 'yes'"),
        (["--auth", "secret"], "expected --auth to be USER:PASSWORD"),
        (["file"], "got the file"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["web", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "gradio" else find(name, *rest)

    monkeypatch.setattr("style_aligned.cli.web.find_spec", find_spec)
    assert main(["web"]) == 2
    assert capsys.readouterr().err.strip().endswith("the page needs gradio: pip install 'style-aligned[web]'")
