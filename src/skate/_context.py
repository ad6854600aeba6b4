"""Where the calling code runs: ids, names, resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._actor import ActorHandle
from ._placement import group_of, plain
from ._runtime import current

if TYPE_CHECKING:
    from .engine.protocol import Engine


class RuntimeContext:
    """Where the calling code runs; see ``get_runtime_context``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.context()
        self.namespace = engine.config.namespace

    def get_task_id(self) -> str | None:
        """The running task or actor call; None in the driver."""
        return self._hex(self._context.task_id)

    def get_actor_id(self) -> str | None:
        """The actor that runs this code; None outside of actors."""
        return self._hex(self._context.actor_id)

    def get_actor_name(self) -> str | None:
        """The name of the actor that runs this code; "" if it has none.

        None outside of actors.
        """
        actor_id = self._context.actor_id
        if not actor_id:
            return None
        actors = (a for a in self._engine.list_actors() if a.actor_id == actor_id)
        return next((actor.name or "" for actor in actors), "")

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle of the actor that runs this code.

        While it is held, in the actor itself too, the actor does not end by itself.

        Raises:
            RuntimeError: outside of actors.
        """
        found = self._engine.current_actor()
        if found is None:
            raise RuntimeError("current_actor is for code that runs in an actor.")
        return ActorHandle(found.actor, found.interface)

    def get_temp_dir(self) -> str:
        """Where programs may put temporary files; skate has none of its own."""
        import tempfile

        return tempfile.gettempdir()

    def get_worker_id(self) -> str | None:
        """The worker that runs this code; None in the driver."""
        return self._hex(self._context.worker_id)

    def get_job_id(self) -> str:
        """The session: the same for everything that it runs."""
        return self._engine.session

    def get_node_id(self) -> str:
        """This machine, as in ``nodes()``."""
        return self._engine.node_id

    def get_session_name(self) -> str:
        """The session's name, for people."""
        return f"session_{self._engine.session}"

    def get_task_function_name(self) -> str | None:
        """The same as ``get_task_name``, which may have been given as an option."""
        return self._context.task_name or None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task, or this actor, holds; nothing in the driver."""
        return plain(self._engine.assigned_resources())

    def get_placement_group_id(self) -> str | None:
        """The placement group of the running task or this actor, if any."""
        return group_of(self._engine.assigned_resources())

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """``{"GPU": [...]}``: the GPUs of the running task or this actor."""
        return {"GPU": [str(gpu) for gpu in self._engine.gpus()]}

    @property
    def runtime_env(self) -> dict[str, Any]:
        """That of the running task, or this actor, with what ``init`` was given."""
        return self._engine.runtime_env().as_dict()

    def get_runtime_env_string(self) -> str:
        """``runtime_env`` as JSON."""
        import json

        return json.dumps(self.runtime_env, sort_keys=True)

    def get_node_labels(self) -> dict[str, str]:
        """Labels of this machine: none."""
        return {}

    @property
    def gcs_address(self) -> str:
        """Empty: there is no server to connect to."""
        return ""

    def get(self) -> dict[str, Any]:
        """The ids and names that there are, as a dict."""
        found = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
            "task_id": self.get_task_id(),
            "actor_id": self.get_actor_id(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def get_task_name(self) -> str | None:
        """``module.function`` or ``module.Class.method``; None in the driver."""
        return self._context.task_name or None

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """True in an actor that has been restarted."""
        return self._context.num_restarts > 0

    def is_canceled(self) -> bool:
        """Whether ``skate.cancel`` was called for the running task.

        Raises:
            RuntimeError: in an async actor, whose calls get a CancelledError instead.
        """
        return self._engine.is_cancelled()

    @staticmethod
    def _hex(number: int) -> str | None:
        return f"{number:032x}" if number else None


def get_runtime_context() -> RuntimeContext:
    """Ids and names of the task and actor in which it is called."""
    return RuntimeContext(current())


def get_gpu_ids() -> list[int | str]:
    """The GPUs of the calling task or actor; none in the driver.

    Numbers; or if the driver was started with ``CUDA_VISIBLE_DEVICES``, what that
    names, as strings.
    """
    return list(current().gpus())
