"""The options of the adapter and the settings of a run: each declared once.

The adapter, style files, the command line and the page take names, types, ranges, defaults and help from here.

To add an option, declare it in `AdapterOptions`, use it in the maths (`style_aligned.adapter`), and write it into the
oracle of the tests. Nothing here takes time to import: the command line starts with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypedDict, cast, get_args, get_type_hints

from style_aligned.words import show


@dataclass(frozen=True)
class Option:
    """One option of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter], or one setting of a run.

    Attributes:
        default: Its value where none is given. Numbers have no effect at their default.
        help: What it does, in one line for people.
        google: Its name in Google's implementation. None means that it has none there.
        minimum: The least value of a number.
        maximum: The largest value of a number.
        changeable: Whether it can be set while the adapter is injected.
        of_style: Whether a style has it. A set's size is up to who draws it, and full sharing cannot be recorded.
        name: Its name, as a keyword in Python. The command line writes it with dashes.
        kind: The type of its values. Where it is `float`, integers are numbers too.
        optional: Whether None is a value too.
        flag: Its name on the command line, without dashes in front, where that is another one.
        rule: Checks values that are no numbers, given what an error calls the option.
        parse: Reads a value that is no number from the command line.
        metavar: What the command line calls a value that is no number.
    """

    default: Any
    help: str
    google: str | None = None
    minimum: float = -math.inf
    maximum: float = math.inf
    changeable: bool = False
    of_style: bool = True
    name: str = ""
    kind: type[Any] = float
    optional: bool = False
    flag: str | None = None
    rule: Callable[[str, Any], None] | None = None
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None

    @property
    def cli_name(self) -> str:
        """Its name on the command line, such as `--guidance`."""
        return f"--{(self.flag or self.name).replace('_', '-')}"

    @property
    def default_text(self) -> str:
        """Its default, as the command line shows it."""
        if self.default is None:
            return "all" if self.parse is not None else "none"
        if self.kind is str and not isinstance(self.default, str):
            return ":".join(f"{part:g}" for part in self.default)
        return str(self.default)

    def read(self, value: Any) -> Any:
        """Return what the command line says as a value.

        Args:
            value: What the command line has made of it: the text, for values that are no numbers.

        Raises:
            ValueError: If the text cannot be read.
        """
        if self.parse is None:
            return value
        try:
            return self.parse(value)
        except ValueError:
            raise ValueError(f"expected {self.cli_name} {self.metavar}, got {show(value)}") from None

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
        if self.rule is not None:
            self.rule(name, value)
            return
        if self.kind is bool:
            if not isinstance(value, bool):
                raise TypeError(f"expected {name} to be True or False, got {show(value)}")
            return
        if not isinstance(value, int if self.kind is int else int | float) or isinstance(value, bool):
            kind = ("an integer" if self.kind is int else "a number") + (" or None" if self.optional else "")
            raise TypeError(f"expected {name} to be {kind}, got {show(value)}")
        number = cast(float, value)
        if not is_finite(number) or not self.minimum <= number <= self.maximum:
            kind = "an integer" if self.kind is int else "a finite number"
            raise ValueError(f"expected {name} to be {kind}{self._range}, got {value}")

    @property
    def _range(self) -> str:
        if math.isfinite(self.maximum):
            return f" between {self.minimum:g} and {self.maximum:g}"
        return f" of at least {self.minimum:g}" if math.isfinite(self.minimum) else ""


def _check_layers(name: str, value: Any) -> None:
    expected = f"expected {name} to be names of layers, or strengths of at least 0 by name, got {show(value)}"
    if isinstance(value, str) or not isinstance(value, Mapping | Sequence):
        raise TypeError(expected)
    selected = cast(Mapping[Any, Any] | Sequence[Any], value)
    strengths = list(selected.values()) if isinstance(selected, Mapping) else []
    if not all(isinstance(layer, str) for layer in selected):
        raise TypeError(expected)
    if any(isinstance(strength, bool) or not isinstance(strength, int | float) for strength in strengths):
        raise TypeError(expected)
    if not selected or not all(is_finite(strength) and strength >= 0 for strength in strengths):
        raise ValueError(expected)


def _parse_layers(text: str) -> list[str] | dict[str, float]:
    """Read `up.0.1,up.1=0.5`."""
    parts = [part.strip().partition("=") for part in text.split(",")]
    if all(not equals for _, equals, _ in parts):
        return [name for name, _, _ in parts]
    return {name: float(strength) if equals else 1.0 for name, equals, strength in parts}


def _check_steps(name: str, value: Any) -> None:
    bounds = cast(Sequence[Any], value) if isinstance(value, list | tuple) else ()
    if len(bounds) != 2 or any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in bounds):
        raise TypeError(
            f"expected {name} to be two numbers, the part of the way that shares (num_inference_steps is how many steps"
            f" there are), got {show(value)}"
        )
    if not 0 <= bounds[0] < bounds[1] <= 1:
        raise ValueError(f"expected {name} to be a part of the way, from 0 to 1, that is not empty, got {show(value)}")


def _parse_steps(text: str) -> list[float]:
    """Read `0:0.6`."""
    start, _, end = text.partition(":")
    return [float(start or 0), float(end or 1)]  # a list, as JSON has it


def _check_halves(name: str, value: Any) -> None:
    if value not in ("both", "positive"):
        raise ValueError(f"expected {name} to be both or positive, got {show(value)}")


class AdapterOptions(TypedDict, total=False):
    """The options of the [`StyleAlignedAdapter`][style_aligned.adapter.StyleAlignedAdapter], as keywords."""

    strength: Annotated[
        float,
        Option(
            1.0,
            "How often the reference counts: 0 leaves the images unaligned, 2 counts it twice.",
            minimum=0.0,
            changeable=True,
        ),
    ]
    adain_queries: Annotated[
        bool, Option(True, "Normalize the targets' queries to the reference's.", google="adain_queries")
    ]
    adain_keys: Annotated[bool, Option(True, "Normalize the targets' keys to the reference's.", google="adain_keys")]
    adain_values: Annotated[
        bool, Option(False, "Normalize the targets' values to the reference's.", google="adain_values")
    ]
    share_attention: Annotated[bool, Option(True, "Let the targets attend to the reference.", google="share_attention")]
    full_attention_share: Annotated[
        bool,
        Option(
            False,
            "Let all images of a set attend to all of them, without AdaIN.",
            google="full_attention_share",
            of_style=False,
        ),
    ]
    share_group_norm: Annotated[
        bool,
        Option(
            False,
            "Normalize each image over the reference too: background and light follow it more closely.",
            google="share_group_norm",
        ),
    ]
    scale: Annotated[
        float,
        Option(
            1.0,
            "Factor for the reference's keys: more than 1 takes more of it.",
            google="shared_score_scale",
            minimum=0.0,
            changeable=True,
        ),
    ]
    shift: Annotated[
        float,
        Option(
            0.0,
            "Added to the scores of the reference: 0.7 counts it twice.",
            google="shared_score_shift",
            changeable=True,
        ),
    ]
    only_self_level: Annotated[
        float,
        Option(
            0.0,
            "The part of the self-attentions to leave alone, spread evenly.",
            google="only_self_level",
            minimum=0.0,
            maximum=1.0,
        ),
    ]
    layers: Annotated[
        Sequence[str] | Mapping[str, float] | None,
        Option(
            None,
            "The layers that share, such as up.0.1, style or layout, each with a strength if wanted.",
            changeable=True,
            rule=_check_layers,
            parse=_parse_layers,
            metavar="NAME[=STRENGTH],…",
        ),
    ]
    steps: Annotated[
        Sequence[float],
        Option(
            (0.0, 1.0),
            "The part of the way in which the reference is shared, from 0 at the first step to 1.",
            changeable=True,
            rule=_check_steps,
            parse=_parse_steps,
            metavar="FROM:TO",
            flag="shared-steps",
        ),
    ]
    halves: Annotated[
        Literal["both", "positive"],
        Option(
            "both",
            "Which guidance halves share: with positive, guidance carries the style too.",
            changeable=True,
            rule=_check_halves,
            parse=str,
            metavar="both|positive",
        ),
    ]
    query_guidance: Annotated[
        float,
        Option(
            0.0,
            "How far guidance leads away from what the reference shows, in layers that do not share.",
            minimum=0.0,
            maximum=1.0,
            changeable=True,
        ),
    ]
    set_size: Annotated[
        int | None,
        Option(
            None,
            "The number of images in a set, the reference included.",
            minimum=1.0,
            changeable=True,
            of_style=False,
        ),
    ]


def _declared() -> dict[str, Option]:
    options: dict[str, Option] = {}
    for name, hint in get_type_hints(AdapterOptions, include_extras=True).items():
        annotation, option = get_args(hint)
        kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and kind is not type(None)]
        kind = str if option.rule is not None else kinds[0] if kinds else annotation
        options[name] = replace(option, name=name, kind=kind, optional=type(None) in get_args(annotation))
    return options


OPTIONS = _declared()
"""All options, by name."""

STYLE_OPTIONS = {name: option for name, option in OPTIONS.items() if option.of_style}
"""The options that a style has, by name."""

SEED_LIMIT = 2**63
"""Seeds are integers from 0 to one less than this."""

SETTINGS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            None,
            "Steps of the solver.",
            minimum=1.0,
            maximum=1000.0,
            name="num_inference_steps",
            kind=int,
            optional=True,
            flag="steps",
        ),
        Option(
            None,
            "Strength of the classifier-free guidance; 0 or 1 turns it off.",
            minimum=-1e4,
            maximum=1e4,
            name="condition_scale",
            optional=True,
            flag="guidance",
        ),
        Option(4, "Images that go through the model at a time.", minimum=1.0, name="batch_size", kind=int),
        Option(
            32,
            "Images that are on their way at a time, with one recording of the reference.",
            minimum=1.0,
            name="chunk_size",
            kind=int,
        ),
    )
}
"""The settings of a run that are numbers, by name. None means what the model's family recommends."""

