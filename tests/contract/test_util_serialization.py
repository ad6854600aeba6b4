from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import identity

import skate
from skate.util import (
    deregister_serializer,
    inspect_serializability,
    register_serializer,
)

pytestmark = pytest.mark.usefixtures("engine")


class Connection:
    """Cannot be pickled by itself."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = threading.Lock()


def address_of(connection: Connection) -> str:
    return connection.address


@pytest.fixture
def registered() -> Iterator[None]:
    register_serializer(Connection, serializer=address_of, deserializer=Connection)
    yield
    deregister_serializer(Connection)


@pytest.mark.usefixtures("registered")
def test_a_registered_type_goes_through_put_tasks_and_containers() -> None:
    assert skate.get(skate.put(Connection("a"))).address == "a"
    found = skate.get(skate.remote(lambda c: c.address).remote(Connection("b")))
    assert found == "b"
    ref = skate.put({"in": [Connection("c")], "function": lambda: 1})
    assert skate.get(ref)["in"][0].address == "c"
    assert inspect_serializability(Connection("d"), print_file=io.StringIO())[0]


def test_without_a_registration_the_type_is_refused() -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match="lock"):
            skate.put(Connection("a"))
        deregister_serializer(Connection)  # nothing to do


def test_a_task_that_registers_the_type_returns_it() -> None:
    @skate.remote
    def connect(address: str) -> Connection:
        register_serializer(Connection, serializer=address_of, deserializer=Connection)
        return Connection(address)

    try:
        assert skate.get(connect.remote("there")).address == "there"
    finally:
        deregister_serializer(Connection)  # inline: the same process


def test_a_deserializer_may_be_a_lambda() -> None:
    register_serializer(
        Connection, serializer=address_of, deserializer=lambda a: f"to {a}"
    )
    try:
        assert skate.get(identity.remote([Connection("x")])) == ["to x"]
    finally:
        deregister_serializer(Connection)


@pytest.mark.parametrize("cls", [int, str, tuple, None, "Connection"])
def test_types_that_would_not_be_asked_for_are_refused(cls: Any) -> None:
    with pytest.raises(TypeError):
        register_serializer(cls, serializer=repr, deserializer=eval)


lock = threading.Lock()


def uses_lock() -> None:
    with lock:
        pass


def test_inspect_serializability_names_the_part_at_fault() -> None:
    report = io.StringIO()
    good, failures = inspect_serializability([1, {"a": "b"}], print_file=report)
    assert good
    assert failures == set()
    inner = threading.Lock()
    wrong = {"settings": [1, inner]}
    good, failures = inspect_serializability(wrong, name="wrong", print_file=report)
    (failure,) = failures
    assert not good
    assert failure.obj is inner
    assert failure.parent is wrong["settings"]
    assert failure.path == ("wrong", "['settings']", "[1]")
    assert "wrong -> ['settings'] -> [1]" in report.getvalue()


def test_inspect_serializability_looks_into_closures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = threading.Lock()

    def closure() -> Any:
        return inner

    good, failures = inspect_serializability(closure)
    assert not good
    assert [failure.obj for failure in failures] == [inner]
    assert "captured variable 'inner'" in capsys.readouterr().out


def test_functions_that_hold_refs_and_handles_can_be_pickled() -> None:
    ref = skate.put(1)

    def closure() -> Any:
        return ref

    assert inspect_serializability(closure, print_file=io.StringIO()) == (True, set())
