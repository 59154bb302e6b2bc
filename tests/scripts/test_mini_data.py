import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from scripts.mini_data import prepare, sources
from scripts.mini_data.captions import caption, caption_of_sheet, vocabulary, words
from scripts.mini_data.concepts import CONCEPTS, read_table
from scripts.mini_data.painting import MARGIN, Placement, colour, contrast, edge_colours, outline, place, silhouette
from scripts.mini_data.styles import STYLES, Style

SIZE = 64


@pytest.fixture
def drawing() -> Image.Image:
    """A red ring with a blue dot, off the middle of its sheet."""
    image = Image.new("RGBA", (300, 300))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 60, 240, 220), outline="#d02020", width=30)
    draw.ellipse((120, 120, 160, 160), fill="#2030d0")
    return image


def style_named(name: str) -> Style:
    return next(style for style in STYLES if style.name == name)


# concepts and captions


def test_the_concepts_are_distinct_and_enough() -> None:
    assert 100 <= len(CONCEPTS) <= 120
    assert len({concept.code for concept in CONCEPTS}) == len(CONCEPTS)
    assert all(1 <= len(concept.name.split()) <= 2 and len(concept.synonyms) <= 3 for concept in CONCEPTS)


def test_a_name_for_two_concepts_is_refused() -> None:
    with pytest.raises(ValueError, match="'puma' names two concepts"):
        read_table("lion 1f981 puma; cat 1f408 puma")


def test_a_concept_without_code_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no code point in the concept 'lion'"):
        read_table("lion")


@pytest.mark.parametrize(
    ("entry", "phrases"),
    [
        ("owl 1f989", ["an owl"]),
        ("unicorn 1f984", ["a unicorn"]),
        ("hourglass 231b", ["an hourglass"]),
        ("scissors* 2702 shears", ["scissors", "shears"]),
        ("ice cream 1f366 soft ice, cone", ["an ice cream", "a soft ice", "a cone"]),
    ],
)
def test_articles(entry: str, phrases: list[str]) -> None:
    assert read_table(entry)[0].phrases() == phrases


def test_captions_come_in_their_shares() -> None:
    record = {"concept": "fox", "style": "neon sign"}
    rng = np.random.default_rng(0)
    counts = Counter(caption(record, rng) for _ in range(4000))
    assert counts["a fox"] / 4000 == pytest.approx(0.15, abs=0.02)
    assert counts[""] / 4000 == pytest.approx(0.10, abs=0.02)
    assert counts["a fox, neon sign"] / 4000 == pytest.approx(0.5 + 0.25 / 10, abs=0.03)
    assert {"a red fox, glowing neon", "a fox as a neon sign", "a neon sign of a fox"} <= set(counts)


def test_captions_stay_within_the_vocabulary() -> None:
    known = set(vocabulary())
    rng = np.random.default_rng(1)
    for concept in CONCEPTS:
        for style in STYLES:
            for _ in range(6):
                assert set(words(caption({"concept": concept.name, "style": style.name}, rng))) <= known
    assert vocabulary() == sorted(known)


