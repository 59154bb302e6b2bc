"""StyleAligned for Refiners: sets of images in the style of one reference, without training."""

from style_aligned.adapter import StyleAlignedAdapter
from style_aligned.layers import AdaIn, GetReferences, ScaleReferences, StyleAligned

__all__ = [
    "AdaIn",
    "GetReferences",
    "ScaleReferences",
    "StyleAligned",
    "StyleAlignedAdapter",
]
