"""Workers that draw nothing. They are in a module of their own, which is all that their processes import."""

import os
import signal
import time
from pathlib import Path


class Counter:
    """Returns what it is given, and notes in a folder what it was called with."""

    def __init__(self, folder: str, seconds: float = 0.0) -> None:
        self.folder = Path(folder)
        self.seconds = seconds

    def start(self) -> int:
        return os.getpid()

    def double(self, number: int) -> tuple[int, int]:
        time.sleep(self.seconds)
        (self.folder / f"{number}-{time.monotonic_ns()}").touch()
        return 2 * number, os.getpid()

    def refuse(self, number: int) -> int:
        raise ValueError(f"expected another number,\ngot {number}")

    def end(self, number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number


class Broken(Counter):
    """Cannot be started: at all, or for all but the first that tries."""

    def start(self) -> int:
        try:
            (self.folder / "first").touch(exist_ok=self.seconds == 0)
        except FileExistsError:
            raise ValueError("no such model:\nfox.safetensors") from None
        if self.seconds == 0:
            raise ValueError("no such model:\nfox.safetensors")
        return super().start()


class Ending(Counter):
    """Ends before it has started."""

    def start(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0
