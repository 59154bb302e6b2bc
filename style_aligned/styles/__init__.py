"""From a prompt or a picture to a style: the reference of a set, in a file of its own."""

from style_aligned.styles.file import StyleError
from style_aligned.styles.style import Style

__all__ = ["Style", "StyleError"]
