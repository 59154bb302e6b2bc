"""StyleAligned for Refiners: sets of images in the style of one reference, without training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from style_aligned import moved

if TYPE_CHECKING:
    from style_aligned.adapter.adapter import StyleAlignedAdapter
    from style_aligned.adapter.layers import AdaIn, GetReferences, ScaleReferences, ShareReferences, StyleAligned
    from style_aligned.adapter.reference_bank import ReferenceBank
    from style_aligned.models.checkpoints.load import load_model
    from style_aligned.sampling.generation import generate
    from style_aligned.sampling.samples import Sample, Samples
    from style_aligned.styles.file import StyleError
    from style_aligned.styles.style import Style

    __version__: str

__all__ = [
    "AdaIn",
    "GetReferences",
    "ReferenceBank",
    "Sample",
    "Samples",
    "ScaleReferences",
    "ShareReferences",
    "Style",
    "StyleAligned",
    "StyleAlignedAdapter",
    "StyleError",
    "__version__",
    "generate",
    "load_model",
]

_MODULES = {
    "AdaIn": "adapter",
    "GetReferences": "adapter",
    "ReferenceBank": "adapter",
    "Sample": "sampling",
    "Samples": "sampling",
    "ScaleReferences": "adapter",
    "ShareReferences": "adapter",
    "Style": "styles",
    "StyleAligned": "adapter",
    "StyleAlignedAdapter": "adapter",
    "StyleError": "styles",
    "generate": "sampling",
    "load_model": "models.checkpoints",
}


moved.install()


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: PyTorch takes seconds, and `style-aligned --help` does without it."""
    if name == "__version__":
        from style_aligned.files import versions

        return versions()["style-aligned"]
    if name in moved.NAMES:
        return moved.get(name)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
