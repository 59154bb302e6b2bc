"""The page in a real browser, from a reference to a zip file."""

import json
import re
import zipfile
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from style_aligned.files import read_texts
from style_aligned.sets.changes import rename_image
from style_aligned.sets.image_set import open_set, read_image_set
from style_aligned.styles.style import Style
from tests.web.conftest import Served, until

pytestmark = pytest.mark.browser

MANY = 40  # images: more than are drawn before the test is done with them
THERE = '.card[data-state="there"]'


def fill(page: Page, reference: str, prompts: str, *, name: str = "") -> None:
    """Fill in the form for a new set of small images, which are drawn one at a time."""
    page.get_by_label("Reference").fill(reference)
    page.get_by_label("Prompts").fill(prompts)
    if not page.get_by_label("Steps of the solver").is_visible():
        page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Steps of the solver").fill("2")
    page.get_by_label("Width").fill("64")
    page.get_by_label("Images at a time").fill("1")
    page.get_by_label("Name of the set").fill(name)


def draw(page: Page, reference: str, prompts: str, *, name: str = "") -> None:
    fill(page, reference, prompts, name=name)
    page.get_by_role("button", name="Draw the set").click()


def test_from_a_reference_to_a_zip_file(page: Page, served: Served, tmp_path: Path) -> None:
    draw(page, "a fox, neon sign", 'a rocket, neon sign\n\n# not drawn\na <b>cat</b> & "dog", neon sign\n')
    expect(page.locator(THERE)).to_have_count(2)
    expect(page.locator(".card .prompt").nth(1)).to_have_text('a <b>cat</b> & "dog", neon sign')
    expect(page).to_have_url(re.compile("set=a-fox-neon-sign"))
    folder = served.folder / "a-fox-neon-sign"
    assert [image.prompt for image in read_image_set(folder).state.current] == [
        "a rocket, neon sign", 'a <b>cat</b> & "dog", neon sign',
    ]  # fmt: skip

    # add
    expect(page.get_by_label("Prompts")).to_have_value("")
    page.get_by_label("Prompts").fill("an umbrella, neon sign")
    page.get_by_role("button", name="Add to the set").click()
    expect(page.locator(THERE)).to_have_count(3)

    # compare
    page.locator(THERE).first.click()
    expect(page.locator(THERE).first).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Compare").click()
    slider = page.get_by_label("How much is shown without the style")
    slider.wait_for()
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".compare").evaluate("element => element.style.getPropertyValue('--at')") == "0%"
    twin = read_image_set(folder).state.images[1].drawing.unaligned
    assert json.loads(read_texts(folder / twin)["settings"])["aligned"] is False

    # reroll, and the earlier drawing again
    page.get_by_role("button", name="Reroll").click()
    page.get_by_role("button", name="Bring back the drawing with seed 1").click()
    page.get_by_role("button", name="Bring back the drawing with seed 4").wait_for()
    until(lambda: read_image_set(folder).state.images[1].drawing.seed == 1)

    # rename
    page.get_by_label("Name", exact=True).fill("the rocket")
    page.get_by_role("button", name="Rename").click()
    expect(page.locator(".facts")).to_contain_text("the rocket.png")
    assert (folder / "the rocket.png").is_file()

    # copy the settings
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy settings").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["prompt"], copied["seed"], copied["steps"]) == ("a rocket, neon sign", 1, 2)

    # remove, and bring back
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(THERE)).to_have_count(2)
    page.get_by_text("1 removed").click()
    page.get_by_role("button", name="Bring back a rocket, neon sign").click()
    expect(page.locator(THERE)).to_have_count(3)

    # take it away
    with page.expect_download() as sheet:
        page.get_by_role("link", name="Contact sheet").click()
    assert sheet.value.suggested_filename == "a-fox-neon-sign-sheet.png"
    sheet.value.save_as(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 200
    with page.expect_download() as archive:
        page.get_by_role("link", name="Zip").click()
    archive.value.save_as(tmp_path / "set.zip")
    with zipfile.ZipFile(tmp_path / "set.zip") as opened:
        assert opened.testzip() is None
        assert sorted(opened.namelist()) == [
            "a-fox-neon-sign/b-cat-b-dog-neon-sign.png",
            "a-fox-neon-sign/fox-neon-sign.png",
            "a-fox-neon-sign/sheet.png",
            "a-fox-neon-sign/the rocket.png",
            "a-fox-neon-sign/umbrella-neon-sign.png",
        ]
        assert opened.read("a-fox-neon-sign/the rocket.png") == (folder / "the rocket.png").read_bytes()


def test_explore_and_pick(page: Page, served: Served) -> None:
    fill(page, "a key, sticker", "a gem, sticker", name="gems")
    page.get_by_role("button", name="Explore").click()
    expect(page.locator("[data-style]")).to_have_count(6)
    page.get_by_role("button", name="Take candidate 3 as the reference").click()
    expect(page.get_by_label("Style", exact=True)).to_have_value("a-key-sticker-looks/3")
    page.get_by_role("button", name="Draw the set").click()
    expect(page.locator(THERE)).to_have_count(1)
    state = read_image_set(served.folder / "gems").state
    assert (state.reference.prompt, state.reference.drawing.seed) == ("a key, sticker", 2)
    own, candidate = served.folder / "gems/style.safetensors", served.folder / "a-key-sticker-looks/3.safetensors"
    assert own.read_bytes() == candidate.read_bytes()


def test_a_dropped_picture_is_the_reference(page: Page, served: Served, tmp_path: Path) -> None:
    wrong, castle = tmp_path / "wrong.png", tmp_path / "castle.png"
    wrong.write_text("no picture")
    Image.linear_gradient("L").resize((96, 64)).save(castle)
    fill(page, "", "a cat, ink")
    page.get_by_role("tab", name="Picture").click()
    page.get_by_role("button", name="Draw the set").click()
    expect(page.get_by_text("expected a picture, got none: drop one, or write a prompt")).to_be_visible()
    page.locator("#picture input[type=file]").set_input_files(wrong)
    expect(page.get_by_text("expected the file to be a picture, got a file that is none")).to_be_visible()
    page.get_by_role("button", name="Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.locator("#picture input[type=file]").set_input_files(castle)
    expect(page.locator("#picture-view img")).to_be_visible()
    page.get_by_label("What it shows").fill("a castle, ink")
    page.get_by_role("button", name="Draw the set").click()
    expect(page.locator(THERE)).to_have_count(1)
    expect(page.locator("#job")).to_contain_text("the picture: cropped to its middle (67% of it)")
    style = Style.load(served.folder / "a-castle-ink/style.safetensors")
    assert (style.prompt, style.method, style.size) == ("a castle, ink", "noise", (64, 64))


def test_cancel_keeps_what_is_done_and_the_rest_is_drawn_later(page: Page, served: Served) -> None:
    draw(page, "a fox, ink", "\n".join(f"a cat {number}" for number in range(MANY)), name="cancelled")
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator(THERE).nth(1)).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job")).to_contain_text("Cancelled. What was done is kept.")
    drawn = page.locator(THERE).count()
    assert 2 <= drawn < MANY
    expect(page.locator('.card[data-state="missing"]')).to_have_count(MANY - drawn)
    image_set = read_image_set(served.folder / "cancelled")
    # the last one may be on the disk, but not in the records yet
    files = {image.id: image_set.path(image) for image in image_set.state.current}
    kept = {number: path.read_bytes() for number, path in files.items() if path.is_file()}
    assert len(kept) == drawn

    page.get_by_role("button", name="Draw what is missing").click()
    expect(page.locator(THERE).nth(drawn)).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    image_set = read_image_set(served.folder / "cancelled")
    assert all(image_set.path(image_set.state.images[number]).read_bytes() == own for number, own in kept.items())


def test_a_reload_in_the_middle_finds_the_drawing_again(page: Page) -> None:
    draw(page, "a fox, ink", "\n".join(f"a dog {number}" for number in range(MANY)), name="reloaded")
    expect(page.locator(THERE).first).to_be_visible()
    page.reload()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator(".card")).to_have_count(MANY)
    expect(page.locator(THERE).nth(2)).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("progressbar")).to_be_hidden()


