"""``init`` and ``shutdown`` with Ray's arguments."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import skate

# Ray's, without effect here: there is no dashboard, no cluster, and nothing is logged.
_ACCEPTED = {
    "cgroup_path",
    "configure_logging",
    "dashboard_host",
    "dashboard_port",
    "include_dashboard",
    "labels",
    "logging_config",
    "logging_format",
    "logging_level",
    "system_reserved_cpu",
    "system_reserved_memory",
    "_enable_object_reconstruction",
    "_memory",
    "_metrics_export_port",
    "_node_ip_address",
    "_node_name",
    "_object_spilling_directory",
    "_plasma_directory",
    "_redis_password",
    "_redis_username",
    "_skip_env_hook",
    "_system_config",
    "_temp_dir",
    "_tracing_startup_hook",
}

# Ray's, refused unless they have the value that means "off".
_REFUSED: dict[str, tuple[Any, str]] = {
    "local_mode": (False, "use skate.init(engine='inline') for one process"),
    "job_config": (None, "it configures jobs of a cluster"),
    "enable_resource_isolation": (False, "skate makes no cgroups"),
    "proxy_server_url": (None, "there is no dashboard"),
}


class Context:
    """What ``init`` returns: as in Ray a mapping, and a context manager."""

    dashboard_url = ""
    python_version = platform.python_version()
    ray_version = "2.60.0"

    def __init__(self, session: skate.Session) -> None:
        self._session = session
        self.address_info: dict[str, Any] = {
            "address": "local",
            "node_id": skate.nodes()[0]["NodeID"],
            "node_ip_address": "127.0.0.1",
            "webui_url": "",
        }

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __len__(self) -> int:
        return len(self.address_info)

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        return self.address_info.get(key, default)

    def keys(self) -> Any:
        """As of a dict."""
        return self.address_info.keys()

    def disconnect(self) -> None:
        """The same as ``shutdown``."""
        self._session.disconnect()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"Context({self._session!r})"


def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    **others: Any,
) -> Context:
    """``ray.init`` on skate. Arguments that have no effect on one machine are accepted.

    Raises:
        ValueError: an argument asks for what skate does not have.
        RuntimeError: the argument is unknown, or skate runs already.
    """
    if address not in (None, "local"):
        raise ValueError(
            f"ray.init(address={address!r}): skate runs on this machine and joins no "
            "cluster. Leave address out, or use skate.init(engine='ray', ...)."
        )
    for name, value in others.items():
        if name in _ACCEPTED:
            continue
        if name not in _REFUSED:
            raise RuntimeError(f"unknown argument of ray.init: {name}={value!r}.")
        off, advice = _REFUSED[name]
        if value != off:
            raise ValueError(
                f"ray.init({name}={value!r}) is not possible on skate: {advice}."
            )
    session = skate.init(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=resources,
        object_store_memory=object_store_memory,
        namespace=namespace,
        runtime_env=runtime_env,
        log_to_driver=log_to_driver is not False,
        ignore_reinit_error=ignore_reinit_error,
    )
    return Context(session)


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """``ray.timeline``: the events, or written to a file of that name."""
    if filename is not None:
        skate.timeline(filename)
        return None
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        skate.timeline(file.name)
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
        return events


def shutdown(_exiting_interpreter: bool = False, **wait: Any) -> None:
    """``ray.shutdown``: everything has ended when it returns."""
    skate.shutdown()
