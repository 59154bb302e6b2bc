"""The commands for a set that is there: `add`, `reroll`, `remove`, `restore`, `rename`, `sheet`, `export`, `show`."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from style_aligned.cli.reports import propose_generate
from style_aligned.files import read_texts
from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.styles.style import Style
from tests.cli.conftest import FOX, SMALL, Run, assert_error
from tests.sets.conftest import contents, pictures


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_add_leaves_everything_else(run: Run, icons: Path) -> None:
    before = pictures(icons)
    code, output, _ = run("add", icons, "a gem", "a potion, neon sign", "--scale", "0.5")
    assert (code, output) == (0, "2 new images in icons; all together: icons/sheet.png\n")
    assert changed(before, pictures(icons)) == {"003-a-gem.png", "004-a-potion.png"}
    texts = read_texts(icons / "003-a-gem.png")
    assert texts["prompt"] == "a gem, neon sign"
    assert json.loads(texts["settings"])["options"]["scale"] == 0.5
    assert read_image_set(icons).state.images[4].drawing.options == {"scale": 0.5}
    assert run("add", icons, "a lamp", "--suffix", "", "--seed", "99")[0] == 0
    texts = read_texts(icons / "005-a-lamp.png")
    assert (texts["prompt"], texts["seed"]) == ("a lamp", "99")


def test_reroll_restore_remove_and_rename_change_one_image(run: Run, icons: Path) -> None:
    first = pictures(icons)
    code, output, _ = run("reroll", icons, "cat")
    undo = "undo: style-aligned restore icons 001-a-cat"
    assert (code, output) == (0, f"001-a-cat has seed 3; all together: icons/sheet.png\n{undo}\n")
    second = pictures(icons)
    assert changed(first, second) == {"001-a-cat.png", "replaced/001-a-cat-seed-1.png"}
    assert second["replaced/001-a-cat-seed-1.png"] == first["001-a-cat.png"]

    assert run("restore", icons, "cat")[1] == "restored: 001-a-cat; all together: icons/sheet.png\n"
    assert {name: pictures(icons)[name] for name in first} == first
    assert run("restore", icons, "cat", "--seed", "3")[0] == 0
    assert pictures(icons) == second

    code, output, _ = run("reroll", icons, "1", "dog", "--count", "2", "--json")
    told = json.loads(output)
    assert [(image["id"], image["seed"]) for image in told["drawn"]] == [(1, 4), (2, 6)]
    assert len(read_image_set(icons).state.images[1].replaced) == 3
    restores = "style-aligned restore icons 001-a-cat --seed 3 && style-aligned restore icons 002-a-dog --seed 2"
    assert told["undo"] == restores

    before = pictures(icons)
    assert run("rename", icons, "dog", "good dog")[1] == (
        "renamed: good dog; all together: icons/sheet.png\nundo: style-aligned rename icons 'good dog' 002-a-dog\n"
    )
    assert run("rename", icons, "good dog", "good-dog")[0] == 0
    assert changed(before, pictures(icons)) == {"002-a-dog.png", "good-dog.png"}
    assert run("remove", icons, "good-dog", "good-dog")[1] == (
        "removed: good-dog; all together: icons/sheet.png\nundo: style-aligned restore icons good-dog\n"
    )
    removed = contents(icons)
    assert_error(run("restore", icons, "dog", "lamp"), "no image is called 'lamp': those to restore are .*good-dog")
    assert contents(icons) == removed  # not the dog alone
    assert changed(before, pictures(icons)) == {"002-a-dog.png", "replaced/good-dog.png"}
    assert run("restore", icons, "dog")[1] == "restored: good-dog; all together: icons/sheet.png\n"
    assert pictures(icons)["good-dog.png"] == before["002-a-dog.png"]


def test_what_commands_say_undoes_them(run: Run, icons: Path) -> None:
    def undo(output: str) -> None:
        for command in output.partition("\nundo: ")[2].split(" && "):
            assert run(*shlex.split(command)[1:])[0] == 0

    first = {name: content for name, content in pictures(icons).items() if "/" not in name}
    for command in (
        ["reroll", icons, "cat", "dog"],
        ["reroll", icons, "cat", "dog", "--count", "2"],
        ["remove", icons, "cat", "2"],
        ["rename", icons, "cat", "the cat"],
    ):
        output = run(*command)[1]
        assert {name: content for name, content in pictures(icons).items() if "/" not in name} != first
        undo(output)
        assert {name: content for name, content in pictures(icons).items() if "/" not in name} == first
    (icons / "001-a-cat.png").unlink()
    assert "undo" not in run("reroll", icons, "cat")[1]  # nothing was there


def test_a_reroll_with_a_seed(run: Run, icons: Path) -> None:
    assert run("reroll", icons, "cat", "--seed", "99", "--no-share-group-norm")[0] == 0
    texts = read_texts(icons / "001-a-cat.png")
    assert texts["seed"] == "99"
    assert json.loads(texts["settings"])["options"] == {"share_group_norm": False}


def test_the_sheet_keeps_its_title_until_it_gets_another(run: Run, icons: Path) -> None:
    def sheet() -> bytes:
        return (icons / "sheet.png").read_bytes()

    first = sheet()
    assert run("sheet", icons, "--title", "Client A", "--columns", "2", "--no-settings")[1] == "icons/sheet.png\n"
    second = sheet()
    with Image.open(icons / "sheet.png") as image:
        assert image.width == 2 * 40 + 2 * 256 + 12
    assert run("sheet", icons)[0] == 0
    assert sheet() == second
    assert run("sheet", icons, "--settings", "--output", "other.png")[0] == 0
    assert sheet() == second
    assert Path("other.png").read_bytes() not in (first, second)
    Path("notes.png").write_text("mine")
    assert_error(run("sheet", icons, "--output", "notes.png"), "notes.png is no contact sheet of style-aligned")
    with open_set(icons) as image_set:
        image_set.commit_settings(sheet=type(image_set.state.sheet)())
    assert run("sheet", icons, "--json")[1] == '{\n  "sheet": "icons/sheet.png"\n}\n'
    assert sheet() == first


def test_export(run: Run, icons: Path) -> None:
    run("rename", icons, "dog", "good-dog")
    before = contents(icons)
    told = "2 images in out, without the reference (--reference writes it too)\n"
    assert run("export", icons, "--to", "out")[1] == told
    assert sorted(contents(Path("out"))) == ["cat.png", "good-dog.png"]
    assert run("export", icons, "--to", "all", "--reference")[1] == "3 images in all, with the reference\n"
    assert sorted(contents(Path("all"))) == ["cat.png", "fox.png", "good-dog.png"]
    code, _, error = run("export", icons, "--to", "all", "--reference", "--names", "number")
    assert (code, "warning: all has 3 more of an earlier export: cat.png, fox.png, good-dog.png\n" in error) == (
        0,
        True,
    )
    assert Path("all/000.png").read_bytes() == Path("all/fox.png").read_bytes()
    with Image.open("out/cat.png") as exported, Image.open(icons / "001-a-cat.png") as image:
        assert exported.tobytes() == image.tobytes()
        assert "settings" not in exported.info
    for kind in ("webp", "jpg"):
        assert run("export", icons, "--to", kind, "--names", "number", "--format", kind, "--size", "32x16")[0] == 0
        assert sorted(contents(Path(kind))) == [f"{number:03d}.{kind}" for number in (1, 2)]
        with Image.open(f"{kind}/001.{kind}") as exported:
            assert exported.size == (16, 16)
        assert run("export", icons, "--to", kind, "--names", "number", "--format", kind)[0] == 0  # its own earlier one
    assert contents(icons) == before
    Path("out/cat.png").write_bytes(before["001-a-cat.png"])
    assert_error(run("export", icons, "--to", "out"), r"out/cat\.png is no earlier export: --force replaces it")
    assert run("export", icons, "--to", "out", "--force")[0] == 0
    assert_error(run("export", icons, "--to", icons), "expected a folder for the files, got icons, which holds a set")
    Path("icons/001-a-cat.png").unlink()
    code, _, error = run("export", icons, "--to", "rest")
    assert (code, "warning: 1 missing: 001-a-cat; style-aligned add icons draws what is missing" in error) == (0, True)
    assert_error(run("export", icons, "--to", "x", "--size", "0"), "expected --size to be WIDTHxHEIGHT in pixels")
    assert_error(
        run("export", icons, "--to", "x", "--format", "gif"), "expected --format to be png, webp or jpg, got 'gif'$"
    )


def test_names_of_exports_leave_out_articles(run: Run, icons: Path) -> None:
    run("add", icons, "cat", "the gem", "an hourglass", "a", "a black cat")
    run("rename", icons, "dog", "a-team")  # as people want it
    assert run("export", icons, "--to", "out", "--size", "8")[0] == 0
    assert contents(Path("out")).keys() == {
        "a-cat.png", "cat.png", "a-team.png", "gem.png", "hourglass.png", "a.png", "black-cat.png",
    }  # fmt: skip


def test_a_set_remembers_to_compare(run: Run, icons: Path) -> None:
    assert run("add", icons, "--compare")[1] == (
        "0 new images in icons, 2 drawn without the style; all together: icons/sheet.png\n"
    )
    told = json.loads(run("add", icons, "a gem", "--json")[1])
    assert (told["new"], told["unaligned"]) == (1, 1)
    assert contents(icons / "unaligned").keys() == {"001-a-cat.png", "002-a-dog.png", "003-a-gem.png"}
    assert run("add", icons, "an owl", "--no-compare")[1].startswith("1 new image in icons; all together")
    assert run("add", icons, "a bat")[1].startswith("1 new image in icons; all together")
    assert run("generate", *FOX, "a cat", "--suffix", ", neon sign", "--compare", "--output", icons)[1].startswith(
        "0 new images in icons (1 was there already), 2 drawn without the style; "
    )


def test_show_a_set(run: Run, icons: Path) -> None:
    run("reroll", icons, "cat")
    run("remove", icons, "dog")
    run("add", icons, "a gem")
    (icons / "003-a-gem.png").unlink()
    code, output, _ = run("show", icons)
    assert code == 0
    lines = output.splitlines()
    assert "reference:        a fox, neon sign" in lines
    assert lines[-4:] == [
        "id  name       seed  prompt",
        " 1  001-a-cat     3  a cat, neon sign  (1 replaced)",
        " 3  003-a-gem     4  a gem, neon sign  (missing)",
        " 2  002-a-dog     2  a dog, neon sign  (removed)",
    ]
    told = json.loads(run("show", icons, "--json")[1])
    assert told["settings"]["steps"] == 2
    assert [(image["id"], image["state"]) for image in told["images"]] == [(1, "there"), (3, "missing")]
    assert told["images"][0]["replaced"] == [{"seed": 1, "file": "icons/replaced/001-a-cat-seed-1.png"}]
    assert [image["name"] for image in told["removed"]] == ["002-a-dog"]


def test_explore_and_show_candidates(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["explore", "a fox, neon sign", *SMALL, "--seed", "5", "--output", "looks"]
    code, output, _ = run(*command, "--count", "2")
    assert code == 0
    assert output == (
        'looks/sheet.png: next, style-aligned generate looks/1 "…" --suffix ", neon sign" --output FOLDER,'
        " or any other than 1\n"
    )
    before = contents(Path("looks"))
    assert before.keys() == {"1.png", "1.safetensors", "2.png", "2.safetensors", "sheet.png"}
    assert [Style.load(f"looks/{number}.safetensors").seed for number in (1, 2)] == [5, 6]
    assert before["1.png"] != before["2.png"]
    assert json.loads(run(*command, "--count", "3", "--json")[1])["styles"] == [
        f"looks/{number}.safetensors" for number in (1, 2, 3)
    ]
    assert changed(before, contents(Path("looks"))) == {"3.png", "3.safetensors", "sheet.png"}
    assert run("show", "looks")[1].splitlines() == [
        "3 candidates of 'a fox, neon sign'", "looks/1  seed 5", "looks/2  seed 6", "looks/3  seed 7",
    ]  # fmt: skip
    for changes in (["--seed", "6"], []):
        other = ["explore", "a fox, ink", *SMALL, "--output", "looks"] if not changes else [*command, *changes]
        assert_error(run(*other), "looks holds candidates of 'a fox, neon sign' from seed 5: take another folder")


def test_style_and_show_style(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, _ = run("style", "a fox", *SMALL, "--seed", "3", "--output", "new/fox.safetensors")
    assert (code, output) == (
        0,
        'new/fox.safetensors: next, style-aligned generate new/fox.safetensors "…" --output FOLDER\n',
    )
    code, output, _ = run("show", "new/fox")
    assert "reference:        a fox\nreference seed:   3\n" in output
    told = json.loads(run("show", "new/fox.safetensors", "--json", "--preview", "fox.png")[1])
    assert (told["kind"], told["steps"], told["size"], told["preview"]) == ("style", 2, "64x64", "fox.png")
    with Image.open("fox.png") as preview:
        assert preview.size == (64, 64)
    assert_error(run("show", "new/fox", "--preview", "fox.png"), "fox.png exists already: --force replaces it")
    result = run("show", "new/fox", "--preview", "new/fox.safetensors", "--force")
    assert_error(result, "expected --preview to be another file than the style file")
    again = ["style", "a cat", *SMALL, "--output", "new/fox.safetensors"]
    assert_error(run(*again), r"new/fox\.safetensors exists already: --force replaces it")
    assert run(*again, "--force")[0] == 0
    assert_error(
        run("style", "a cat", "--output", "fox.png"), "expected --output to end in .safetensors, as style files do"
    )


@pytest.mark.parametrize(
    ("prompt", "suffix"),
    [
        ("a fox", None),
        ("a fox, ", None),
        ("a fox, pixel art, 8 bit", ", pixel art, 8 bit"),
        ('a fox, $HOME "sign"', ', $HOME "sign"'),
    ],
)
def test_the_next_command_has_the_suffix_of_the_prompt(prompt: str, suffix: str | None) -> None:
    words = shlex.split(propose_generate(Path("my looks/1"), prompt))
    assert words[:4] == ["style-aligned", "generate", "my looks/1", "…"]
    assert words[4:] == [*([] if suffix is None else ["--suffix", suffix]), "--output", "FOLDER"]
