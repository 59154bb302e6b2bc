"""The site: built strictly, with nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.site_pages import move_links

ROOT = Path(__file__).parents[2]


def test_links_of_pages_outside_of_docs() -> None:
    text = "[a](docs/sets.md#seeds) ![b](docs/demo.png) [c](CHANGELOG.md) [d](NOTICE) [e](https://x.org/docs/a.md)"
    expected = "[a](sets.md#seeds) ![b](demo.png) [c](changelog.md) d [e](https://x.org/docs/a.md)"
    assert move_links(text) == expected


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "getting-started.html", "api.html", "command-line.html", "changelog.html"} <= pages.keys()
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|icon|preload)[^>]* href=\"?(https?:[^\" >]+)", text)
        assert loaded == [], name
    assert "A style from a prompt costs nothing to make" in pages["api.html"].read_text(encoding="utf-8")
