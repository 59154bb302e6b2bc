"""Options that commands share: each declared once, those of the adapter in `style_aligned.options`."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

import typer

from style_aligned.cli import inputs
from style_aligned.cli.sections import DAILY
from style_aligned.options import STYLE_OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])
MODEL_VARIABLE = "STYLE_ALIGNED_MODEL"
OTHER_ADAPTERS, WORKERS = "Other adapters", "Many machines"  # sections of the help


class Precision(str, Enum):
    """The types that a model's weights can have."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class TimestepSpacing(str, Enum):
    """Where the steps of a solver can be."""

    leading = "leading"
    trailing = "trailing"
    linspace = "linspace"


@dataclass(frozen=True)
class ModelOptions:
    """The model, and where it computes."""

    SECTION: ClassVar[str] = "Model and device"

    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model: mini (the embedded one), a diffusers folder, a .safetensors file, a folder in Refiners'"
            f" format, or a name on the Hugging Face hub.  [default: the set's, else ${MODEL_VARIABLE}, else mini]",
            rich_help_panel=DAILY,
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="Where to compute: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, …"),
    ] = "auto"
    dtype: Annotated[
        Precision,
        typer.Option(
            metavar="TYPE",
            help="The precision: float32, float16, bfloat16, or auto: float16, but float32 on the CPU and for mini.",
        ),
    ] = Precision.auto
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="An autoencoder, for a model without one or in place of its own: a file, a folder, or a hub name.",
        ),
    ] = None
    timestep_spacing: Annotated[
        TimestepSpacing | None,
        typer.Option(
            metavar="SPACING",
            help="Where the steps are: leading, trailing (for few steps: Turbo, Lightning, Hyper) or linspace."
            "  [default: what the model says, else leading]",
        ),
    ] = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments of `load_model`, beside the name."""
        spacing = self.timestep_spacing
        return {
            "device": self.device,
            "dtype": self.dtype.value,
            "vae": self.vae,
            "timestep_spacing": None if spacing is None else spacing.value,
        }

    def check(self) -> None:
        """Check what can be checked without PyTorch."""
        inputs.check_device(self.device)
        inputs.check_model_name(self.model)


@dataclass(frozen=True)
class DrawOptions:
    """How images are drawn."""

    SECTION: ClassVar[str] = "Speed and memory"

    batch_size: Annotated[
        int, typer.Option(min=1, metavar="COUNT", help="Images that go through the model at a time.")
    ] = 4
    chunk_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Write images about this often. The reference is recorded once for all of that time.",
        ),
    ] = 60.0
    bank_device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where to keep what is recorded of the reference: with cpu, SDXL takes 0.8 GB less of a GPU, and"
            " more time.  [default: as --device]",
        ),
    ] = None
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Draw the images without the style too, in the folder unaligned. The set remembers it.",
            show_default=False,
            rich_help_panel=DAILY,
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Use a style with other weights; draw what may need too much memory.")
    ] = False

    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="COUNT",
            help="Draw with so many workers, each with the model loaded once.  [default: with --ray, as many as fit]",
            rich_help_panel=WORKERS,
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The Ray cluster of the workers: HOST:PORT, ray://HOST:PORT or auto.  [default: one is started here]",
            rich_help_panel=WORKERS,
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=64,
            metavar="NUMBER",
            help="GPUs of a worker: 0.5 for two on each.  [default: 1, where there are any]",
            rich_help_panel=WORKERS,
        ),
    ] = None

    @property
    def has_workers(self) -> bool:
        """Whether workers draw."""
        return self.workers is not None or self.ray is not None

    def check(self) -> None:
        """Check what can be checked without PyTorch."""
        inputs.check_number("--gpus-per-worker", self.gpus_per_worker, minimum=0, maximum=64)
        if self.gpus_per_worker is not None and not self.has_workers:
            raise ValueError("expected no --gpus-per-worker without --workers or --ray")
        inputs.check_number("--chunk-seconds", self.chunk_seconds, minimum=0, maximum=1e9)
        if self.bank_device is not None:
            inputs.check_device(self.bank_device, "--bank-device")


@dataclass(frozen=True)
class ReferenceOptions:
    """What a reference is made with."""

    SECTION: ClassVar[str] = "The reference"

    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="SEED",
            help="Seed of the reference; the images count on from it.  [default: 0]",
            rich_help_panel=DAILY,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="COUNT", help="Steps of the solver.  [default: as suits the model]"),
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Strength of the classifier-free guidance; 0 turns it off.  [default: as suits the model]",
        ),
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Size of the images in pixels.  [default: as suits the model]",
            rich_help_panel=DAILY,
        ),
    ] = None
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to guide away from.")] = None
    reference_mask: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURE",
            help="Which part of the reference gives the style: a picture, bright or opaque there; alpha for the"
            " transparency of a picture that is the reference.  [default: all of it]",
        ),
    ] = None
    reference_control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE",
            help="Have the reference follow this picture too, by --control. Repeat it in the order of several of them.",
        ),
    ] = None

    def check(self) -> None:
        """Check what can be checked without PyTorch."""
        inputs.check_number("--seed", self.seed, minimum=0, maximum=inputs.MAX_SEED)
        inputs.check_number("--guidance", self.guidance, minimum=-1000, maximum=1000)
        inputs.parse_size(self.size)
        inputs.check_text(self.negative or "", "--negative")
        if self.reference_mask not in (None, "alpha") and not Path(self.reference_mask or "").is_file():
            raise ValueError(f"expected --reference-mask to be a picture, got {self.reference_mask!r}: no such file")
        for path in self.reference_control or ():
            if not Path(path).expanduser().is_file():
                raise ValueError(f"expected --reference-control to be a picture, got {path!r}, which is not there")

    def settings(self) -> dict[str, Any]:
        """Return what was given, as arguments of `Style.from_prompt`."""
        given = {
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "condition_scale": self.guidance,
            "size": inputs.parse_size(self.size),
            "negative_prompt": self.negative,
            "reference_mask": self.reference_mask and from_anywhere(self.reference_mask),
            "control": [from_anywhere(path) for path in self.reference_control] if self.reference_control else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def reject(self, reason: str) -> None:
        """Refuse what only a new reference can have."""
        given = {
            "--steps": self.steps, "--guidance": self.guidance, "--size": self.size, "--negative": self.negative,
            "--reference-control": self.reference_control or None,
        }  # fmt: skip
        inputs.reject(given, reason)


@dataclass(frozen=True)
class PromptOptions:
    """Prompts beside those that are arguments."""

    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="More to draw: .txt (a prompt a line, # for comments), .csv or .jsonl with prompt, seed, name, init;"
            " - for stdin. Repeat it for more.",
        ),
    ] = None
    prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Put this before each prompt that does not start with it.")
    ] = None
    suffix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Put this after each prompt that does not end with it.")
    ] = None

    def check(self) -> None:
        """Check the texts."""
        inputs.check_text(self.prefix or "", "--prefix")
        inputs.check_text(self.suffix or "", "--suffix")


@dataclass(frozen=True)
class InitOptions:
    """A picture that images start from, or that they follow."""

    SECTION: ClassVar[str] = "A picture to start from"

    init: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="Start the images from this picture, not from noise alone.")
    ] = None
    init_strength: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="How much of the way from it is drawn, up to 1.  [default: 0.6]"),
    ] = None
    init_mask: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="Draw only what is white here anew, and keep the rest.")
    ] = None
    control_image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE",
            help="Have the images follow this picture, by --control. Repeat it in the order of several of them.",
            rich_help_panel=OTHER_ADAPTERS,
        ),
    ] = None

    def check(self) -> None:
        """Check the number, and that pictures are there."""
        pictures = [("--init", self.init), ("--init-mask", self.init_mask)]
        for name, path in [*pictures, *(("--control-image", path) for path in self.control_image or ())]:
            if path is not None and not Path(path).expanduser().is_file():
                raise ValueError(f"expected {name} to be a picture, got {path!r}, which is not there")
        if self.init_strength is not None and not 0 < self.init_strength <= 1:
            raise ValueError(f"expected --init-strength above 0 and up to 1, got {self.init_strength}")
        if self.init is None:
            inputs.reject({"--init-strength": self.init_strength, "--init-mask": self.init_mask}, "without --init")

    @property
    def given(self) -> dict[str, Any]:
        """What was given, as a set keeps it."""
        paths = {
            "init": self.init and from_anywhere(self.init),
            "init_strength": self.init_strength,
            "init_mask": self.init_mask and from_anywhere(self.init_mask),
            "control": [from_anywhere(path) for path in self.control_image] if self.control_image else None,
        }
        return {name: value for name, value in paths.items() if value is not None}


@dataclass(frozen=True)
class ReportOptions:
    """What is shown in the end."""

    open: Annotated[bool, typer.Option("--open", help="Open the contact sheet when it is done.")] = False
    json: Annotated[bool, typer.Option("--json", help="Report as JSON, on standard output.")] = False


@dataclass(frozen=True)
class StyleOptions:
    """Options of the adapter, as `style_aligned.options` declares them. They have no attributes, but a mapping.

    Attributes:
        given: The options that were given, by name.
    """

    SECTION: ClassVar[str] = "How the style is shared"

    given: dict[str, Any]

    def check(self) -> None:
        """Check each option."""
        for name, value in self.given.items():
            STYLE_OPTIONS[name].check(value, STYLE_OPTIONS[name].cli_name)


def takes(**groups: type[Any]) -> Callable[[Command], Command]:
    """Have a command take all options of some groups, and get an object of each group, which was checked.

    Args:
        groups: The classes of the groups, by the names of the command's parameters.
    """

    def decorate(command: Command) -> Command:
        own = [
            parameter for parameter in inspect.signature(command).parameters.values() if parameter.name not in groups
        ]
        expanded = {name: _parameters(group) for name, group in groups.items()}

        def run(**values: Any) -> Any:
            made: dict[str, Any] = {}
            for name, group in groups.items():
                given = {parameter.name: values.pop(parameter.name) for parameter in expanded[name]}
                made[name] = _make(group, given)
            for group in made.values():
                if hasattr(group, "check"):
                    group.check()
            return command(**values, **made)

        hints = get_type_hints(command, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own
        ]
        for group in expanded.values():
            parameters += group
        for parameter in parameters:
            _read_here(parameter)
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {}
        return run  # pyright: ignore[reportReturnType]

    return decorate


def _read_here(parameter: inspect.Parameter) -> None:
    """Have the values of a parameter read by `inputs`, whose errors say what was given and what is expected."""
    annotation, option = get_args(parameter.annotation)
    kinds = [kind for kind in get_args(annotation) or (annotation,) if isinstance(kind, type)]
    declared = [text.partition("/")[0] for text in option.param_decls or () if text.startswith("--")]
    name = declared[0] if declared else f"--{parameter.name.replace('_', '-')}"
    for kind in kinds:
        if kind in (int, float):
            option.parser = partial(inputs.read_number, name=name, kind=kind, minimum=option.min, maximum=option.max)
        elif issubclass(kind, Enum):
            option.parser = partial(inputs.read_choice, name=name, kind=kind)
            option.autocompletion = _completion(kind)


def _completion(kind: type[Enum]) -> Callable[[str], list[str]]:
    """Return what completes the values of an enumeration in a shell."""

    def complete(incomplete: str) -> list[str]:
        return [choice.value for choice in kind if choice.value.startswith(incomplete)]

    return complete


@cache
def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    """Return the parameters that a group of options stands for."""
    if group is StyleOptions:
        return [_style_parameter(name) for name in STYLE_OPTIONS]
    hints = get_type_hints(group, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for field in fields(group):
        (option,) = hints[field.name].__metadata__
        if option.rich_help_panel is None:
            option.rich_help_panel = getattr(group, "SECTION", DAILY)
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )
    return parameters


def _style_parameter(name: str) -> inspect.Parameter:
    option = STYLE_OPTIONS[name]
    flag = option.cli_name
    help_text = option.help if option.help.endswith(("]", ".")) else f"{option.help}."
    if option.kind is bool:
        shown = typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, show_default=False)
    else:
        metavar = "NUMBER" if option.metavar is None else option.metavar
        shown = typer.Option(flag, metavar=metavar, help=f"{help_text}  [default: {option.default_text}]")
    shown.rich_help_panel = DAILY if name == "strength" else StyleOptions.SECTION
    annotation = Annotated[option.kind | None, shown]  # pyright: ignore[reportInvalidTypeForm]
    return inspect.Parameter(_parameter_name(name), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parameter_name(name: str) -> str:
    """Return the name of the parameter for an option of a style: that on the command line, since others have steps."""
    return STYLE_OPTIONS[name].cli_name[2:].replace("-", "_")


def _make(group: type[Any], given: dict[str, Any]) -> Any:
    if group is StyleOptions:
        values = {name: given[_parameter_name(name)] for name in STYLE_OPTIONS}
        return StyleOptions({name: STYLE_OPTIONS[name].read(x) for name, x in values.items() if x is not None})
    return group(**given)


def resolve_model(given: str | None, *known: str | None) -> str:
    """Return the name of the model to load: the one given, else the first that is known, else that of the environment.

    Args:
        given: What `--model` says.
        known: The models that sets and styles know of.
    """
    import os

    named = (given, *known, os.environ.get(MODEL_VARIABLE) or None)
    return next((name for name in named if name is not None), "mini")


def set_model_name(name: str) -> str:
    """Return a model's name as a set keeps it: the same from any folder."""
    return "mini" if name == "mini" else from_anywhere(name)


def from_anywhere(name: str) -> str:
    """Return a path as it is from any folder, and any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name
