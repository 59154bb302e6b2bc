"""What people are told when something is not as it should be: one line."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import gradio as gr

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
SECONDS = 20  # for which an error is shown


def describe_error(error: BaseException) -> str:
    """Return an error in one line, as the command line has it."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror.lower()}"
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError | TypeError | ImportError)
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")


def tell(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a handler of the page, or an endpoint, tell people of errors."""

    @wraps(function)
    def handle(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return function(*args, **keywords)
        except (ValueError, TypeError, OSError) as error:
            raise gr.Error(describe_error(error), duration=SECONDS, print_exception=False) from error

    return handle
