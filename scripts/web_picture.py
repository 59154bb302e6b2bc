"""Take the picture of the page in the browser: `python -m scripts.web_picture --output docs/web.jpg`.

The command line draws a set with the embedded model into a temporary folder, each image with and without the style, and
serves the page for it. Chromium opens the set and one of its images.
"""

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from style_aligned.cli import main as style_aligned

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SET = "neon"
REFERENCE = "a fox, neon sign"
TARGETS = ("a rocket", "an umbrella", "a cactus", "a guitar", "a key", "a crown", "a castle", "a snowflake")
SHOWN = "a cactus"
SEED = 5
SEEN = "[...document.images].every(image => image.complete || image.getBoundingClientRect().top > innerHeight)"
TIMEOUT = 60_000  # milliseconds


@contextmanager
def served(folder: Path) -> Generator[str, None, None]:
    """Serve the page for a folder, and return its address."""
    command = [sys.executable, "-m", "style_aligned", "web", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address, separator, _ = process.stdout.readline().partition(": the page for ")
            if not separator:
                raise RuntimeError(f"expected the page to be served, got {address!r}: its error is above")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def take_picture(page: Page) -> Image.Image:
    """Open an image of the set that is open, and return what the page looks like then."""
    page.get_by_role("button", name=SHOWN).click()
    page.get_by_label("How much is shown without the style").wait_for()
    page.mouse.move(0, 0)
    page.wait_for_function(SEEN)
    return Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.web_picture", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/web.jpg"))
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    given = parser.parse_args(arguments)
    chromium = next((found for name in CHROMIUM if (found := shutil.which(name)) is not None), None)
    if chromium is None:
        parser.error(f"expected one of {', '.join(CHROMIUM)}, got none: apt-get install chromium")
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has no sandbox
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        style = REFERENCE.partition(",")[2]
        settings = ["--suffix", f",{style}", "--seed", str(SEED), "--compare", "--device", "cpu"]
        if style_aligned(["generate", REFERENCE, *TARGETS, *settings, "--output", str(folder / SET)]):
            sys.exit(2)
        with served(folder) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=options)
            page = browser.new_page(viewport={"width": given.width, "height": given.height})
            page.set_default_timeout(TIMEOUT)
            page.goto(f"{address}?set={SET}")
            picture = take_picture(page)
            browser.close()
    picture.save(given.output, quality=88, optimize=True)


if __name__ == "__main__":
    main()
