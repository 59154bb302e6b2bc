"""Sets of any size take the same memory."""

import gc
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from style_aligned import Style, generate
from style_aligned.models.mini import Mini


class LiveTensors(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive, of those that any operation gives, without the weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.counted = {weight.untyped_storage().data_ptr() for weight in weights}
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.counted:
                    weakref.finalize(storage, self.forget, storage.data_ptr(), storage.nbytes())
                    self.counted.add(storage.data_ptr())
                    self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        return result

    def forget(self, pointer: int, nbytes: int) -> None:
        self.counted.remove(pointer)
        self.bytes -= nbytes


@pytest.mark.slow
@pytest.mark.parametrize("is_complete", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_memory_is_flat(model: Mini, is_complete: bool) -> None:
    def measure(count: int) -> int:
        style = Style.from_prompt(model, "a fox, neon sign", num_inference_steps=2, size=(64, 64))
        if is_complete:
            style.complete()
        pictures: list[weakref.ref[Any]] = []
        gc.collect()
        with LiveTensors(model.parameters()) as tensors:
            for sample in generate(model, style, ["a dog"] * count, batch_size=2, chunk_size=4):
                pictures.append(weakref.ref(sample.image))
                assert sum(picture() is not None for picture in pictures) <= 2
        return tensors.peak

    one_batch, large = measure(2), measure(24)
    assert measure(8) == large
    assert large < 1.2 * one_batch  # with the rest of a chunk: latents, embeddings, and what solvers hold
