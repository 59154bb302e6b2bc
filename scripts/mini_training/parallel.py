"""Gradients of a batch in parts, each on a thread of its own.

On a CPU that is shared with others, one operation split over several cores waits for the slowest of them thousands of
times in a step. Parts of the batch meet once in a step.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from scripts.mini_training.tracing import record


def count_workers(threads: int, batch_size: int) -> int:
    """Return the most workers for some threads that share the sheets of a batch evenly, which are half of its size."""
    return max(count for count in range(1, threads + 1) if batch_size // 2 % count == 0)


class Workers:
    """Computes losses and gradients of parts of a batch at the same time.

    Args:
        count: How many threads; one means none besides the caller's.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def prepare(self, loss: Callable[..., Tensor], *arguments: object) -> Callable[..., Tensor]:
        """Return a loss that several threads can compute at once, for batches of one shape.

        Args:
            loss: A function of tensors; it must not depend on their values.
            arguments: Those it will be called with, of which the tensors are a whole batch.
        """
        if self.pool is None:
            return loss
        parts = (value.chunk(self.count)[0] if isinstance(value, Tensor) else value for value in arguments)
        return record(loss, *parts)

    def backward(
        self,
        loss: Callable[..., Tensor],
        parameters: Sequence[torch.nn.Parameter],
        *batch: Tensor,
        passed: Sequence[object] = (),
    ) -> Tensor:
        """Set the parameters' gradients to those of the mean loss over the parts.

        Args:
            loss: The loss of a part of the batch, called with `passed` and the part of each tensor.
            parameters: What to derive by.
            batch: Tensors whose first dimension is the batch, divisible by the number of workers.
            passed: Arguments before those tensors, the same for every part.

        Returns:
            The mean loss.
        """

        def part(*tensors: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            value = loss(*passed, *tensors)
            return value.detach(), torch.autograd.grad(value, parameters)

        if self.pool is None:
            results = [part(*batch)]
        else:
            parts = [tensor.chunk(self.count) for tensor in batch]
            assert len({len(part) for part in parts[0]}) == 1, "parts of one size, whose mean is the batch's"
            results = list(self.pool.map(part, *parts))
        for i, parameter in enumerate(parameters):
            gradient = results[0][1][i]
            for _, others in results[1:]:
                gradient = gradient + others[i]
            parameter.grad = gradient / len(results)
        return torch.stack([value for value, _ in results]).mean()
