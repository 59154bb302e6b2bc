"""The words of a text: for the embedded model's tokenizer, and for the names of files."""

import re
import unicodedata

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
