"""Style files: made, shown, and damaged."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SMALL, Run, assert_error, read_image


def test_show_style(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "fox.safetensors"
    code, output, _ = run("style", "make", "--reference", "a fox", "--seed", "4", *SMALL, "--output", file)
    assert code == 0
    assert f"--style {file}" in output
    preview = tmp_path / "preview.png"
    code, output, error = run("style", "show", file, "--preview", preview)
    assert (code, error) == (0, "")
    shown = dict(line.split(":", maxsplit=1) for line in output.splitlines())
    assert (shown["reference"].strip(), shown["reference seed"].strip()) == ("a fox", "4")
    assert (shown["steps"].strip(), shown["size"].strip()) == ("2", "64x64")
    assert read_image(preview).size == (64, 64)


def test_a_preview_replaces_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file)
    for preview in (file, tmp_path / "link", tmp_path / "." / "fox.safetensors"):
        for force in ([], ["--force"]):
            result = run("style", "show", file, "--preview", preview, *force)
            assert_error(result, "expected --preview to be another file than the style file, got")
    assert file.read_bytes() == before

    notes = tmp_path / "notes.png"
    notes.write_bytes(b"my own notes")
    assert_error(run("style", "show", file, "--preview", notes), "notes.png exists already: --force replaces it")
    assert notes.read_bytes() == b"my own notes"
    assert run("style", "show", file, "--preview", notes, "--force")[0] == 0
    assert read_image(notes).size == (64, 64)
    assert_error(run("style", "show", file, "--preview", tmp_path), "expected --preview to be a file, got the folder")
    assert_error(run("style", "show", file, "--preview", file / "new"), "expected --preview .* to be in a folder")
    assert_error(run("style", "show", file, "--preview", "/dev/null"), "expected --preview .* is a device or a pipe")


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("mini", [], (2.0, {"share_group_norm": True})),
        ("mini", ["--guidance", "5", "--no-share-group-norm"], (5.0, {"share_group_norm": False})),
        ("base.safetensors", [], (5.0, {})),
        ("base.safetensors", ["--share-group-norm"], (5.0, {"share_group_norm": True})),
    ],
)
def test_the_embedded_model_has_defaults_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, given: list[str], expected: object
) -> None:
    asked: list[Any] = []

    def make_style(output: Path, reference: str, settings: Any, load: object) -> None:
        asked.append(settings)

    monkeypatch.setattr("style_aligned.cli.run.make_style", make_style)
    command = ["style", "make", "--reference", "a fox", "--model", model, *given, "--output", tmp_path / "fox"]
    assert run(*command)[0] == 0
    assert (asked[0].guidance, asked[0].reference_options) == expected


def test_damaged_style_files(run: Run, loads: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    run("style", "make", "--reference", "a fox", *SMALL, "--output", file)
    whole = file.read_bytes()
    loads.clear()
    altered = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (whole[:-1], whole[:50], b"", b"text", altered):
        file.write_bytes(content)
        command = ["generate", "--style", file, "--prompt", "a cat", "--output", tmp_path / "out"]
        assert_error(run(*command), "fox.safetensors")
        assert_error(run("style", "show", file), "fox.safetensors")
    assert loads == []
    assert not (tmp_path / "out").exists()