def test_two_tabs_queue_and_keep_apart(page: Page, served: Served) -> None:
    draw(page, "a fox, ink", "\n".join(f"a bird {number}" for number in range(MANY)), name="first")
    expect(page.get_by_role("progressbar")).to_be_visible()
    other = page.context.new_page()
    other.goto(served.url)
    draw(other, "a fox, ink", "a horse", name="second")
    expect(other.locator("#job")).to_contain_text("Waiting: drawing 1 image (1 before it)")
    expect(page.locator(".card")).to_have_count(MANY)
    page.get_by_role("button", name="Cancel").click()
    expect(other.locator(THERE)).to_have_count(1)
    assert [image.prompt for image in read_image_set(served.folder / "second").state.current] == ["a horse"]
    assert len(read_image_set(served.folder / "first").state.current) == MANY

    # the same set in both
    other.get_by_label("Prompts").fill("a cow")
    page.goto(f"{served.url}?set=second")
    expect(page.locator(".card")).to_have_count(1)
    other.get_by_role("button", name="Add to the set").click()
    expect(page.locator(THERE)).to_have_count(2)


def test_what_a_command_does_shows_up(page: Page, served: Served) -> None:
    draw(page, "a fox, ink", "a snail", name="shared")
    expect(page.locator(THERE)).to_have_count(1)
    with open_set(served.folder / "shared", wait=True) as image_set:
        rename_image(image_set, image_set.state.images[1], "slow")
    page.locator(THERE).click()
    expect(page.locator(".facts")).to_contain_text("slow.png")


