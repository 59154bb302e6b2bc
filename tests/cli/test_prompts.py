"""Prompts: from files, from standard input, many, and such as the model does not know."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from style_aligned.cli import drawing, inputs
from style_aligned.files import read_texts
from style_aligned.models.mini import Mini
from style_aligned.sampling.generation import Sample
from tests.cli.conftest import FOX, Run, assert_error, read_image


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("prompts.txt", b"", "prompts.txt: expected at least one prompt, got an empty file"),
        ("prompts.txt", b"\n \r\n\t\n", "expected at least one prompt"),
        ("prompts.txt", b"a cat\na dog\na \xff fox\n", "prompts.txt, line 3: expected UTF-8, got the byte 0xff"),
        ("prompts.txt", b"a cat\r\ra dog\r\na \xff fox\r", "prompts.txt, line 4: expected UTF-8, got the byte 0xff"),
        ("prompts.txt", b"\xef\xbb\xbfa cat\na \xfe fox\n", "prompts.txt, line 2: expected UTF-8, got the byte 0xfe"),
        ("prompts.txt", b"a cat\nzero \0 byte\n", "prompts.txt, line 2 to be a text, got one with a zero byte"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\n\n{"prompt": \n', "prompts.jsonl, line 3: expected a JSON object"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\r\r{"prompt": \r', "prompts.jsonl, line 3: expected a JSON object"),
        ("prompts.json", b'[\n  "a cat",\n  "a dog"\n]\n', "expected --prompts to be .jsonl, .* got .*prompts.json"),
        ("PROMPTS.JSON", b'{"prompt": "a cat"}\n', "expected --prompts to be .jsonl, .* got .*PROMPTS.JSON"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\n["a dog"]\n', "line 2: expected a JSON object"),
        ("prompts.jsonl", b'{"prompt": 3}\n', "line 1: expected a JSON object"),
        (
            "prompts.jsonl",
            b'{"prompt": "a cat", "sed": 3}\n',
            "line 1: expected no keys but prompt and seed, got 'sed'",
        ),
        ("prompts.jsonl", b'{"prompt": "a cat", "seed": 1.5}\n', "line 1: expected seed to be a whole number"),
        ("prompts.jsonl", b'{"prompt": "a cat", "seed": true}\n', "line 1: expected seed to be a whole number"),
        ("prompts.jsonl", b'{"prompt": "a cat", "seed": -1}\n', "line 1: expected seed to be a whole number"),
        (
            "prompts.jsonl",
            b'{"prompt": "a cat", "seed": 4294967295}\n{"prompt": "a cat", "seed": 4294967296}\n',
            "line 2: expected seed to be a whole number from 0 to 4294967295, got 4294967296",
        ),
        ("prompts.jsonl", b'{"prompt": " "}\n', "line 1 to have at least one word"),
        ("prompts.jsonl", b'{"prompt": "\\ud800"}\n', "line 1 to be UTF-8"),
        ("prompts.jsonl", b"[" * 100_000, "line 1: expected a JSON object"),
    ],
)
def test_bad_prompts_files(run: Run, loads: list[Any], tmp_path: Path, name: str, content: bytes, pattern: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_error(run("generate", *FOX, "--prompts", tmp_path / name, "--output", tmp_path / "out"), pattern)
    assert loads == []
    assert not (tmp_path / "out").exists()


def test_prompts_files(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes("\ufeffa cat\r\n\r\n  a dög \u2028 here\n".encode())
    assert inputs.read_prompts(str(text)) == [inputs.Prompt("a cat"), inputs.Prompt("a dög \u2028 here")]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a cat", "seed": 7}\n\n{"prompt": "a dog\\nhere"}\n')
    assert inputs.read_prompts(str(lines)) == [inputs.Prompt("a cat", 7), inputs.Prompt("a dog\nhere")]


@pytest.mark.parametrize(("content", "seed"), [(b"a cat\n", None), (b'{"prompt": "a cat", "seed": 3}\n', 3)])
def test_prompts_on_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes, seed: int | None) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert inputs.read_prompts("-") == [inputs.Prompt("a cat", seed)]


def test_ten_thousand_prompts(run: Run, random_mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a cat {number}\n" for number in range(10_000)))
    image = Image.new("RGB", (8, 8), "red")

    def generate(model: Any, style: Any, prompts: list[str], seeds: list[int], **_: Any) -> Any:
        for prompt, seed in zip(prompts, seeds, strict=True):
            yield Sample(prompt, seed, torch.zeros(1, 4, 8, 8), image)

    monkeypatch.setattr(drawing, "generate", generate)
    out = tmp_path / "out"
    code, output, _ = run("generate", *FOX, "--prompts", file, "--output", out)
    assert code == 0
    assert output.startswith("10000 new images")
    assert (out / "0000-a-cat-0.png").is_file()
    assert read_texts(out / "9999-a-cat-9999.png")["seed"] == "10000"
    assert max(read_image(out / "sheet.png").size) < 10_000


def test_several_prompts_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a rocket", "seed": 7}\n')
    files = ["--prompts", tmp_path / "a.txt", "--prompts", tmp_path / "b.jsonl"]
    asked: list[Any] = []

    def generate(output: Path, *, prompts: list[inputs.Prompt], **_: Any) -> None:
        asked.extend(prompts)

    monkeypatch.setattr("style_aligned.cli.run.generate", generate)
    assert run("generate", *FOX, "--prompt", "a fox", *files, "--output", tmp_path / "out")[0] == 0
    assert asked == [
        inputs.Prompt("a fox"),
        inputs.Prompt("a cat"),
        inputs.Prompt("a dog"),
        inputs.Prompt("a rocket", 7),
    ]


def test_warnings_about_prompts(run: Run, tmp_path: Path) -> None:
    long = "a cat " * 100
    code, _, error = run("generate", *FOX, "--prompt", "a dragon, neon sign", "--prompt", long, "--output", tmp_path)
    assert code == 0
    assert "warning: the embedded model does not know 'dragon': `style-aligned concepts` lists" in error
    assert "warning: 1 prompt is longer than 30 words" in error
    assert all(line.startswith("style-aligned: warning: ") for line in error.splitlines())
