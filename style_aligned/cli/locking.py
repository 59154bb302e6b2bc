"""One run at a time in a folder."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def sole_use(folder: Path) -> Generator[None, None, None]:
    """Keep other runs out of a folder, for as long as the context lasts or the process lives.

    Two that write the same files could leave one half-written. Nothing is written for this. On Windows, and on network
    drives that know no locks, other runs are let in.

    Args:
        folder: The folder, which is made if need be, and taken away again if an error leaves it empty.

    Raises:
        ValueError: If another run is in it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"expected --output to be free, got {folder}, where another run is at work") from None
    except OSError:
        pass
    return descriptor
