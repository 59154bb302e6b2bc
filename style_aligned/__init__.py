"""StyleAligned for Refiners: sets of images in the style of one reference, without training."""

from style_aligned.adapter import StyleAlignedAdapter
from style_aligned.bank import ReferenceBank
from style_aligned.layers import AdaIn, GetReferences, ScaleReferences, StyleAligned
from style_aligned.sampling import Sample, generate, generate_unaligned
from style_aligned.style import Style, StyleError

__all__ = [
    "AdaIn",
    "GetReferences",
    "ReferenceBank",
    "Sample",
    "ScaleReferences",
    "Style",
    "StyleAligned",
    "StyleAlignedAdapter",
    "StyleError",
    "generate",
    "generate_unaligned",
]
