"""Pages of the site that lie outside of docs/, with their links as they are there: a hook of MkDocs."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, name in PAGES.items():
        text = move_links((ROOT / path).read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Have links from docs/ to the pages outside of it lead to where they are on the site."""
    for path, name in PAGES.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    return markdown


def move_links(text: str) -> str:
    """Change the links of a page at the root to those of a page in docs/.

    Example:
        >>> move_links("[sets](docs/sets.md#seeds), [changes](CHANGELOG.md), [licences](NOTICE)")
        '[sets](sets.md#seeds), [changes](changelog.md), licences'
    """
    text = text.replace("](docs/", "](")
    for path, name in PAGES.items():
        text = text.replace(f"]({path}", f"]({name}")
    return re.sub(r"\[([^\]]+)\]\((?:NOTICE|LICENSE)\)", r"\1", text)
