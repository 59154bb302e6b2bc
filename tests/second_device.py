"""A second device, for machines without one: it computes on the CPU, and is strict about where tensors are.

Its tensors say that they are on the device "meta", which every build of PyTorch knows, but hold values. An operation on
them and on tensors of the CPU fails, as does one with the other device's random numbers, or a view of them as an array.
Autocast gives them the types that it gives those of a GPU. Other than a GPU it has no second index, waits for each
operation, draws the CPU's random numbers, and has the CPU's kernels.
"""

from collections.abc import Callable, Generator as Yields
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
COPIES = ("aten::copy_", "aten::_to_copy")
TAKE_INDICES = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # of the CPU too, on a GPU as well
LOWER_PRECISION = {
    "__matmul__", "addmm", "baddbmm", "bmm", "conv2d", "einsum", "linear", "matmul", "mm",
    "scaled_dot_product_attention",
}  # fmt: skip
FULL_PRECISION = {
    "__pow__", "__rpow__", "cross_entropy", "cumsum", "exp", "group_norm", "l1_loss", "layer_norm", "log",
    "log_softmax", "mse_loss", "norm", "pow", "prod", "rsqrt", "softmax", "sum",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor on the second device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> "OnDevice":
        self = Tensor._make_wrapper_subclass(  # pyright: ignore
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(DEVICE)
        )
        self.held = held
        return self

    def __repr__(self, **_: Any) -> str:
        return f"{type(self).__name__}({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what is asked of either device, if it is of one of them."""
    name, device = operation._schema.name, kwargs.get("device")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    mine = [x for x in tensors if isinstance(x, OnDevice)]
    others = [x for x in tensors if not isinstance(x, OnDevice)]
    assert not any(x.is_meta for x in others), f"{name} was given a tensor without values"
    if name in TAKE_INDICES and isinstance(args[0], OnDevice):
        others = [x for x in args[2:] if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
    # a number may come from the CPU, but for what goes by element alone, and not to be changed
    changes_number = operation._schema.is_mutable and any(x is args[0] for x in others)
    takes_numbers = torch.Tag.pointwise in operation.tags and not changes_number
    if mine and name not in COPIES and any(x.dim() > 0 or not takes_numbers for x in others):
        raise RuntimeError(f"{name} expects all tensors to be on the same device, got some on {DEVICE} and on cpu")

    def to_cpu(x: Any) -> Any:
        return x.held if isinstance(x, OnDevice) else torch.device("cpu") if isinstance(x, torch.device) else x

    with _disable_current_modes():
        result = operation(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs))
    if name == "aten::copy_":
        return args[0]
    if not (mine if device is None else device.type == DEVICE):
        return result
    known = {id(x.held): x for x in mine}  # what was computed in place

    def to_device(x: Any) -> Any:
        return x if not isinstance(x, Tensor) else known[id(x)] if id(x) in known else OnDevice(x)

    return tree_map(to_device, result)


def cast_to(dtype: torch.dtype, x: Any) -> Any:
    """Cast what is of a floating type and on the device, as autocast does."""
    return x.to(dtype=dtype) if isinstance(x, OnDevice) and x.is_floating_point() else x


class Operations(TorchDispatchMode):
    """Has `compute` do everything, so that what is made on the device is made here."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return compute(operation, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Does what operations on tensors alone do not show."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = torch.device(kwargs.get("device") or "cpu")
        if function is torch.tensor and device.type == DEVICE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if function is Tensor.__getitem__ and isinstance(args[1], list | np.ndarray):
            args = (args[0], torch.tensor(args[1]))
        if torch.is_autocast_enabled("cpu") and (function.__name__ in LOWER_PRECISION | FULL_PRECISION):
            dtype = torch.bfloat16 if function.__name__ in LOWER_PRECISION else torch.float32
            cast = partial(cast_to, dtype)
            args, kwargs = tree_map(cast, args), {name: tree_map(cast, value) for name, value in kwargs.items()}
        if (generator := kwargs.get("generator")) is not None:
            if args and isinstance(args[0], Tensor):
                device = args[0].device
            if device.type != generator.device.type:
                raise RuntimeError(f"expected a generator of {device.type}, got one of {generator.device.type}")
        return function(*args, **kwargs)


class Generator(torch.Generator):
    """A generator of either device."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.place = torch.device(device)

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.place


@contextmanager
def second_device(*users_of_generators: str) -> Yields[str]:
    """Have a second device for a while.

    Args:
        users_of_generators: The names of modules that import `Generator` from torch.

    Yields:
        Its name.
    """
    autocast: Callable[..., Any] = torch.autocast

    def autocast_on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        assert device_type in (DEVICE, "cpu")
        return autocast("cpu", *args, **kwargs)

    patches = [patch(f"{module}.Generator", Generator) for module in users_of_generators]
    with Operations(), Functions(), patch("torch.autocast", autocast_on_cpu), patch("torch.Generator", Generator):
        for one in patches:
            one.start()
        try:
            yield DEVICE
        finally:
            for one in patches:
                one.stop()
