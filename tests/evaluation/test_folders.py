from pathlib import Path

import pytest
from PIL import Image

from style_aligned.evaluation.folders import find_sets, object_texts
from style_aligned.files import describe_image, describe_picture, write_png


def write_image(path: Path, prompt: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if prompt is None:
        Image.new("RGB", (8, 8), "teal").save(path)
    else:
        write_png(path, Image.new("RGB", (8, 8), "teal"), describe_image(prompt, 0, {}))
    return path


def test_a_folder_of_this_program(tmp_path: Path) -> None:
    neon = tmp_path / "neon"
    for name, prompt in (
        ("reference", "a fox, neon sign"),
        ("000-a", "a cat, neon sign"),
        ("001-b", "a dog, neon sign"),
    ):
        write_image(neon / f"{name}.png", prompt)
    for name, prompt in (("000-a", "a cat, neon sign"), ("001-b", "a dog, neon sign")):
        write_image(neon / "unaligned" / f"{name}.png", prompt)
    write_png(neon / "sheet.png", Image.new("RGB", (8, 8)), describe_picture("contact sheet"))
    write_image(neon / ".hidden" / "a.png", "a car, neon sign")
    (neon / "prompts.txt").write_text("two prompts\nof three images\n")  # what the command was given
    aligned, unaligned = find_sets(neon)
    assert (aligned.name, aligned.is_unaligned) == ("neon", False)
    assert [path.name for path in aligned.images] == ["000-a.png", "001-b.png", "reference.png"]
    assert aligned.objects == ("a cat", "a dog", "a fox")
    assert (unaligned.name, unaligned.is_unaligned) == ("unaligned", True)
    assert [path.relative_to(neon).as_posix() for path in unaligned.images] == [
        "reference.png", "unaligned/000-a.png", "unaligned/001-b.png",
    ]  # fmt: skip
    assert unaligned.objects == ("a fox", "a cat", "a dog")


def test_folders_of_another_program(tmp_path: Path) -> None:
    for name in ("image-10.JPG", "image-2.png", "image-1.webp"):
        write_image(tmp_path / "b" / "ink" / name)
    (tmp_path / "b" / "ink" / "prompts.txt").write_text("A cat. In ink.\n\nA dog. In ink.\r\nA fox. In ink.\n")
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "c").mkdir()
    first, second = find_sets(tmp_path)
    assert (first.name, first.objects) == ("a", (None,))
    assert second.name == "b/ink"
    assert [path.name for path in second.images] == ["image-1.webp", "image-2.png", "image-10.JPG"]
    assert second.objects == ("A cat", "A dog", "A fox")


def test_objects_are_told(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "objects.txt").write_text("the first\nthe second\n")
    assert find_sets(tmp_path)[0].objects == ("the first", "the second")


@pytest.mark.parametrize("name", ["prompts.txt", "objects.txt"])
def test_a_line_for_each_image(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_text("one\ntwo\n")
    with pytest.raises(
        ValueError, match=f"expected .*/{name} to have a line for each of the 1 images beside it, got 2"
    ):
        find_sets(tmp_path)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"expected .*/{name} to be UTF-8"):
        find_sets(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected images \(\.png, .*\) in .*, got none"):
        find_sets(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"expected a folder of images, got .*/file, a file"):
        find_sets(tmp_path / "file")
    with pytest.raises(ValueError, match=r"expected a folder of images, got .*/none, which is not there"):
        find_sets(tmp_path / "none")


@pytest.mark.parametrize(
    ("prompts", "objects"),
    [
        (["a fox, neon sign", "scissors, neon sign"], ["a fox", "scissors"]),
        (["a red car, neon sign", "a blue car, neon sign"], ["a red car", "a blue car"]),
        (["A toy train. in BW logo style.", "A fox. in BW logo style."], ["A toy train", "A fox"]),
        (["a cat in a papercut style", "a dog in a papercut style"], ["a cat", "a dog"]),
        (["a cat, tall, ink drawing", "a dog, small, ink drawing"], ["a cat, tall", "a dog, small"]),
        (["a fox, neon sign", "an owl", "a dog"], ["a fox, neon sign", "an owl", "a dog"]),
        (["a fox, ink", "a fox, ink"], ["a fox", "a fox"]),
        (["ink", "ink", None], ["ink", "ink", None]),
        ([], []),
    ],
)
def test_object_texts(prompts: list[str | None], objects: list[str | None]) -> None:
    assert object_texts(prompts) == objects
