"""What is said of a picture: concept and style, sometimes less, in other words now and then."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .concepts import CONCEPTS
from .styles import STYLES

_concepts = {concept.name: concept for concept in CONCEPTS}
_styles = {style.name: style for style in STYLES}


def canonical(record: Mapping[str, Any]) -> str:
    """Say what a picture shows in the canonical words: "a fox, neon sign".

    Args:
        record: One of the index's records, of which "concept" and "style" are read.

    Raises:
        KeyError: If there is no such concept or style.
    """
    return f"{_concepts[record['concept']].phrases()[0]}, {_styles[record['style']].name}"


def caption(record: Mapping[str, Any], rng: np.random.Generator) -> str:
    """Say what a picture shows: "a fox, neon sign" every other time.

    Args:
        record: One of the index's records, of which "concept" and "style" are read.
        rng: Chooses among concept and style in canonical words (50%), in other words (25%), the concept alone (15%),
            and nothing (10%, for guidance).

    Returns:
        The caption, in lower case.

    Raises:
        KeyError: If there is no such concept or style.
    """
    phrases = _concepts[record["concept"]].phrases()
    style = _styles[record["style"]]
    draw = rng.random()
    if draw < 0.5:
        return canonical(record)
    if draw < 0.75:
        templates = (f"{{}}, {style.name}", *style.paraphrases)
        # the canonical words are one choice on either side, so both sides are not always unusual at once
        return templates[int(rng.integers(len(templates)))].format(phrases[int(rng.integers(len(phrases)))])
    return phrases[0] if draw < 0.9 else ""


def caption_of_sheet(records: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> str:
    """Say what a sheet of pictures of one style shows: "a fox, a car, neon sign" in half of the cases.

    Args:
        records: The records of its pictures, from left to right.
        rng: Chooses among concepts and style (50%), the concepts alone (35%), and nothing (15%).

    Returns:
        The caption, in lower case.

    Raises:
        KeyError: If there is no such concept or style.
    """
    concepts = ", ".join(_concepts[record["concept"]].phrases()[0] for record in records)
    draw = rng.random()
    if draw < 0.5:
        return f"{concepts}, {_styles[records[0]['style']].name}"
    return concepts if draw < 0.85 else ""


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def vocabulary() -> list[str]:
    """All words that any caption may contain, sorted."""
    phrases = [phrase for concept in CONCEPTS for phrase in concept.phrases()]
    templates = [template for style in STYLES for template in (style.name, *style.paraphrases)]
    return sorted({word for text in (*phrases, *templates) for word in words(text)})