INVERSION: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            2.0,
            "Strength of the guidance while a picture is inverted.",
            minimum=-1e4,
            maximum=1e4,
            name="inversion_scale",
        ),
        Option(5, "How many of the noisiest latents of an inversion to skip.", minimum=0.0, name="offset", kind=int),
        Option(
            0,
            "Fixed-point iterations of each step of an inversion.",
            minimum=0.0,
            maximum=100.0,
            name="iterations",
            kind=int,
        ),
        Option(False, "Take other noise for each step.", name="fresh_noise", kind=bool),
    )
}
"""How a picture is brought to its trajectory, by name."""

PRESETS: dict[str, dict[str, Any]] = {
    "google-transfer": {"condition_scale": 10.0, "share_group_norm": True, "scale": 1.0, "shift": math.log(2)},
    "google-famous": {"condition_scale": 10.0, "share_group_norm": True, "scale": 0.5, "shift": 0.0},
}
"""Settings of Google's notebooks for styles from pictures, by name.

A picture is no likely output of the model, so that targets attend to it too little: `google-transfer` has it count
twice, and guides more strongly. A famous picture is known to the model by heart, and targets would copy it:
`google-famous` halves its keys.
"""

WITH_FULL_ATTENTION_SHARE = {
    "strength": 1, "share_attention": True, "adain_values": False, "scale": 1, "shift": 0, "layers": None,
    "query_guidance": 0,
}  # fmt: skip
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
            f"{name}={options[name]!r}"
            for name, value in WITH_FULL_ATTENTION_SHARE.items()
            if options.get(name, value) != value
        ]
        if excluded:
            raise ValueError(
                f"expected full_attention_share without any other way of sharing, got it with {', '.join(excluded)}"
                " (all rows of a group attend to each other: nothing is normalized, scaled or shifted)"
            )
    if options.get("query_guidance", 0) > 0 and options.get("layers") is None:
        raise ValueError("expected layers beside query_guidance, which acts where nothing is shared, got none")


