"""The pytest plugin, run on tests of its own in another process."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]
pytest.importorskip("skate._core", reason="skate's C++ core is not built")

COMMON = """
import os
import threading

import pytest
import skate

kept = []

@skate.remote
def square(x):
    return x * x

@skate.remote
class Counter:
    def pid(self):
        return os.getpid()
"""


def run(pytester: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(COMMON + tests)
    return pytester.runpytest_subprocess(
        "-p", "skate.testing.plugin", "-p", "no:cacheprovider", *arguments
    )


def test_tests_share_one_session(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_first(skate_session):
            assert skate.get(square.remote(3)) == 9
            kept.append(skate_session)

        def test_second(skate_session):
            assert skate_session is kept[0]
            assert skate_session.engine == "embedded"
            assert skate_session.num_cpus == 2
            assert skate.get(skate.get(skate.put([square.remote(2)]))) == [4]

        def test_without(request):
            assert "skate_session" not in request.fixturenames
        """.replace("\n        ", "\n"),
    )
    result.assert_outcomes(passed=3)


LEAKS = """
def test_object(skate_session):
    kept.append(skate.put(1))

def test_task(skate_session):
    kept.append(square.remote(2))
    skate.get(kept[-1])

def test_actor(skate_session):
    kept.append(Counter.options(name="it").remote())
    skate.get(kept[-1].pid.remote())

@pytest.mark.skate_leaks
def test_allowed(skate_session):
    kept.append(skate.put(1))

def test_clean(skate_session):
    assert skate.get(square.remote(3)) == 9
    assert skate.debug.leftovers() == []
"""


def test_a_test_that_leaves_something_behind_fails_and_the_next_is_clean(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, LEAKS)
    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*the test left behind: 1 object. *",
            "*the test left behind: 1 object. *",
            "*the test left behind: actor *Counter named 'it'. *",
        ]
    )


def test_a_failed_test_is_not_blamed_for_what_its_traceback_holds(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
def test_fails(skate_session):
    ref = skate.put(1)
    assert ref is None

def test_next(skate_session):
    assert skate.debug.leftovers() == []
""",
    )
    result.assert_outcomes(passed=1, failed=1)


def test_a_mark_and_options_choose_the_engine(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.skate_inline
def test_inline(skate_session):
    assert skate_session.engine == "inline"
    assert skate.get(Counter.remote().pid.remote()) == os.getpid()

def test_embedded(skate_session):
    assert skate_session.engine == "embedded"
    assert skate_session.num_cpus == 3
    assert skate.get(Counter.remote().pid.remote()) != os.getpid()
""",
        "--skate-num-cpus=3",
    )
    result.assert_outcomes(passed=2)
    pytester.makeini("[pytest]\nskate_engine = inline")
    result = run(
        pytester,
        """
def test_inline(skate_session):
    assert skate_session.engine == "inline"
""",
    )
    result.assert_outcomes(passed=1)


def test_the_stacks_of_workers_are_shown_before_a_test_times_out(
    pytester: pytest.Pytester,
) -> None:
    pytest.importorskip("pytest_timeout")
    result = run(
        pytester,
        """
@skate.remote
def stuck_in_a_task():
    threading.Event().wait()

def test_hangs(skate_session):
    skate.get(stuck_in_a_task.remote())
""",
        "--timeout=15",
    )
    result.assert_outcomes(failed=1)
    result.stderr.fnmatch_lines(["*test_hangs is about to time out"])
    result.stderr.fnmatch_lines(["*in stuck_in_a_task"])
