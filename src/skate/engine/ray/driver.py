"""The driver's side: find or start Ray, connect to it, and let go of it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...exceptions import EngineError

if TYPE_CHECKING:
    from ..protocol import Engine, EngineConfig

_LOOK_S = 5.0  # to find out whether something listens at an address
_RESOURCES = {"num_cpus", "num_gpus", "resources", "object_store_memory"}


def open(config: EngineConfig) -> Engine:  # noqa: A001 - every engine has `open`
    """Connect to a Ray cluster, or start Ray on this machine; become its driver.

    Raises:
        EngineError: Ray is not installed, or there is no such cluster, or it runs
            another version of Ray or Python.
        ValueError: the caller gave resources, which a cluster that runs has already.
    """
    ray = _import_ray()
    session = secrets.token_hex(6)
    namespace = config.namespace or f"skate-{session}"
    was_connected = ray.is_initialized()
    if was_connected:
        _refuse_resources(config, "this process is connected to Ray already")
        _refuse_other_address(config, ray.get_runtime_context().gcs_address)
    elif config.address in (None, "local"):
        _start(ray, config, namespace)
    else:
        _connect(ray, config, namespace)
    from . import worker
    from .engine import RayEngine

    total = ray.cluster_resources()
    config = replace(config, num_cpus=int(total.get("CPU", 0)))
    path = tuple(os.path.abspath(p) if p else os.getcwd() for p in sys.path)
    engine = RayEngine(worker.Home(session, config, path), is_driver=True)
    if not was_connected:
        engine.on_shutdown = ray.shutdown
    return engine


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EngineError(
            "engine='ray' needs Ray, which is not installed here: pip install "
            "'skate[ray]'."
        ) from error
    return ray


def _refuse_resources(config: EngineConfig, why: str) -> None:
    given = sorted(_RESOURCES & config.given)
    if given:
        raise ValueError(
            f"{', '.join(given)}: {why}, and a cluster has the resources that it was "
            "started with. Leave these arguments out, or start another Ray."
        )


def _refuse_other_address(config: EngineConfig, connected_to: str) -> None:
    if config.address not in (None, "auto", connected_to):
        raise ValueError(
            f"address={config.address!r}: this process is connected to Ray at "
            f"{connected_to!r} already. Leave the address out, or ray.shutdown() first."
        )


def _start(ray: Any, config: EngineConfig, namespace: str) -> None:
    """Ray on this machine alone; it ends with the session."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        resources=dict(config.resources),
        object_store_memory=config.object_store_memory,
        include_dashboard=False,
        runtime_env=config.runtime_env.as_dict() or None,
        **_common(config, namespace),
    )


def _connect(ray: Any, config: EngineConfig, namespace: str) -> None:
    address = config.address
    assert address is not None
    _refuse_resources(config, f"there is a cluster at {address!r}")
    if address.startswith("ray://"):
        raise EngineError(
            f"address={address!r}: skate does not go through Ray Client. Run the "
            "program on a machine of the cluster, or one that its nodes can reach, "
            "and give the address of its head: 'host:6379'."
        )
    from . import ship

    try:
        if address != "auto":
            _check_listens(address)
            _check_versions(ray, address)
        with ship.shipment() as shipped:
            given = config.runtime_env.as_dict()
            modules = [*shipped["py_modules"], *given.get("py_modules", ())]
            ray.init(
                address=address,
                runtime_env={**given, "py_modules": modules},
                **_common(config, namespace),
            )
    except EngineError:
        raise
    except ray.exceptions.AuthenticationError as error:
        raise EngineError(
            f"the Ray cluster at {address!r} asks for a token. Set RAY_AUTH_MODE=token "
            "and give the token of its head node, in RAY_AUTH_TOKEN or in "
            "~/.ray/auth_token."
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise EngineError(f"cannot join the Ray cluster at {address!r}: {error}") from (
            error
        )


def _common(config: EngineConfig, namespace: str) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "log_to_driver": config.log_to_driver,
        "logging_level": logging.ERROR,
    }


def _check_listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"address={address!r}: give the host and port of the cluster's head, such "
            "as '10.0.0.1:6379'; or 'auto' for a Ray that runs on this machine."
        )
    try:
        socket.create_connection((host, int(port)), _LOOK_S).close()
    except OSError as error:
        raise EngineError(
            f"nothing answers at {address!r} ({error}). Start a cluster there with "
            "'ray start --head', or leave the address out: then skate starts Ray on "
            "this machine."
        ) from error


def _check_versions(ray: Any, address: str) -> None:
    """Compare before connecting: Ray itself looks later, and says less."""
    from ray._common.usage.usage_lib import get_cluster_metadata

    theirs = get_cluster_metadata(ray._raylet.GcsClient(address=address))
    here = {"ray": ray.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    there = {"ray": theirs["ray_version"], "python": theirs["python_version"]}
    if here["ray"] != there["ray"] or _minor(here["python"]) != _minor(there["python"]):
        raise EngineError(
            f"the cluster at {address!r} runs Ray {there['ray']} on Python "
            f"{there['python']}; this process has Ray {here['ray']} on Python "
            f"{here['python']}. They must be the same: pip install "
            f"'ray=={there['ray']}' under Python {there['python']}."
        )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
