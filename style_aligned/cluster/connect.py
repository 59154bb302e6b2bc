"""A Ray cluster to work with: one that is there, or one of this machine that lasts as long as it is used."""

import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what newer versions do: else there is a warning about it
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster of ours reports nothing
    "RAY_worker_niceness": "0",  # its workers are what the user waits for
}
TIMEOUT = 5.0  # seconds; Ray itself tries for minutes
EXTRA = "pip install 'style-aligned[ray]'"


class ClusterError(ValueError):
    """A cluster cannot be used, or has no worker left."""


@contextmanager
def connect(address: str | None = None, *, cpus: int | None = None) -> Generator[Any, None, None]:
    """Connect to a Ray cluster, or start one on this machine and stop it in the end.

    A connection that the program has already is used, and kept.

    Args:
        address: The address of a cluster: `host:port`, `ray://host:port`, or `auto` for the one of this machine. None
            starts one.
        cpus: The number of CPUs of a cluster to be started. None means those of the machine.

    Yields:
        The module `ray`.

    Raises:
        ClusterError: If Ray is not installed, no cluster is there, or it has another version of Ray or of Python.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        _check_address(address)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    if address is None:
        options["num_cpus"] = cpus
    else:
        options = {"address": address, "log_to_driver": False, "configure_logging": False}
    try:
        ray.init(**options)
    except Exception as error:  # of Ray, of gRPC, of the network: each has its own
        where = "a Ray cluster on this machine" if address is None else f"a Ray cluster at {address}"
        raise ClusterError(f"expected {where}, got: {one_line(error)}") from error
    _silence(ray)
    try:
        yield ray
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        ClusterError: If it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ClusterError(f"expected Ray to be installed, which hands work to workers: {EXTRA}") from None
    module: Any = ray
    return module


def one_line(error: BaseException, length: int = 300) -> str:
    """Return what an error says in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _check_address(address: str) -> None:
    """Check that somebody listens at an address."""
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.scheme not in ("", "ray"):
        raise ClusterError(
            "expected the address of a Ray cluster such as 10.0.0.1:6379, ray://10.0.0.1:10001 or auto, got"
            f" {address!r}"
        )
    try:
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ClusterError(f"expected a Ray cluster at {address}, got none there: {reason}") from None


def _silence(ray: Any) -> None:
    """Keep Ray from writing a page to standard output for each lost worker: the pool says so in one line."""
    with suppress(AttributeError):
        assert callable(ray._private.worker.print_to_stdstream)
        ray._private.worker.print_to_stdstream = _ignore


def _ignore(*_: Any, **__: Any) -> None:
    pass
