"""Imports go down from room to room, and nowhere in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import style_aligned

PACKAGE = Path(style_aligned.__file__).parent
ROOMS = (
    {"words", "files", "notes", "options"},
    {"adapter"},
    {"models"},
    {"styles"},
    {"sampling"},
    {"sets"},
    {"evaluation"},
    {"demo", "cli", "web", "cluster"},
    {"__init__", "__main__", "moved"},
)
"""From the lowest to the highest: a room may import those below it and those beside it."""

LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def module_name(path: Path) -> str:
    """Return the name of the module at a path: that of its package for an `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """Return the room of a module: what follows `style_aligned.` in its name."""
    return (*module.split("."), "__init__")[1]


def imports(module: str) -> dict[str, int]:
    """Return the modules of this package that a module imports, wherever in its code, each with a line number."""
    found: dict[str, int] = {}
    path = MODULES[module]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in names]
        else:
            continue
        found.update({name: node.lineno for name in names if name in MODULES})
    return found


IMPORTS = {module: imports(module) for module in MODULES}


def test_every_room_has_a_level() -> None:
    assert {room(module) for module in MODULES} <= LEVELS.keys(), "add the new room to ROOMS, where it belongs"


def test_imports_go_down() -> None:
    upward = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{line} imports {name}, which is above {room(module)}"
        for module, names in IMPORTS.items()
        for name, line in names.items()
        if LEVELS[room(name)] > LEVELS[room(module)]
    ]
    assert not upward, "\n".join(upward)


def test_no_imports_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1][::-1]  # each imports the next one
        raise AssertionError("\n    imports ".join(circle)) from None


def test_imports_are_seen() -> None:
    assert "style_aligned.adapter.layers" in IMPORTS["style_aligned.adapter.adapter"] | IMPORTS["style_aligned"]
    assert sum(map(len, IMPORTS.values())) > len(MODULES)
