"""The method: StyleAligned as small stateless layers, and the adapter that puts them into a model."""

from style_aligned.adapter.adapter import StyleAlignedAdapter
from style_aligned.adapter.layers import AdaIn, GetReferences, ScaleReferences, ShareReferences, StyleAligned
from style_aligned.adapter.reference_bank import ReferenceBank
from style_aligned.adapter.residuals import reset_residuals

__all__ = [
    "AdaIn",
    "GetReferences",
    "ReferenceBank",
    "ScaleReferences",
    "ShareReferences",
    "StyleAligned",
    "StyleAlignedAdapter",
    "reset_residuals",
]
