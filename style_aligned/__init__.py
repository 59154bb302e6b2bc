"""StyleAligned for Refiners: sets of images in the style of one reference, without training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from style_aligned.adapter import StyleAlignedAdapter
    from style_aligned.bank import ReferenceBank
    from style_aligned.layers import AdaIn, GetReferences, ScaleReferences, ShareReferences, StyleAligned
    from style_aligned.reference import Reference
    from style_aligned.sampling import Sample, generate, generate_unaligned
    from style_aligned.style import Style
    from style_aligned.style_file import StyleError

__all__ = [
    "AdaIn",
    "GetReferences",
    "Reference",
    "ReferenceBank",
    "Sample",
    "ScaleReferences",
    "ShareReferences",
    "Style",
    "StyleAligned",
    "StyleAlignedAdapter",
    "StyleError",
    "generate",
    "generate_unaligned",
]

_MODULES = {
    "AdaIn": "layers",
    "GetReferences": "layers",
    "Reference": "reference",
    "ReferenceBank": "bank",
    "Sample": "sampling",
    "ScaleReferences": "layers",
    "ShareReferences": "layers",
    "Style": "style",
    "StyleAligned": "layers",
    "StyleAlignedAdapter": "adapter",
    "StyleError": "style_file",
    "generate": "sampling",
    "generate_unaligned": "sampling",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: PyTorch takes seconds, and `style-aligned --help` does without it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
