"""The state that a pass leaves in a model: one user at a time, and as new for each, whatever happened before."""

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from refiners.fluxion import layers as fl
from refiners.fluxion.layers.chain import ChainError

from style_aligned.models.model import Model

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

_locks: "WeakKeyDictionary[fl.Chain, AbstractContextManager[Any]]" = WeakKeyDictionary()
_locks_lock = threading.Lock()


@contextmanager
def exclusive_use(model: Model) -> Generator[None, None, None]:
    """Use a model alone: other threads wait, and what an exception has left in it is gone before and after.

    There are no gradients, and an error of a layer is raised as it is, without the layers around it.

    Args:
        model: The model.
    """
    with _lock(model.unet):
        reset(model)
        try:
            with torch.no_grad():
                yield
        except ChainError as error:
            reset(model)
            raise root_cause(error) from None
        except BaseException:  # an interruption too
            reset(model)
            raise


def reset(model: Model) -> None:
    """Put those contexts of a model back that Refiners resets at the end of a pass, but not after an exception.

    Args:
        model: The model.
    """
    for part in (model.clip_text_encoder, model.unet, model.lda):
        for layer in part.modules():
            if isinstance(layer, fl.Chain) and type(layer).init_context is not fl.Chain.init_context:
                for name, initial in layer.init_context().items():
                    layer.set_context(name, {**(layer.provider.get_context(name) or {}), **initial})


def root_cause(error: BaseException) -> BaseException:
    """Return the error of a layer, from that which Refiners' chains wrap around it."""
    while isinstance(error, ChainError) and error.__context__ is not None:
        error = error.__context__
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, maybe wrapped by Refiners' chains, says that there is not enough memory."""
    cause = root_cause(error)
    kinds = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))
    text = str(cause).lower()
    return isinstance(cause, kinds) or (
        isinstance(cause, RuntimeError) and any(sentence in text for sentence in OUT_OF_MEMORY)
    )


def _lock(unet: fl.Chain) -> AbstractContextManager[Any]:
    with _locks_lock:
        return _locks.setdefault(unet, threading.RLock())
