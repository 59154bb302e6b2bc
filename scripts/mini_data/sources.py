"""The artwork: which packages, how they are fetched and checked, and how one drawing is taken out of them."""

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import resvg_py
from PIL import Image, ImageDraw, ImageFont

LINE_WEIGHTS = {300: "Light", 400: "Regular", 500: "Medium", 600: "SemiBold", 700: "Bold"}
DRAWING_SIZE = 640
"""Side in pixels at which vector drawings are rasterised: above the canvas they are placed on, so never enlarged."""


@dataclass(frozen=True)
class Package:
    """One npm package at one version, with the SHA-256 of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file name under which `npm pack` saves it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {
    "noto": Package("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": Package(
        "@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"
    ),
    "fluent-flat": Package(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    "fluent-3d": Package(
        "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
    ),
    "noto-line": Package(
        "@expo-google-fonts/noto-emoji", "0.4.7", "6a25fd5a4da5bb34bbc2d300531bbf32de86afd866e119314d7e358f61a6104d"
    ),
}
"""Every foundry's package. `noto-line` is the line font; the others are colour drawings."""


class SourceError(RuntimeError):
    """The artwork cannot be had, or is not what was pinned."""


def fetch(*, package: Package, folder: Path) -> Path:
    """Get a package's archive, from the folder if it is there already, else from the npm registry.

    Args:
        package: What to get.
        folder: Where archives are kept.

    Returns:
        The archive's path.

    Raises:
        SourceError: If npm is missing or fails, or if the archive is not the pinned one.
    """
    archive = folder / package.archive
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = ["npm", "pack", "--silent", "--pack-destination", temporary, f"{package.name}@{package.version}"]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise SourceError("npm was not found: it is needed to fetch the artwork") from error
            except subprocess.CalledProcessError as error:
                raise SourceError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from error
            (Path(temporary) / package.archive).replace(archive)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SourceError(f"{archive} has SHA-256 {found}, expected {package.sha256}: delete it and run again")
    return archive


def fetch_all(folder: Path) -> None:
    """Get and check every package that the data set needs."""
    for package in PACKAGES.values():
        fetch(package=package, folder=folder)


class Artwork:
    """The drawings of all foundries, read from archives that `fetch_all` has got.

    Args:
        folder: Where the archives are.
    """

    def __init__(self, folder: Path) -> None:
        self.archives = {foundry: folder / package.archive for foundry, package in PACKAGES.items()}
        self.icons = {
            foundry: cast(dict[str, Any], json.loads(self._read(foundry, "icons.json")))
            for foundry in ("noto", "noto-v1", "fluent-flat")
        }
        self.names = {
            foundry: cast(dict[str, str], json.loads(self._read(foundry, "chars.json")))
            for foundry in ("noto", "fluent-flat")
        }
        self.names["noto-v1"] = self.names["noto"]  # that package has no table of its own; the names are the same
        self.fonts: dict[int, ImageFont.FreeTypeFont] = {}
        with tarfile.open(self.archives["fluent-3d"]) as archive:
            self.renders = {
                Path(member.name).stem: cast(Any, archive.extractfile(member)).read()
                for member in archive
                if member.isfile() and member.name.endswith(".webp")
            }

    def _read(self, foundry: str, member: str) -> bytes:
        with tarfile.open(self.archives[foundry]) as archive:
            content = archive.extractfile(f"package/{member}")
            assert content is not None, member
            return content.read()

    def drawing(self, *, code: str, foundry: str, weight: int = 400) -> Image.Image:
        """One drawing, as RGBA with straight alpha.

        Args:
            code: The concept's Unicode code point in hexadecimal, "1f98a" say.
            foundry: A key of `PACKAGES`.
            weight: Of the line font, 300 to 700. The other foundries ignore it.

        Returns:
            The drawing: at most `DRAWING_SIZE` square, line drawings black on transparent.

        Raises:
            SourceError: If the foundry did not draw that concept.
        """
        if foundry == "noto-line":
            return self._line(code=code, weight=weight)
        if foundry == "fluent-3d":
            for stem in (code, f"{code}-fe0f"):
                if stem in self.renders:
                    return Image.open(io.BytesIO(self.renders[stem])).convert("RGBA")
            raise SourceError(f"no 3D render of {code}")
        return self._vector(code=code, foundry=foundry)

    def _line(self, *, code: str, weight: int) -> Image.Image:
        if weight not in self.fonts:
            name = LINE_WEIGHTS[weight]
            content = self._read("noto-line", f"{weight}{name}/NotoEmoji_{weight}{name}.ttf")
            self.fonts[weight] = ImageFont.truetype(io.BytesIO(content), size=DRAWING_SIZE * 3 // 4)
        image = Image.new("RGBA", (DRAWING_SIZE, DRAWING_SIZE))
        middle = (DRAWING_SIZE // 2, DRAWING_SIZE // 2)
        ImageDraw.Draw(image).text(middle, chr(int(code, 16)), font=self.fonts[weight], fill="black", anchor="mm")
        return image

    def _vector(self, *, code: str, foundry: str) -> Image.Image:
        table = self.icons[foundry]
        name = self.names[foundry].get(code)
        if name is None:
            raise SourceError(f"no {foundry} drawing of {code}")
        if name not in table["icons"]:
            alias = table.get("aliases", {}).get(name)
            if alias is None:
                raise SourceError(f"no {foundry} drawing of {code} ({name})")
            name = alias["parent"]
        icon = table["icons"][name]
        width, height = (icon.get(side, table.get(side, 16)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )
        content = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWING_SIZE, height=DRAWING_SIZE, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(content))).convert("RGBA")
