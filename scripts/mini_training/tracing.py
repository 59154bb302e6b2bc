"""Record a Refiners model as one flat graph, so that several threads can compute with it at once.

Fluxion passes contexts through the model's own layers, which two threads would overwrite for one another. A function of
fixed shapes is therefore recorded once (every operation on tensors, nothing else), and the recording has no state.
(Compiled with `torch.compile`, the recording's gradients came out wrong when computed by two threads: it is not.)
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import refiners.fluxion.layers as fl
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx  # pyright: ignore[reportUnknownVariableType]

Parameters = dict[str, Tensor]


def attention_by_matmul(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Attention as matmul, softmax, matmul: on CPU its backward pass is faster than the fused kernel's."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


@contextmanager
def plain_attention(*modules: nn.Module) -> Generator[None]:
    """Let every attention inside the modules use `attention_by_matmul` for a while."""
    everything = [layer for module in modules for layer in module.modules()]
    layers = [layer for layer in everything if isinstance(layer, fl.ScaledDotProductAttention)]
    before = [layer.dot_product for layer in layers]
    for layer in layers:
        layer.dot_product = attention_by_matmul
    try:
        yield
    finally:
        for layer, dot_product in zip(layers, before, strict=True):
            layer.dot_product = dot_product


@contextmanager
def parameters_replaced(module: nn.Module, parameters: Parameters) -> Generator[None]:
    """Compute with other tensors than the module's own parameters for a while (names as in `named_parameters`)."""
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in parameters}
    slots = [(owners[name]._parameters, name.rpartition(".")[2], name) for name in parameters]  # pyright: ignore[reportPrivateUsage]
    before = [slot[key] for slot, key, _ in slots]
    try:
        for slot, key, name in slots:
            slot[key] = cast(nn.Parameter, parameters[name])
        yield
    finally:
        for (slot, key, _), parameter in zip(slots, before, strict=True):
            slot[key] = parameter


def record(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """Record what `function` does to example arguments.

    Args:
        function: A function of tensors (or dicts of tensors); it must not depend on their values.
        examples: Arguments of the shapes that it will always be called with.

    Returns:
        The function, for these shapes only.
    """

    def getattr_by_position(self: fl.Module, name: str) -> Any:
        return nn.Module.__getattr__(self, name)

    # the recorder patches `nn.Module.__getattr__` and expects its arguments by position
    with patch.object(fl.Module, "__getattr__", getattr_by_position):
        return make_fx(function)(*examples)
