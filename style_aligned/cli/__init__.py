"""The command line: thin commands over the library. Nothing heavy is imported until a command needs it."""

from style_aligned.cli.entry import main

__all__ = ["main"]
