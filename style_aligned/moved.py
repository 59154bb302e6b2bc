"""Names of the version before, which have moved: they work for one more release, with a warning."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "style_aligned"
MODULES = {
    "bank": "adapter.reference_bank",
    "checkpoints": "models.checkpoints",
    "denoising": "models.denoising",
    "judge": "evaluation.classifier",
    "layers": "adapter.layers",
    "metrics": "evaluation.palette",
    "mini": "models.mini",
    "reference": "styles.style",
    "sheets": "sets.sheets",
    "style": "styles.style",
    "style_file": "styles.file",
}
"""Where modules of the package have gone. Their own modules have gone along."""

NAMES = {
    "Reference": "Style",
    "generate_unaligned": "generate(…, aligned=False)",
}
"""Names of the package that have another one now."""


def get(name: str) -> Any:
    """Return what a name of `NAMES` stood for, with a warning."""
    _warn(f"{PACKAGE}.{name}", f"{PACKAGE}.{NAMES[name]}", stacklevel=4)
    package = import_module(PACKAGE)
    if name == "Reference":
        return package.Style

    def generate_unaligned(*arguments: Any, **keywords: Any) -> Any:
        """Generate images with the noise and the settings of `generate`, unaligned."""
        return package.generate(*arguments, aligned=False, **keywords)

    return generate_unaligned


def install() -> None:
    """Have modules found under the names that they had before."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # the first: others would find what is in moved packages once more


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        package, _, rest = fullname.partition(".")
        first, _, inner = rest.partition(".")
        if package != PACKAGE or first not in MODULES:
            return None
        new_name = ".".join(filter(None, (PACKAGE, MODULES[first], inner)))
        return ModuleSpec(fullname, self, origin=new_name, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        assert spec.origin is not None
        try:
            sys.modules[spec.name] = import_module(spec.origin)  # the module itself: what is in it exists once
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name) from error
        _warn(spec.name, spec.origin, stacklevel=3)


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(f"{old} is now {new}: the old name will go", DeprecationWarning, stacklevel=stacklevel)
