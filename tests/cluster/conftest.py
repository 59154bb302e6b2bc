"""A Ray cluster on this machine, for tests that are marked slow: it takes seconds to start."""

from collections.abc import Iterator
from typing import Any

import pytest

from style_aligned.cluster.connect import connect


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    with connect(cpus=2) as module:
        yield module
