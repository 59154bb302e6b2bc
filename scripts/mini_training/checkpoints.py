"""What a training run needs to go on after an interruption, as safetensors with a JSON header: nothing pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.optim import Optimizer


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, partial, dict(metadata))
    partial.replace(path)


def tensor_names(handle: Any) -> list[str]:
    return list(handle.keys())


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata."""
    with safe_open(path, framework="pt", device=device) as file:  # pyright: ignore[reportUnknownVariableType]
        handle = cast(Any, file)
        return {name: handle.get_tensor(name) for name in tensor_names(handle)}, dict(handle.metadata() or {})


class Average:
    """Exponential moving average of parameters, with a warm-up: the decay at step n is min(decay, (1+n)/(10+n))."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, [parameters[name].detach() for name in self.tensors], 1 - decay)  # pyright: ignore


def save_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    average: Average,
    optimizer: Optimizer,
    generator: torch.Generator,
    state: Mapping[str, Any],
) -> None:
    """Write everything that changes in training.

    Args:
        path: The file, replaced at once when complete.
        parameters: The trained parameters, in the optimizer's order.
        average: Their moving average.
        optimizer: An optimizer with one group and tensors as its state.
        generator: The source of all random numbers on tensors.
        state: Anything else, as JSON: steps and seconds done, statistics, other generators' states.
    """
    tensors: dict[str, Tensor] = {"generator": generator.get_state()}
    for name, parameter in parameters.items():
        tensors[f"parameters.{name}"] = parameter
        tensors[f"average.{name}"] = average.tensors[name]
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    save_tensors(path, tensors, {"state": json.dumps({**state, "average_steps": average.steps})})


def load_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    average: Average,
    optimizer: Optimizer,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Put everything back in place as `save_checkpoint` found it; returns its `state`."""
    tensors, metadata = load_tensors(path)
    state: dict[str, Any] = json.loads(metadata["state"])
    generator.set_state(tensors["generator"])
    average.steps = state["average_steps"]
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameters.{name}"])
            average.tensors[name].copy_(tensors[f"average.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (stored := tensors.get(f"optimizer.{key}.{name}")) is not None:
                    device = parameter.device if key != "step" or optimizer.defaults.get("fused") else "cpu"
                    optimizer.state[parameter][key] = stored.to(device)
    return state