def test_captions_of_sheets_come_in_their_shares() -> None:
    records = [{"concept": concept, "style": "neon sign"} for concept in ("fox", "owl")]
    rng = np.random.default_rng(0)
    counts = Counter(caption_of_sheet(records, rng) for _ in range(4000))
    assert set(counts) == {"a fox, an owl, neon sign", "a fox, an owl", ""}
    assert counts["a fox, an owl, neon sign"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counts["a fox, an owl"] / 4000 == pytest.approx(0.35, abs=0.03)


def test_an_unknown_concept_has_no_caption() -> None:
    with pytest.raises(KeyError, match="griffin"):
        caption({"concept": "griffin", "style": "neon sign"}, np.random.default_rng(0))


# what is held out


def test_held_out_cells_are_spread_evenly() -> None:
    held_out = prepare.HeldOut(seed=0)
    per_style = Counter(style for _, style in held_out.cells)
    per_concept = Counter(concept for concept, _ in held_out.cells)
    assert 0.035 < len(held_out.cells) / (len(CONCEPTS) * len(STYLES)) < 0.045
    assert set(per_style) == {style.name for style in STYLES}
    assert max(per_style.values()) - min(per_style.values()) <= 1
    assert max(per_concept.values()) == 1
    assert len(held_out.foundries) == 20
    assert not set(held_out.foundries) & set(per_concept)


def test_split_names_what_is_held_out() -> None:
    held_out = prepare.HeldOut(seed=0)
    concept, style = min(held_out.cells)
    assert held_out.split(concept=concept, style=style, foundry="noto") == "held_out_cell"
    concept, foundry = min(held_out.foundries.items())
    others = {"noto", "noto-v1", "fluent-flat", "fluent-3d", "noto-line"} - {foundry}
    assert held_out.split(concept=concept, style="sticker", foundry=foundry) == "held_out_foundry"
    assert {held_out.split(concept=concept, style="sticker", foundry=other) for other in others} == {"train"}


# painting


@pytest.mark.parametrize("angle", [0.0, 8.0])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.4)])
def test_a_placed_drawing_is_whole(drawing: Image.Image, angle: float, shift: tuple[float, float]) -> None:
    layer = place(drawing=drawing, placement=Placement(scale=0.8, angle=angle, shift=shift), side=200)
    rows, columns = (np.flatnonzero(layer.alpha.max(axis=axis) > 0.1) for axis in (1, 0))
    assert columns[-1] - columns[0] + 1 == pytest.approx(160, abs=3)
    least = MARGIN * 200 - 2
    assert min(rows[0], columns[0], 199 - rows[-1], 199 - columns[-1]) >= least


def test_silhouette_fills_and_outline_hollows() -> None:
    side = 200
    down, across = np.mgrid[:side, :side]
    distance = np.hypot(down - 100, across - 100)
    ring = ((distance < 80) & (distance > 74)).astype(np.float32)
    assert silhouette(ring)[100, 100] == 1
    assert silhouette(ring)[2, 2] == 0
    disc = (distance < 80).astype(np.float32)
    assert outline(disc)[100, 100] == 0
    assert outline(disc)[100, 22] > 0.9
    assert outline(ring)[100, 23] > 0.9


def test_contrast_sees_a_drawing_lost_on_its_ground(drawing: Image.Image) -> None:
    layer = place(drawing=drawing, placement=Placement(scale=0.8, angle=0, shift=(0, 0)), side=128)
    edge = edge_colours(layer)
    assert contrast(edge, colour("#d02020")) < 0.3 < 0.9 < contrast(edge, colour("#10d0c0"))


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_style_is_deterministic_and_leaves_much_to_chance(drawing: Image.Image, style: Style) -> None:
    def make(seed: int) -> tuple[prepare.Pixels, dict[str, str]]:
        return prepare.paint(drawing=drawing, style=style, size=SIZE, rng=np.random.default_rng(seed))

    picture, factors = make(0)
    again, same = make(0)
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    assert (picture == again).all()
    assert factors == same
    drawn = [make(seed) for seed in range(10)]
    assert len({tuple(sorted(factors.items())) for _, factors in drawn}) >= 7
    means = np.stack([picture.mean(axis=(0, 1)) for picture, _ in drawn])
    assert means.std(axis=0).max() > (8 if style.name == "neon sign" else 20)


def test_pixel_art_is_sixteen_hard_blocks(drawing: Image.Image) -> None:
    for seed in range(6):
        picture, _ = prepare.paint(
            drawing=drawing, style=style_named("pixel art"), size=SIZE, rng=np.random.default_rng(seed)
        )
        blocks = picture[::4, ::4]
        assert (picture == blocks.repeat(4, axis=0).repeat(4, axis=1)).all()
        assert len(np.unique(np.concatenate(list(blocks)), axis=0)) <= 7


