"""What a checkpoint says about its noise schedule, wherever it says it: nothing of that is read past."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor

from style_aligned.models.checkpoints.errors import CheckpointError
from style_aligned.models.checkpoints.files import StoredTensor
from style_aligned.models.checkpoints.schedule import Schedule, read_prediction_type

TRUE, FALSE, UNKNOWN = ("true", "1", "yes"), ("false", "0", "no"), ("", "none", "null")
PREDICTION_ENTRIES = ("modelspec.prediction_type", "modelspec.predict_key")
VELOCITY_ENTRIES = ("ss_v_parameterization", "v_parameterization")
ZERO_SNR = re.compile(r"((ss|use|is|rescale_betas|modelspec)[_.])*(zero_(terminal_)?snr|ztsnr|zsnr)")
MARKERS = re.compile(r"(.+\.)?(v_pred|ztsnr)")  # empty tensors that some programs write into a file
TARGETS = {  # in Stability AI's configurations: what predictions are, and the noise schedule
    "EpsScaling": ("prediction_type", "epsilon"),
    "VScaling": ("prediction_type", "v_prediction"),
    "LegacyDDPMDiscretization": ("rescale_betas_zero_snr", False),
    "ZeroSNRDDPMDiscretization": ("rescale_betas_zero_snr", True),
}
TABLES = ("alphas_cumprod", "sqrt_alphas_cumprod", "betas", "denoiser.sigmas")
YAML_NUMBERS = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}
YAML_SCHEDULES = {"linear": "scaled_linear", "scaled_linear": "scaled_linear"}  # the original's "linear" is that


@dataclass(frozen=True)
class Statement:
    """What one place says about the schedule.

    Attributes:
        name: The field of `Schedule`.
        value: Its value.
        where: The place.
    """

    name: str
    value: Any
    where: str


def read_metadata(metadata: Mapping[str, str], path: Path) -> Iterator[Statement]:
    """Read what trainers and other programs write into the header of a safetensors file."""
    for key, value in sorted(metadata.items()):
        if str(value).strip().lower() in UNKNOWN:
            continue
        where = f"the metadata {key}={str(value)[:40]!r} of {path.name}"
        if key in PREDICTION_ENTRIES:
            yield Statement("prediction_type", read_prediction_type(value, f"{path}: {key}"), where)
        elif key in VELOCITY_ENTRIES:
            is_velocity = _read_boolean(value, f"{path}: {key}")
            yield Statement("prediction_type", "v_prediction" if is_velocity else "epsilon", where)
        elif ZERO_SNR.fullmatch(key):
            yield Statement("rescale_betas_zero_snr", _read_boolean(value, f"{path}: {key}"), where)


def read_markers(keys: Iterable[str]) -> Iterator[Statement]:
    """Read the tensors whose presence says something."""
    for key in keys:
        if match := MARKERS.fullmatch(key):
            where = f"the tensor {key!r}"
            if match[2] == "v_pred":
                yield Statement("prediction_type", "v_prediction", where)
            else:
                yield Statement("rescale_betas_zero_snr", True, where)


def read_config(config: Mapping[str, Any], where: Path) -> tuple[Schedule, list[Statement]]:
    """Read diffusers' `scheduler_config.json`.

    Args:
        config: The settings.
        where: Their file.

    Returns:
        The schedule, and what of it is stated in so many words.

    Raises:
        CheckpointError: For a schedule that no solver here can do.
    """
    kind = str(config.get("_class_name", ""))
    refused = {
        "noise levels in the way of EDM": kind.startswith("EDM"),
        "flow matching": kind.startswith("FlowMatch") or config.get("use_flow_sigmas") is True,
        "betas of its own": config.get("trained_betas") is not None,
    }
    for what, is_there in refused.items():
        if is_there:
            raise CheckpointError(f"{where}: a model with {what}, for which there is no solver here")
    schedule = Schedule.from_config(config, where)
    stated = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    return schedule, [
        Statement(name, getattr(schedule, name), f"{name} in {where.name}") for name in stated if name in config
    ]


def read_yaml(path: Path) -> tuple[list[Statement], float | None]:
    """Read the configuration of the same name that lies beside a single file.

    Args:
        path: The single file.

    Returns:
        What the configuration says about the schedule, and the scale of latents, if it says that.

    Raises:
        CheckpointError: If it cannot be read, or is for a model that cannot be drawn with.
    """
    file = next((f for f in (path.with_suffix(suffix) for suffix in (".yaml", ".yml")) if f.is_file()), None)
    if file is None:
        return [], None
    try:
        config: object = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a YAML file: {' '.join(str(error).split())}") from error
    statements: list[Statement] = []
    scale: float | None = None
    for key, value in _entries(config):
        where = f"{key} in {file.name}"
        if key in ("parameterization", "prediction_type"):
            statements.append(Statement("prediction_type", read_prediction_type(value, f"{file}: {key}"), where))
        elif key == "target" and (match := re.search(r"\w+\.(\w*(Scaling|Discretization)\w*)$", str(value))):
            if match[1] not in TARGETS:
                raise CheckpointError(f"{file}: a model with {match[1]}, for which there is no solver here")
            statements.append(Statement(*TARGETS[match[1]], f"{match[1]} in {file.name}"))
        elif ZERO_SNR.fullmatch(key):
            statements.append(Statement("rescale_betas_zero_snr", _read_boolean(value, f"{file}: {key}"), where))
        elif key == "timestep_spacing":
            statements.append(Statement(key, value, where))
        elif key in YAML_NUMBERS and isinstance(value, int | float):
            statements.append(Statement(YAML_NUMBERS[key], value, where))
        elif key == "beta_schedule":
            if value not in YAML_SCHEDULES:
                raise CheckpointError(f"{file}: a beta schedule {value!r}, for which there is no solver here")
            statements.append(Statement(key, YAML_SCHEDULES[value], where))
        elif key == "scale_factor" and isinstance(value, int | float):
            scale = float(value)
    return statements, scale


def conclude(
    schedule: Schedule,
    statements: Iterable[Statement],
    tensors: Mapping[str, StoredTensor],
    path: Path,
    wanted: Mapping[str, Any],
) -> Schedule:
    """Put together what a checkpoint says about its schedule.

    Args:
        schedule: What holds where nothing is said.
        statements: What is said.
        tensors: The tensors of the checkpoint, whose tables of the schedule are read.
        path: The checkpoint, for messages.
        wanted: What the user says instead, by the names of the fields.

    Raises:
        CheckpointError: If the checkpoint contradicts itself, or has a schedule that no solver here can do.
    """
    said: dict[str, Statement] = {}
    for statement in statements:
        other = said.setdefault(statement.name, statement)
        if other.value != statement.value and statement.name not in wanted:
            _refuse(path, other, statement)
    schedule = Schedule.from_config(
        {**vars(schedule), **{name: statement.value for name, statement in said.items()}, **wanted}, path
    )
    key = next((key for key in TABLES if key in tensors), None)
    if key is not None:
        table = tensors[key].read()
        fitted = schedule.fitted(_to_alphas(key, table.double()), tolerance=max(2**-8, _precision(table)))
        if fitted is None:
            raise CheckpointError(
                f"{tensors[key].path}: {key!r} holds a noise schedule for which there is no solver here"
            )
        zero_snr = Statement("rescale_betas_zero_snr", fitted.rescale_betas_zero_snr, f"the tensor {key!r}")
        other = said.get(zero_snr.name)
        if zero_snr.name in wanted:
            fitted = replace(fitted, rescale_betas_zero_snr=wanted[zero_snr.name])
        elif other is not None and other.value != zero_snr.value:
            _refuse(path, other, zero_snr)
        schedule = fitted
    if (
        schedule.prediction_type == "v_prediction"
        and schedule.rescale_betas_zero_snr
        and "timestep_spacing" not in {**said, **wanted}
    ):
        schedule = replace(schedule, timestep_spacing="trailing")  # the only one that starts where there is no signal
    try:
        schedule.solver()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return schedule


def _refuse(path: Path, first: Statement, second: Statement) -> None:
    raise CheckpointError(
        f"{path}: {first.where} says {first.name}={first.value!r}, but {second.where} says {second.value!r}; "
        f"say which is right: {first.name}=…"
    )


def _to_alphas(key: str, table: Tensor) -> Tensor:
    """Compute the share of the picture's variance at each timestep from one of the tables that hold a schedule."""
    table = table.flatten()
    if key == "denoiser.sigmas":
        return (1 / (1 + table.square())).sort(descending=True).values
    if key == "betas":
        return (1 - table).cumprod(0)
    return table.square() if key.startswith("sqrt") else table


def _precision(table: Tensor) -> float:
    return torch.finfo(table.dtype).eps if table.is_floating_point() else 0.0


def _entries(config: object) -> Iterator[tuple[str, Any]]:
    """Walk through the entries of nested mappings and lists."""
    if isinstance(config, Mapping):
        for key, value in cast(Mapping[object, Any], config).items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(config, list):
        for value in cast(list[Any], config):
            yield from _entries(value)


def _read_boolean(value: object, where: str) -> bool:
    text = str(value).strip().lower()
    if text not in (*TRUE, *FALSE):
        raise CheckpointError(f"{where}: expected true or false, got {value!r}")
    return text in TRUE
