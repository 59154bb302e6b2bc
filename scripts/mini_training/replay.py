"""Gradients on a GPU, without waiting for Python: a CUDA graph for each shape of a batch, recorded once and replayed.

A small model's operations take a GPU less time than Python takes to ask for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.mini_training.tracing import record


@dataclass
class Recording:
    """A CUDA graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: list[Tensor]
    loss: Tensor
    gradients: list[Tensor]


class Replay:
    """Computes losses and gradients as `Workers` does, on a GPU.

    Args:
        is_compiled: Whether to let PyTorch fuse operations first, which takes minutes at the start.
    """

    def __init__(self, is_compiled: bool = False) -> None:
        self.is_compiled = is_compiled
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_cudnn_sdp(False)  # it can be neither recorded nor compiled
        self.stream = torch.cuda.Stream()  # one for all, as each parameter remembers on which its gradients came
        self.recordings: dict[tuple[torch.Size, ...], Recording] = {}

    def prepare(self, loss: Callable[..., Tensor], *arguments: object) -> Callable[..., Tensor]:
        """Return a loss that can be recorded, for batches of one shape.

        Args:
            loss: A function of tensors; it must not depend on their values.
            arguments: Those it will be called with.
        """
        if not self.is_compiled:
            return loss
        return torch.compile(record(loss, *arguments))  # pyright: ignore[reportUnknownMemberType]

    def backward(
        self,
        loss: Callable[..., Tensor],
        parameters: Sequence[torch.nn.Parameter],
        *batch: Tensor,
        passed: Sequence[object] = (),
    ) -> Tensor:
        """Set the parameters' gradients to those of the loss. They are valid until the next batch of those shapes.

        Args:
            loss: The loss of a batch, called with `passed` and the batch. It must be the same function each time.
            parameters: What to derive by. They must be the same tensors each time.
            batch: Tensors of a batch.
            passed: Arguments before those tensors, the same each time.

        Returns:
            The loss.
        """
        shapes = tuple(tensor.shape for tensor in batch)
        if shapes not in self.recordings:
            self.recordings[shapes] = self._record(loss, parameters, batch, passed)
        recording = self.recordings[shapes]
        for own, given in zip(recording.batch, batch, strict=True):
            own.copy_(given)
        recording.graph.replay()
        for parameter, gradient in zip(parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss.clone()

    def _record(
        self,
        loss: Callable[..., Tensor],
        parameters: Sequence[torch.nn.Parameter],
        batch: Sequence[Tensor],
        passed: Sequence[object],
    ) -> Recording:
        own = [tensor.clone() for tensor in batch]

        def gradients() -> tuple[Tensor, list[Tensor]]:
            value = loss(*passed, *own)
            derived = torch.autograd.grad(value, parameters)
            return value.detach(), [gradient.contiguous() for gradient in derived]  # as optimizers want parameters

        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # the first passes, in which libraries choose, cannot be recorded
            for _ in range(3):
                gradients()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            value, derived = gradients()
        return Recording(graph, own, value, derived)