def split_options(keywords: Mapping[str, Any], options: Mapping[str, Any] | None, function: str) -> dict[str, Any]:
    """Put together the options of a style that a function was given, as keywords or by `options`, and check them.

    Args:
        keywords: The keywords that are no other arguments of the function.
        options: The options by name. A keyword of the same name takes precedence.
        function: The name of the function, for errors.

    Raises:
        TypeError: If a keyword is none of the options', or a value is not of its option's type.
        ValueError: If there is no such option, a value is out of its range, or one excludes another.
    """
    flags = {option.flag: option.name for option in SETTINGS.values() if option.flag}
    flags |= {"negative": "negative_prompt", "guidance_scale": "condition_scale"}
    for name in keywords:
        if name not in OPTIONS:
            close = flags.get(name) or next(iter(get_close_matches(name, (*STYLE_OPTIONS, *SETTINGS), n=1)), None)
            hint = f": did you mean {close}?" if close else f"; its options are {', '.join(STYLE_OPTIONS)}"
            raise TypeError(f"{function}() takes no {name}{hint}")
    if options is not None and not isinstance(options, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected options by name, got {show(options)}")
    given = {**(options or {}), **keywords}
    check_options(given, STYLE_OPTIONS)
    return given


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer: True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


INIT_STRENGTH = 0.6
"""How much of the way from a picture is done, unless it is said."""


def check_init_strength(strength: float | int) -> None:
    """Check how much of the way from a picture is done.

    Raises:
        ValueError: If it is not a number above 0 and up to 1.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:  # pyright: ignore
        raise ValueError(f"expected init_strength above 0 and up to 1, got {show(strength)}")


def check_seed(seed: Any, name: str = "seed") -> None:
    """Check a seed.

    Args:
        seed: The seed.
        name: What an error calls it.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of its range.
    """
    if not is_integer(seed):
        raise TypeError(f"expected {name} to be an integer, got {show(seed)}")
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"expected {name} between 0 and 2**63 - 1, got {seed}")


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
