"""What the user sees: one line for an error or a warning, and progress where there is a terminal."""

import errno
import os
import re
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

from style_aligned.notes import Note

ERROR = 2  # exit codes
INTERRUPTED = 130
MESSAGE_LENGTH = 600  # characters
STORAGE_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = re.compile("allocate memory|not enough memory|out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)


class Interrupted(Exception):  # noqa: N818
    """An interruption that says what is kept. (Of a KeyboardInterrupt itself, typer keeps nothing but the code.)"""


def describe(error: BaseException) -> str:
    """Put an exception into words for the user."""
    # for each chain that a layer is in, Refiners puts another error around the layer's: a page long, with the prompts
    causes = [cause for cause in _trace_back(error) if type(cause).__name__ != "ChainError"] or [error]
    if any(_is_out_of_memory(cause) for cause in causes):
        return (
            "out of memory: a smaller --batch-size or --size, --dtype bfloat16 and --bank-device cpu take less of it,"
            " where the command has them"
        )
    error = causes[0]
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # of a wrong option, such as typer.BadParameter
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        message = getattr(error, "message", "")
        return message if message.startswith("expected ") else f"{format_message()}{hint}"
    if isinstance(error, OSError):
        name = error.filename if error.filename is not None else "output"
        return f"{name}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, ValueError | TypeError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name} is missing: {error}"
    return f"{type(error).__name__}: {error} (STYLE_ALIGNED_DEBUG=1 shows where)"


def _trace_back(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception, the one that it comes from, and so on."""
    while error is not None:
        yield error
        is_told = not error.__suppress_context__ or type(error).__name__ == "ChainError"
        error = error.__cause__ or (error.__context__ if is_told else None)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)):  # PyTorch has a type for some devices only
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


_warned: set[str] = set()


@contextmanager
def show_notes() -> Generator[None, None, None]:
    """Write each note of the library once, in a line. Other warnings are for who develops."""
    _warned.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        if not os.environ.get("STYLE_ALIGNED_DEBUG"):
            warnings.showwarning = _show_note
        yield


def _show_note(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, Note) and str(message) not in _warned:
        warn(str(message))


def warn(message: str) -> None:
    """Write a warning."""
    _warned.add(message)
    print_line(f"warning: {message}")


def print_line(message: str) -> None:
    """Write one line to standard error, whatever the message holds."""
    line = " ".join(message.split())
    line = line if len(line) <= MESSAGE_LENGTH else f"{line[: MESSAGE_LENGTH - 1]}…"
    with suppress(AttributeError, OSError):  # there is no standard error, or nobody reads it
        sys.stderr.write(f"style-aligned: {line.encode(errors='replace').decode()}\n")
        sys.stderr.flush()
