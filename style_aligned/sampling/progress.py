"""A bar that shows how far a chunk of images is."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress


@contextmanager
def show_progress(
    wanted: bool, total: int, chunk: range, count: int, on_step: Callable[[int], None] | None
) -> Generator[Callable[[int], None], None, None]:
    """Show a bar while some images are drawn.

    Args:
        wanted: Whether to show it.
        total: The number of steps of all the images together.
        chunk: Which images they are.
        count: The number of images there are.
        on_step: What else to call as steps get done.

    Yields:
        What to call as steps get done, with the number of images that have done one.
    """
    if not wanted:
        yield on_step or (lambda _: None)
        return
    from rich.errors import LiveError
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, transient=chunk.stop < count)
    task = bar.add_task(f"images {chunk.start + 1} to {chunk.stop} of {count}", total=total)

    def advance(images: int) -> None:
        bar.advance(task, images)
        if on_step is not None:
            on_step(images)

    with suppress(LiveError):  # a bar of another model is shown already
        bar.start()
    try:
        yield advance
    finally:
        bar.stop()
