"""Prompts of files and of standard input, with prefix and suffix."""

import io
import sys
from pathlib import Path

import pytest

from style_aligned.sets.prompts import Prompt, add_affixes, collect_prompts, read_prompts


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("prompts.txt", b"", "prompts.txt: expected at least one prompt, got none"),
        ("prompts.txt", b"\n \r\n\t\n", "expected at least one prompt"),
        ("prompts.txt", b"a cat\na dog\na \xff fox\n", "prompts.txt, line 3: expected UTF-8, got the byte 0xff"),
        ("prompts.txt", b"a cat\r\ra dog\r\na \xff fox\r", "prompts.txt, line 4: expected UTF-8, got the byte 0xff"),
        ("prompts.txt", b"\xef\xbb\xbfa cat\na \xfe fox\n", "prompts.txt, line 2: expected UTF-8, got the byte 0xfe"),
        ("prompts.txt", b"a cat\nzero \0 byte\n", "prompts.txt, line 2 to be a text, got one with a zero byte"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\n\n{"prompt": \n', "prompts.jsonl, line 3: expected a JSON object"),
        ("prompts.jsonl", b'{"prompt": "a cat"}\r\r{"prompt": \r', "prompts.jsonl, line 3: expected a JSON object"),
        (
            "prompts.json",
            b'[\n  "a cat",\n  "a dog"\n]\n',
            r"expected --prompts to be .txt, .csv or .jsonl, .* got .*prompts.json",
        ),
        (
            "PROMPTS.JSON",
            b'{"prompt": "a cat"}\n',
            r"expected --prompts to be .txt, .csv or .jsonl, .* got .*PROMPTS.JSON",
        ),
        ("prompts.jsonl", b'{"prompt": "a cat"}\n["a dog"]\n', "line 2: expected a JSON object"),
        ("prompts.jsonl", b'{"prompt": 3}\n', "line 1: expected a prompt, as in .*, got 3"),
        (
            "prompts.jsonl",
            b'{"prompt": "a cat", "sed": 3}\n',
            "line 1: expected no keys but prompt, seed, name, init, init_strength, init_mask, control, got 'sed'",
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
        ("prompts.txt", b"# nothing\n\n#\n", "expected at least one prompt, got none"),
        (
            "prompts.jsonl",
            b'{"prompt": "a cat", "name": "a/b"}\n',
            "expected .*line 1 to be a file's name, .* got 'a/b'",
        ),
        ("prompts.jsonl", b'{"prompt": "a cat", "name": 3}\n', "line 1: expected name to be a text, got 3"),
        (
            "prompts.csv",
            b"a cat\na dog\n",
            "expected columns among prompt, seed, name, init, init_strength, init_mask, control in line 1, got a cat",
        ),
        (
            "prompts.csv",
            b"prompt,sed\na dog,3\n",
            r"expected columns among prompt, seed, .*, init_mask, control in line 1, got prompt, sed",
        ),
        ("prompts.csv", b"prompt,seed\na cat, black,3\n", "line 2: expected 2 columns, got more: a prompt with commas"),
        ("prompts.csv", b"prompt,seed\na cat,-1\n", "line 2: expected seed to be a whole number from 0 .*, got '-1'"),
        ("prompts.csv", b"prompt,seed\n,3\n", "line 2: expected a prompt, as in .*, got None"),
        ("prompts.csv", b"prompt\n", "expected at least one prompt, got none"),
        ("prompts.csv", b"", "expected columns among prompt, seed, name, init, init_strength, init_mask"),
    ],
)
def test_bad_prompts_files(tmp_path: Path, name: str, content: bytes, pattern: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=pattern):
        read_prompts(str(tmp_path / name))


def test_prompts_files(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes("\ufeff# icons\na cat\r\n\r\n  a dög \u2028 here\n  # no\na #2 pencil\n".encode())
    assert read_prompts(str(text)) == [Prompt("a cat"), Prompt("a dög \u2028 here"), Prompt("a #2 pencil")]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a cat", "seed": 7, "name": "tom.png"}\n\n{"prompt": "a dog\\nhere"}\n')
    assert read_prompts(str(lines)) == [Prompt("a cat", 7, "tom"), Prompt("a dog\nhere")]
    table = tmp_path / "prompts.csv"
    table.write_bytes(b'\xef\xbb\xbfname, prompt ,seed\r\ntom,"a cat, ""black""",7\r\n\r\n,a dog,\r\n')
    assert read_prompts(str(table)) == [Prompt('a cat, "black"', 7, "tom"), Prompt("a dog")]


@pytest.mark.parametrize(("content", "seed"), [(b"a cat\n", None), (b'{"prompt": "a cat", "seed": 3}\n', 3)])
def test_prompts_on_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes, seed: int | None) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_prompts("-") == [Prompt("a cat", seed)]


def test_prompts_are_collected_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a rocket", "seed": 7}\n')
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert [prompt.text for prompt in collect_prompts(["a fox"], files)] == ["a fox", "a dog", "a rocket"]
    with pytest.raises(ValueError, match="expected --prompts - once at most, got it 2 times"):
        collect_prompts([], ["-", "-"])
    for text, message in (("", "a prompt to have at least one word"), ("\udcff", "to be UTF-8"), ("a\0", "zero byte")):
        with pytest.raises(ValueError, match=message):
            collect_prompts([text])


@pytest.mark.parametrize(
    ("text", "expected", "core"),
    [
        ("a key", "big a key, sticker", "a key"),
        ("a key, sticker", "big a key, sticker", "a key"),
        ("big a key", "big a key, sticker", "a key"),
        ("big a key, sticker", "big a key, sticker", "a key"),
        ("big , sticker", "big , sticker", ""),
    ],
)
def test_prefix_and_suffix_are_not_added_twice(text: str, expected: str, core: str) -> None:
    prompt = add_affixes(Prompt(text, 7, "key"), "big ", ", sticker")
    assert (prompt.text, prompt.core, prompt.seed, prompt.name) == (expected, core, 7, "key")
