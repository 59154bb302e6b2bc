import socket
import sys
import time
from types import SimpleNamespace

import pytest

from style_aligned.cluster.connect import ClusterError, connect


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ClusterError, match=r"expected Ray to be installed.*: pip install 'style-aligned\[ray\]'"),
        connect(),
    ):
        pass


def stub(monkeypatch: pytest.MonkeyPatch, reason: str = "") -> None:
    def init(**_: object) -> None:
        raise RuntimeError(reason)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))


@pytest.mark.parametrize("address", ["nowhere", "10.0.0.1", "http://10.0.0.1:6379", "10.0.0.1:port", ":6379", ""])
def test_addresses_that_are_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)
    with pytest.raises(ClusterError, match="expected the address of a Ray cluster such as"), connect(address):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_at_an_address(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(ClusterError, match=f"expected a Ray cluster at {address}, got none there: "), connect(address):
        pass
    assert time.monotonic() - start < 5


def test_a_cluster_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.1\n")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ClusterError) as error, connect(address):
            pass
    assert str(error.value) == (
        f"expected a Ray cluster at {address}, got: "
        "Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.10.1"
    )