def test_a_wrong_file_and_wrong_settings(page: Page, served: Served, tmp_path: Path) -> None:
    wrong = tmp_path / "style.safetensors"
    wrong.write_bytes(b"a picture, or so")
    before = sorted(served.folder.iterdir()) if served.folder.exists() else []
    page.get_by_role("tab", name="Earlier style").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a style file").click()
    chooser.value.set_files(wrong)
    expect(page.get_by_text("expected a style file of style-aligned, got another one")).to_be_visible()
    page.get_by_role("tab", name="Prompt").click()
    page.get_by_role("button", name="Draw the set").click()
    expect(page.get_by_text("expected at least one prompt to draw, a line each, got none")).to_be_visible()
    fill(page, "a fox", "a cat", name="../outside")
    page.get_by_role("button", name="Draw the set").click()
    expect(page.get_by_text("expected the set's name to be a file's name")).to_be_visible()
    page.get_by_label("Name of the set").fill("inside")
    page.get_by_label("Steps of the solver").fill("many")
    page.get_by_role("button", name="Draw the set").click()
    expect(page.get_by_text("expected steps to be a whole number, got 'many'")).to_be_visible()
    assert (sorted(served.folder.iterdir()) if served.folder.exists() else []) == before


def test_a_style_file_of_somebody_else(page: Page, served: Served, tmp_path: Path) -> None:
    draw(page, "a tree, ink", "a house, ink", name="forest")
    expect(page.locator(THERE)).to_have_count(1)
    (served.folder / "forest/style.safetensors").rename(tmp_path / "..trees.safetensors")
    page.get_by_role("button", name="New set", exact=True).click()
    page.get_by_role("tab", name="Earlier style").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a style file").click()
    chooser.value.set_files(tmp_path / "..trees.safetensors")
    expect(page.get_by_label("Style", exact=True)).to_have_value("a-tree-ink")
    assert (served.folder / "a-tree-ink.safetensors").read_bytes() == (tmp_path / "..trees.safetensors").read_bytes()


@pytest.mark.parametrize("width", [1280, 390])
def test_keyboard_and_labels_are_usable(browser: Browser, served: Served, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(served.url)
    draw(page, "a fox, ink", "a cat\na dog", name=f"usable-{width}")
    expect(page.locator(THERE)).to_have_count(2)
    page.locator(THERE).first.focus()
    page.keyboard.press("Enter")
    page.locator(".large").wait_for()
    if width < 700:  # below the set, so the page goes there
        page.wait_for_function("document.querySelector('.large').getBoundingClientRect().top < innerHeight / 2")
    for url in (page.url, served.url):
        if url != page.url:
            page.goto(url)
            page.locator("#draw").wait_for()
        violations = Axe().run(page).response["violations"]
        serious = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"]])
            for violation in violations
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('#new').getBoundingClientRect().right") <= width
    page.close()
