"""The words of a text, for the embedded model's tokenizer and the names of files, and values in words, for errors."""

import re
import unicodedata
from typing import Any

ACCENTS = re.compile(r"(?<=[a-z0-9])[\u0300-\u036f\ufe00-\ufe0f]+")


def words(text: str) -> list[str]:
    """Split a text into its words, of any script: lower case, without punctuation, Latin letters without accents.

    Example:
        >>> words("A crème-brûlée, 3D!")
        ['a', 'creme', 'brulee', '3d']
    """
    folded = ACCENTS.sub("", unicodedata.normalize("NFKD", text).lower())
    folded = unicodedata.normalize("NFC", folded)  # other scripts stay as they were written, for who reads them
    # in some of them vowels are marks, which do not end a word
    marks = {"Mc", "Mn"}
    kinds = "".join("w" if c.isalnum() else "m" if unicodedata.category(c) in marks else " " for c in folded)
    return [folded[match.start() : match.end()] for match in re.finditer("w[wm]*", kinds)]


def is_url(text: str) -> bool:
    """Return whether a text is an address on the internet, from where nothing is fetched."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) is not None


def show(value: Any, length: int = 80) -> str:
    """Return what an error says of a value that was given: short, whatever the value is.

    Example:
        >>> show("a fox"), show(3), show(re.compile("a"))
        ("'a fox'", '3', 'a Pattern')
    """
    name = type(value).__name__
    if isinstance(value, str) or value is None or name in ("bool", "int", "float", "bytes", "list", "tuple", "dict"):
        try:
            text = repr(value[:length] if isinstance(value, str) else value)
        except Exception:  # of what it holds, or an integer of too many digits
            text = ""
        if 0 < len(text) <= length + 2 and "\n" not in text:
            return text
        if text and name in ("str", "int"):
            return f"{text[: length - 1]}…"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
