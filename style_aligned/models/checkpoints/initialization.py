"""Layers without initial weights: for models whose weights come from a file."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.overrides import TorchFunctionMode


class NoInitialization(TorchFunctionMode):
    """Leave the weights of the layers that are built in this context as they are.

    On the meta device there is nothing to initialise anyway, but the first random number there makes torch import
    hundreds of its modules, which takes three times as long as building Stable Diffusion XL.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
