"""What a process asks of the supervisor, and the supervisor cannot read."""

from __future__ import annotations

import pickle

import pytest

import skate
from skate._runtime import current
from skate._task import RemoteFunction
from skate.engine.embedded.engine import EmbeddedEngine
from skate.exceptions import EngineError, ResourceError

pytest.importorskip("skate._core", reason="skate's C++ core is not built")


class OnlyHere:
    """Of a module that the supervisor does not find."""


@skate.remote(num_cpus=0.5)
def one() -> int:
    return 1


def test_a_task_whose_request_cannot_be_read_fails_and_others_go_on() -> None:
    assert isinstance(one, RemoteFunction)
    with skate.init("embedded", num_cpus=1):
        assert skate.get(one.remote(), timeout=60) == 1
        readable = one._spec.exported.resources
        one._spec.exported.resources = pickle.dumps(({OnlyHere(): 1.0}, None))
        with pytest.raises(
            ResourceError, match=r"request cannot be read: .*test_unreadable"
        ):
            skate.get(one.remote(), timeout=60)
        one._spec.exported.resources = readable
        assert skate.get(one.remote(), timeout=60) == 1


def test_a_question_that_cannot_be_read_is_refused() -> None:
    with skate.init("embedded", num_cpus=1):
        engine = current()
        assert isinstance(engine, EmbeddedEngine)
        with pytest.raises(
            EngineError, match=r"supervisor could not answer: .*test_unreadable"
        ):
            engine.ask(OnlyHere())
