"""The names of what the embedded model draws, as prompts say them."""

UNCOUNTED = frozenset(
    ("cherries", "corn", "fire", "fries", "glasses", "grapes", "headphones", "lightning", "scissors")
)  # concepts that take no article


def name_thing(concept: str) -> str:
    """Put an article before the name of a concept, where it takes one.

    Example:
        >>> [name_thing(concept) for concept in ("fox", "owl", "unicorn", "hourglass", "scissors")]
        ['a fox', 'an owl', 'a unicorn', 'an hourglass', 'scissors']
    """
    if concept in UNCOUNTED:
        return concept
    vowel = (concept[0] in "aeiou" and not concept.startswith("uni")) or concept.startswith("hour")
    return f"{'an' if vowel else 'a'} {concept}"
