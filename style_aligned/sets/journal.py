"""The journal of a set: changes, a line each, that `set.json` has not taken in yet."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from style_aligned.files import sync

JOURNAL_FILE = "set.journal"


class Journal:
    """The journal of a set that is open for writing.

    A change is on the disk when `append` returns. The last line of a journal may be incomplete, if the process was
    killed while it wrote: it is left out when the journal is read.
    """

    def __init__(self, folder: Path, number: int) -> None:
        """Start a journal.

        Args:
            folder: The set's folder.
            number: The number by which `set.json` knows its journal.
        """
        self.path = folder / JOURNAL_FILE
        self.number = number
        self._file: BinaryIO | None = None

    def append(self, change: Mapping[str, Any]) -> None:
        """Write a change. The first one makes the file."""
        if self._file is None:
            self._file = self.path.open("wb")
            self._write({"journal": self.number})
        end = self._file.tell()
        try:
            self._write(change)
            sync(self._file)
        except OSError:
            self._file.seek(end)
            self._file.truncate()  # such as on a full disk: the next change starts on a line of its own
            raise

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written."""
        return self._file is None

    def close(self) -> None:
        """Close the file and remove it: `set.json` has taken it in."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, change: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(change, ensure_ascii=False).encode() + b"\n")


def read_journal(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """Yield the changes of a journal, one at a time.

    Args:
        folder: The set's folder.
        number: The number of the journal that continues `set.json`. One of another number was taken in already.
    """
    try:
        file = (folder / JOURNAL_FILE).open("rb")
    except FileNotFoundError:
        return
    with file:
        for index, line in enumerate(file):
            try:
                change: Any = json.loads(line)
            except ValueError:
                return
            # a line without its end may be incomplete
            if not line.endswith(b"\n") or not isinstance(change, dict):
                return
            change = cast(dict[str, Any], change)
            if index > 0:
                yield change
            elif change.get("journal") != number:
                return
