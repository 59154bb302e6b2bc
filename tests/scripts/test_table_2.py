import json
import re
from pathlib import Path

import pytest

from scripts.table_2 import PROMPTS, main, read_prompts
from style_aligned.evaluation.folders import find_sets
from style_aligned.evaluation.sets import SETTINGS
from style_aligned.files import read_texts
from style_aligned.models.mini import Mini
from tests.evaluation.tiny import make_clip, make_dino


def test_prompts_are_as_many_as_the_papers() -> None:
    sets = read_prompts(PROMPTS, seed=0)
    assert len({one.style for one in sets}) == 100
    assert all(len(set(one.concepts)) == 4 for one in sets)
    assert sets[0].prompts(SETTINGS[0])[0] == "a guitar in papercut art style"
    assert len({seed for one in sets for seed in one.seeds}) == 400


def test_bad_prompts_are_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"style": "in ink", "objects": ["a cat"]}\n{"style": "in ink"}\n')
    with pytest.raises(SystemExit, match=r"prompts\.jsonl, line 2: expected a JSON object such as"):
        read_prompts(tmp_path / "prompts.jsonl", seed=0)


def test_table_end_to_end(
    random_mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_model(name: str, **_: object) -> Mini:
        assert name == "mini"
        return random_mini

    monkeypatch.setattr("scripts.table_2.load_model", load_model)
    output = tmp_path / "table"
    options = ["--sets", "2", "--steps", "1", "--output", str(output), "--device", "cpu"]
    options += ["--clip", str(make_clip(tmp_path / "clip")), "--dino", str(make_dino(tmp_path / "dino"))]
    main(options)
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["StyleAligned", "without AdaIN", "full attention sharing", "unaligned"]
    assert [(row[2], row[4]) for row in rows[2:5]] == [("0.287", "0.51"), ("0.289", "0.428"), ("0.28", "0.55")]
    assert all(re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", row[3]) for row in rows[2:])
    assert (output / "table-2.md").read_text() in printed
    figures = json.loads((output / "table-2.json").read_text())
    assert [group["images"] for group in figures["groups"]] == [8] * 4

    # the same sets for all variants, each image with its prompt
    sets = {name: find_sets(output / name) for name in ("stylealigned", "unaligned")}
    assert [one.name for one in sets["stylealigned"]] == [one.name for one in sets["unaligned"]]
    first = sets["unaligned"][0]
    for path, thing in zip(first.images, first.objects, strict=True):
        assert thing is not None
        assert thing in read_texts(path)["prompt"]

    # what is there stays, what is missing is drawn again, as it was
    lost = first.images[0]
    content = lost.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    lost.unlink()
    main(options)
    assert lost.read_bytes() == content
    drawn = {path.parent for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert drawn == {lost.parent, output}  # the set of that image, and the plot