def test_a_sticker_has_a_white_rim(drawing: Image.Image) -> None:
    style = style_named("sticker")
    layer = place(drawing=drawing, placement=Placement(scale=0.7, angle=0, shift=(0, 0)), side=256)
    picture = style.paint(layer, {"ground": "#182857", "pattern": "plain", "rim": "wide"})
    left = int(np.flatnonzero(layer.alpha[128] > 0.5)[0])
    assert (picture[128, left - 4] > 0.95).all()
    assert picture[128, 3] == pytest.approx(colour("#182857"), abs=0.02)


def test_neon_glows_in_its_hue(drawing: Image.Image) -> None:
    layer = place(drawing=drawing, placement=Placement(scale=0.7, angle=0, shift=(0, 0)), side=256)
    factors = {"ink": "#22ffd0", "second": "#22ffd0", "ground": "#0b0a12", "wall": "plain"}
    picture = style_named("neon sign").paint(layer, factors)
    left = int(np.flatnonzero(layer.alpha[128] > 0.5)[0])
    red, green, _ = picture[128, left - 6]
    assert green > max(red + 0.2, 0.3)
    assert picture[2, 2].max() < 0.3


# fetching, and the whole


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    package = sources.Package("@some/art", "1.0.0", "0" * 64)
    assert package.archive == "some-art-1.0.0.tgz"
    (tmp_path / package.archive).write_bytes(b"not it")
    with pytest.raises(sources.SourceError, match=r"some-art-1\.0\.0\.tgz has SHA-256 .*, expected 0000"):
        sources.fetch(package=package, folder=tmp_path)


def test_a_machine_without_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sources.SourceError, match="npm was not found"):
        sources.fetch(package=sources.PACKAGES["noto"], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_npm_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="E404 no such package\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(sources.SourceError, match=r"npm pack .*noto@1\.2\.9` failed: E404 no such package"):
        sources.fetch(package=sources.PACKAGES["noto"], folder=tmp_path)


@pytest.mark.parametrize(("given", "told"), [({"size": 100}, "size is 100, expected"), ({"jobs": 0}, "jobs is 0")])
def test_bad_settings_write_nothing(tmp_path: Path, given: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        prepare.prepare(output=tmp_path / "data", sources=tmp_path / "sources", **given)
    assert not list(tmp_path.iterdir())


def test_a_concept_is_painted_in_every_style(drawing: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneDrawing:
        def drawing(self, *, code: str, foundry: str, weight: int) -> Image.Image:
            asked.add((code, foundry))
            return drawing

    asked: set[tuple[str, str]] = set()
    monkeypatch.setattr(prepare, "VARIANTS", 3)
    pictures, records = prepare.paint_concept(CONCEPTS[0], artwork=OneDrawing(), size=32, seed=0)  # pyright: ignore
    assert pictures.shape == (3 * len(STYLES), 32, 32, 3)
    assert [record["style"] for record in records] == [style.name for style in STYLES for _ in range(3)]
    assert {record["concept"] for record in records} == {"fox"}
    assert all(("1f98a", record["foundry"]) in asked for record in records)
    again, _ = prepare.paint_concept(CONCEPTS[0], artwork=OneDrawing(), size=32, seed=0)  # pyright: ignore
    other, _ = prepare.paint_concept(CONCEPTS[0], artwork=OneDrawing(), size=32, seed=1)  # pyright: ignore
    assert (pictures == again).all()
    assert (pictures != other).any()


def test_every_source_is_in_the_notice() -> None:
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert {package.name for package in sources.PACKAGES.values()} == {
        "@iconify-json/noto",
        "@iconify-json/noto-v1",
        "@iconify-json/fluent-emoji-flat",
        "@lobehub/fluent-emoji-3d",
        "@expo-google-fonts/noto-emoji",
    }
    for package in sources.PACKAGES.values():
        assert f"| `{package.name}` | {package.version} |" in notice
    assert "Apache License\n                           Version 2.0" in notice
    assert "Permission is hereby granted, free of charge" in notice
    assert "SIL OPEN FONT LICENSE Version 1.1" in notice
