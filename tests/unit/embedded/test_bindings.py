"""The bindings hold against values and callers that they were not made for."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import textwrap
import threading
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.polling import wait_until

import skate
from skate.engine.protocol import MethodSpec

_core = pytest.importorskip("skate._core", reason="skate's C++ core is not built")


@pytest.fixture
def node() -> Iterator[Any]:
    skate.init(num_cpus=1, engine="embedded")
    from skate import _runtime

    yield _runtime.current().node  # type: ignore[attr-defined]
    skate.shutdown()


@skate.remote
def never(seconds: float) -> None:
    threading.Event().wait(seconds)


@skate.remote
def same(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def test_a_timeout_far_below_zero_is_over(node: Any) -> None:
    ref = never.remote(1000)
    with pytest.raises(skate.exceptions.GetTimeoutError):
        node.get([ref], -1e300, False)
    assert node.wait([ref], 1, -math.inf) == ([], [ref])
    skate.cancel(ref, force=True)


def test_a_timeout_that_is_no_number_is_refused(node: Any) -> None:
    ref = skate.put(1)
    with pytest.raises(ValueError, match="nan"):
        node.get([ref], math.nan, False)
    with pytest.raises(ValueError, match="nan"):
        node.wait([ref], 1, math.nan)


def test_what_is_no_ref_is_refused_and_not_read(node: Any) -> None:
    with pytest.raises(TypeError, match="ObjectRef, not int"):
        node.get([1], None, False)
    with pytest.raises(TypeError, match="ObjectRef, not list"):
        node.cancel([], False, False)
    watch = node.watch()
    with pytest.raises(TypeError, match="ObjectRef, not str"):
        watch.add("x" * 100, 1)


@pytest.mark.parametrize("many", [2**31, 2**40, 2**80])
def test_numbers_of_a_call_that_do_not_fit_are_refused(node: Any, many: int) -> None:
    with pytest.raises(ValueError, match="num_returns must be from"):
        same.options(num_returns=many).remote()
    with pytest.raises(ValueError, match="max_retries must be from"):
        same.options(max_retries=many).remote()
    assert node.statistics()["pending_tasks"] == 0


class _Adds:
    """Pickled, it adds a keyword to the call that it is in."""

    def __init__(self, to: dict[str, Any]) -> None:
        self.to = to

    def __reduce__(self) -> Any:
        for i in range(100):
            self.to[f"new{i}"] = i
        return (str, ("done",))


def test_keywords_that_change_while_they_are_pickled_are_refused(node: Any) -> None:
    exported = types.SimpleNamespace()
    node.export_function(b"", [], exported)
    function = exported.function_id
    kwargs: dict[str, Any] = {}
    kwargs["a"] = _Adds(kwargs)
    with pytest.raises(RuntimeError, match="changed while"):
        node.submit(function, False, "", (), kwargs, 1, 0, None, 0, 0)
    assert node.statistics()["pending_tasks"] == 0


def test_a_ref_met_twice_is_refused_in_a_list_that_was_waited_for(node: Any) -> None:
    # Of three refs in a row, the middle one twice has the sum of the outer ones.
    refs = [skate.put(i) for i in range(400)]
    by_address = sorted(refs, key=id)
    near = {id(ref): ref for ref in refs}
    for first, last in zip(by_address, by_address[2:], strict=False):
        middle = near.get((id(first) + id(last)) // 2)
        if middle is not None and middle is not first:
            break
    else:
        pytest.fail("no three refs at equal distances, of 400 that were made in a row")
    waited = [first, last]
    skate.wait(waited, num_returns=2)
    waited[:] = [middle, middle]
    with pytest.raises(ValueError, match="one twice"):
        skate.wait(waited, num_returns=2)


def _fails_to_load() -> Any:
    raise RuntimeError("not loaded")


class _Unloadable:
    def __reduce__(self) -> Any:
        return (_fails_to_load, ())


def test_a_traceback_keeps_no_view_of_a_value_that_may_go(node: Any) -> None:
    ref = skate.put(_Unloadable())
    with pytest.raises(RuntimeError, match="not loaded") as caught:
        skate.get(ref)
    del ref
    gc.collect()
    views = [
        value
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        for value in frame.f_locals.values()
        if isinstance(value, memoryview)
    ]
    assert views
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)


def _line_in(thread: threading.Thread, function: Any) -> int | None:
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None or frame.f_code is not function.__code__:
        return None
    return frame.f_lineno - function.__code__.co_firstlineno


def test_a_watch_that_is_closed_wakes_who_waits_and_takes_no_more(node: Any) -> None:
    watch = node.watch()
    done = skate.put(1)
    watch.add(done, 7)
    tags: list[int] = []
    watch.next(None, tags)
    assert tags == [7]
    late = never.remote(1000)
    watch.add(late, 8)
    told: list[int] = []

    def wait() -> None:
        watch.next(None, told)
        tags.append(8)  # it has returned

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert wait_until(lambda: _line_in(waiter, wait) == 1)
    watch.close()
    with pytest.raises(ValueError, match="closed"):
        watch.add(done, 9)
    waiter.join(timeout=20)
    assert (tags, told) == ([7, 8], [])
    skate.cancel(late, force=True)


def test_the_core_reads_the_fields_of_a_method_where_they_are() -> None:
    assert MethodSpec._fields == _core.METHOD_FIELDS


def test_a_process_that_cannot_be_has_no_address(node: Any) -> None:
    node.alive_word(_core.MAX_PROCS - 1)
    with pytest.raises(IndexError):
        node.alive_word(_core.MAX_PROCS)


def test_a_large_value_is_named_by_a_line_in_a_file_that_is_not_utf8(
    tmp_path: Path,
) -> None:
    script = bytes(tmp_path) + b"/caf\xe9.py"
    code = """
        import skate
        skate.init(num_cpus=1, object_store_memory=64 << 20)
        held = [skate.put(b"x" * (20 << 20)), skate.put(b"y" * (20 << 20))]
        from skate import _runtime
        node = _runtime.current().node
        print([block["label"] for block in node.list_blocks()
               if block["size"] > 1 << 20])
        """
    with open(script, "w") as file:
        file.write(textwrap.dedent(code))
    out = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True
    ).stdout
    assert out.count(".py:4 (<module>)") == 2
