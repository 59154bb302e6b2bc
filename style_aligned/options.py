"""The options of the adapter: each declared once, for the adapter, style files, the command line and the page.

It imports nothing that takes time, for the command line to start at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter].

    Attributes:
        name: Its name, as a keyword in Python. The command line writes it with dashes.
        kind: The type of its values. Where it is `float`, integers are numbers too.
        default: Its value where none is given. Numbers have no effect at their default.
        help: What it does, in one line for people.
        google: Its name in Google's implementation. None means that it has none there.
        minimum: The least value of a number.
        maximum: The largest value of a number.
        optional: Whether None is a value too.
        changeable: Whether it can be set while the adapter is injected.
        of_style: Whether a style has it. A set's size is up to who draws it, and full sharing cannot be recorded.
    """

    name: str
    kind: type[bool] | type[int] | type[float]
    default: Any
    help: str
    google: str | None = None
    minimum: float = -math.inf
    maximum: float = math.inf
    optional: bool = False
    changeable: bool = False
    of_style: bool = True

    def check(self, value: Any, name: str | None = None) -> None:
        """Check a value of the option.

        Args:
            value: The value.
            name: What an error calls the option, such as `--scale`. None means its name.

        Raises:
            TypeError: If the value is not of the option's type.
            ValueError: If it is not finite or out of its range.
        """
        name = name or self.name
        if value is None and self.optional:
            return
        if self.kind is bool:
            if not isinstance(value, bool):
                raise TypeError(f"expected {name} to be True or False, got {value!r}")
            return
        number, expected = (int, "an integer") if self.kind is int else (int | float, "a number")
        if not isinstance(value, number) or isinstance(value, bool):
            raise TypeError(f"expected {name} to be {expected}{' or None' if self.optional else ''}, got {value!r}")
        if not is_finite(value) or not self.minimum <= value <= self.maximum:
            finite = "" if self.kind is int else "a finite number "
            if math.isfinite(self.maximum):
                bounds = f"between {self.minimum:g} and {self.maximum:g}"
            else:
                at_least = f"at least {self.minimum:g}"
                bounds = (f"of {at_least}" if finite else at_least) if math.isfinite(self.minimum) else ""
            raise ValueError(f"expected {name} to be {(finite + bounds).strip()}, got {value}")


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            "adain_queries", bool, True, "Normalize the targets' queries to the reference's.", google="adain_queries"
        ),
        Option("adain_keys", bool, True, "Normalize the targets' keys to the reference's.", google="adain_keys"),
        Option(
            "adain_values", bool, False, "Normalize the targets' values to the reference's.", google="adain_values"
        ),
        Option("share_attention", bool, True, "Let the targets attend to the reference.", google="share_attention"),
        Option(
            "full_attention_share", bool, False, "Let all images of a set attend to all of them, without AdaIN.",
            google="full_attention_share", of_style=False,
        ),
        Option(
            "share_group_norm", bool, False,
            "Normalize each image over the reference too: background and light follow it more closely.",
            google="share_group_norm",
        ),
        Option(
            "scale", float, 1.0, "Factor for the reference's keys: more than 1 takes more of it.",
            google="shared_score_scale", minimum=0.0, changeable=True,
        ),
        Option(
            "shift", float, 0.0, "Added to the scores of the reference: 0.7 counts it twice.",
            google="shared_score_shift", changeable=True,
        ),
        Option(
            "only_self_level", float, 0.0, "The part of the self-attentions to leave alone, spread evenly.",
            google="only_self_level", minimum=0.0, maximum=1.0,
        ),
        Option(
            "set_size", int, None, "The number of images in a set, the reference included.",
            minimum=1.0, optional=True, changeable=True, of_style=False,
        ),
    )
}  # fmt: skip
"""All options, by name."""

STYLE_OPTIONS = {name: option for name, option in OPTIONS.items() if option.of_style}
"""The options that a style has, by name."""

WITH_FULL_ATTENTION_SHARE = {"share_attention": True, "adain_values": False, "scale": 1, "shift": 0}
"""The values that others must have beside `full_attention_share`."""


def check_options(options: Mapping[str, Any], allowed: Mapping[str, Option] = OPTIONS) -> None:
    """Check some options, each alone and all beside each other.

    Args:
        options: The values, by name. Those that are missing are taken to be at their defaults.
        allowed: The options that may be given, such as `STYLE_OPTIONS`.

    Raises:
        TypeError: If a value is not of its option's type.
        ValueError: If there is no such option, a value is out of its range, or one excludes another.
    """
    for name, value in options.items():
        if name not in allowed:
            raise ValueError(_unknown(name, allowed))
        allowed[name].check(value)
    if options.get("full_attention_share", False):
        excluded = [
            name for name, value in WITH_FULL_ATTENTION_SHARE.items() if options.get(name, value) != value
        ]  # fmt: skip
        if excluded:
            raise ValueError(
                f"expected full_attention_share without any other way of sharing, got it with {', '.join(excluded)}"
                " (all rows of a group attend to each other: nothing is normalized, scaled or shifted)"
            )


def is_finite(value: int | float) -> bool:
    """Return whether a number is one that a float can hold, which Python's integers may not be."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _unknown(name: str, allowed: Mapping[str, Option]) -> str:
    if name == "full_attention_share":
        return (
            "expected options without full_attention_share: the reference attends to its targets then, and cannot"
            " be kept without them"
        )
    close = get_close_matches(str(name), allowed, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    return f"expected options among {', '.join(allowed)}, got {name}{hint}"
