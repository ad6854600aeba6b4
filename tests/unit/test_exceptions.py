from __future__ import annotations

import errno
import json
import pickle
from typing import Any

import pytest

from skate import exceptions
from skate.exceptions import SkateError, TaskError

MADE: list[SkateError] = [
    exceptions.TaskError("failed", task_name="f", remote_traceback="text"),
    exceptions.TaskError.of(ValueError("x", 1), "f", "text"),
    exceptions.RankDiedError("rank 2 died", 2),
    exceptions.CollectiveTimeoutError("too late", [0, 3]),
    *(
        getattr(exceptions, name)("what happened")
        for name in exceptions.__all__
        if name != "RemoteTraceback"
    ),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: SkateError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    for name in ("task_name", "remote_traceback", "rank", "missing_ranks"):
        assert getattr(again, name, None) == getattr(error, name, None)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_can_be_made_without_its_init(error: SkateError) -> None:
    # As tblib does, which dask.distributed installs as the way to pickle exceptions.
    kind = type(error)
    assert type(kind.__new__(kind, *error.args)) is kind


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (exceptions.GetTimeoutError, TimeoutError),
        (exceptions.CollectiveTimeoutError, TimeoutError),
        (exceptions.ResourceError, ValueError),
        (exceptions.ActorAlreadyExistsError, ValueError),
        (exceptions.ShapeMismatchError, ValueError),
        (exceptions.ObjectStoreFullError, MemoryError),
        (exceptions.EngineError, RuntimeError),
        (exceptions.DeadlockError, RuntimeError),
        (exceptions.ActorDiedError, exceptions.ActorError),
        (exceptions.OwnerDiedError, exceptions.ObjectLostError),
        (exceptions.OutOfDiskError, exceptions.ObjectStoreFullError),
    ],
)
def test_an_error_is_also_what_it_resembles(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)


class SlottedError(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


CAUSES: list[tuple[Exception, dict[str, Any]]] = [
    (ValueError(), {}),
    (KeyError("key"), {}),
    (OSError(errno.ENOENT, "gone", "file.txt"), {"errno": 2, "filename": "file.txt"}),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), {"start": 0, "reason": "bad"}),
    (ImportError("no", name="mod", path="p"), {"name": "mod", "path": "p"}),
    (json.JSONDecodeError("bad", "{", 1), {"pos": 1, "doc": "{"}),
    (SlottedError(4), {"code": 4}),
    (exceptions.ActorDiedError("dead"), {}),
    (exceptions.CollectiveTimeoutError("late", (1,)), {"missing_ranks": (1,)}),
    (exceptions.RankDiedError("dead", 1), {"rank": 1}),
]


@pytest.mark.parametrize(
    ("cause", "attributes"), CAUSES, ids=[type(cause).__name__ for cause, _ in CAUSES]
)
def test_a_task_error_looks_like_its_cause(
    cause: Exception, attributes: dict[str, Any]
) -> None:
    error = TaskError.of(cause, "module.f", "the text")
    assert isinstance(error, type(cause))
    assert str(error) == str(cause)
    assert error.args == cause.args
    assert error.cause is cause
    for name, value in attributes.items():
        assert getattr(error, name) == value
    assert type(error).__name__ == f"TaskError({type(cause).__name__})"


@pytest.mark.parametrize("kind", [MemoryError, exceptions.ObjectStoreFullError])
def test_a_task_that_ran_out_of_memory_fails_as_such(kind: type[Exception]) -> None:
    error = TaskError.of(kind("no room"), "f", "frames")
    assert isinstance(error, kind)
    assert str(error) == "no room"


def test_the_class_for_a_cause_is_made_once() -> None:
    first, second = (TaskError.of(ValueError(i), "f", "") for i in range(2))
    assert type(first) is type(second)


class CleverError(Exception):
    def __new__(cls, *args: object, must: int) -> CleverError:
        return super().__new__(cls, *args)

    def __init__(self, *args: object, must: int) -> None:
        super().__init__(*args)


@pytest.mark.parametrize(
    "cause",
    [
        CleverError("x", must=1),
        StopIteration("x"),
        SystemExit("x"),
        KeyboardInterrupt("x"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_a_cause_that_cannot_be_imitated_is_described(cause: BaseException) -> None:
    error = TaskError.of(cause, "module.f", "")
    assert type(error) is TaskError
    assert error.cause is cause
    assert str(error) == f"task module.f raised {type(cause).__name__}: x"


def test_the_remote_traceback_is_shown_above_the_local_one() -> None:
    error = TaskError.of(ValueError("x"), "f", "line one\nline two")
    assert str(error.__cause__) == '\n"""\nline one\nline two\n"""'
