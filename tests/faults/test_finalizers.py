"""Finalizers, pickle and other threads come at any moment: refs stay what they are."""

from __future__ import annotations

import threading

import pytest
from programs import run

import skate
from skate.exceptions import EngineError

pytest.importorskip("skate._core", reason="faults need the embedded engine's core")

USES = {
    "get": "skate.get(thing, timeout=10)",
    "a future": "thing.future().result(10)",
    "an argument": "skate.get(same.remote(thing), timeout=10)",
    "an argument inside of a list": (
        "skate.get(skate.get(same.remote([thing]), timeout=10)[0], timeout=10)"
    ),
    "as_completed": "skate.get(next(skate.as_completed([thing])), timeout=10)",
}

GARBAGE = """
    import gc
    import skate

    @skate.remote
    def same(x):
        return x

    class Holder:
        def __init__(self, thing):
            self.thing = thing
            self.me = self

        def __del__(self):
            thing = self.thing
            found.append({use})

    found = []
    with skate.init("embedded", num_cpus=2):
        {before}
        gc.collect()
        Holder({thing})
        gc.collect()
        assert found == [5], found
        assert skate.get(same.remote(3), timeout=10) == 3
"""


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    "thing", ["skate.put(5)", "skate.get(same.remote([skate.put(5)]))[0]"]
)
def test_a_finalizer_in_a_garbage_cycle_may_use_a_ref_of_the_cycle(
    use: str, thing: str
) -> None:
    run(GARBAGE.format(use=use, thing=thing, before=""))


def test_a_finalizer_in_a_garbage_cycle_may_use_what_pickle_has_restored() -> None:
    restored = "skate.get(skate.put([object, skate.put(5)]))[1]"  # a type needs pickle
    run(GARBAGE.format(use=USES["get"], thing=restored, before=""))


def test_a_finalizer_in_a_garbage_cycle_may_call_an_actor_of_the_cycle() -> None:
    run(
        GARBAGE.format(
            use="skate.get(thing.five.remote(), timeout=10)",
            thing="made()",
            before="""
        @skate.remote
        class Five:
            def five(self):
                return 5

        def made():
            actor = Five.remote()
            assert skate.get(actor.five.remote()) == 5
            return actor
""",
        )
    )


def test_a_finalizer_in_a_garbage_cycle_may_call_a_function_of_the_cycle() -> None:
    run(
        GARBAGE.format(
            use="skate.get(thing.remote(), timeout=10)",
            thing="made()",
            before="""
        def made():
            function = skate.remote(max_calls=1)(lambda: 5)  # no worker has it still
            assert skate.get(function.remote()) == 5
            return function
""",
        )
    )


def test_a_value_that_is_gone_is_an_error() -> None:
    run(
        """
        import skate

        with skate.init("embedded", num_cpus=1):
            ref, other = skate.put(1), skate.put(2)
            ref.__del__()
            for refs in ([ref], [other, ref]):
                try:
                    skate.get(refs, timeout=10)
                except skate.exceptions.OwnerDiedError:
                    continue
                raise AssertionError("a value that is gone")
        """
    )


def test_a_finalizer_at_the_end_of_the_program_may_ask_for_a_future() -> None:
    run(
        """
        import skate

        @skate.remote
        def same(x):
            return x

        class Client:
            def __init__(self, ref):
                self.ref = ref
                self.me = self

            def __del__(self):
                self.ref.future()

        skate.init("embedded", num_cpus=1)
        ref = same.remote(1)
        assert ref.future().result() == 1
        Client(ref)
        """,
        seconds=20,
    )


def test_a_session_ends_while_the_thread_that_ends_it_is_within_a_future() -> None:
    # A signal handler may interrupt Future.result() anywhere: here it has the lock.
    run(
        """
        import skate

        @skate.remote
        def sleep():
            import time
            time.sleep(1000)

        skate.init("embedded", num_cpus=1)
        future = sleep.remote().future()
        with future._condition:
            skate.shutdown()
        assert isinstance(future.exception(timeout=20), skate.exceptions.EngineError)
        """,
        seconds=30,
    )


def test_a_future_of_a_ref_of_an_ended_session_starts_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with skate.init("embedded", num_cpus=1):
        ref = skate.put(1)
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    with pytest.raises(EngineError):
        ref.future()
    assert started == []


def test_a_ref_may_be_made_while_a_finalizer_ends_the_session() -> None:
    run(
        """
        import gc
        import skate

        class Owner:
            def __init__(self):
                self.me = self

            def __del__(self):
                skate.shutdown()
                ended.append(True)

        ended = []
        skate.init("embedded", num_cpus=1)
        node = skate._runtime.current().node
        gc.collect()
        gc.freeze()
        gc.set_threshold(50)
        Owner()
        refs = []
        try:
            while not ended:
                refs.append(node.put(1))  # nothing else that makes an object
        except skate.exceptions.EngineDiedError:
            pass
        assert ended
        """
    )


RESTART = """
    import skate

    class Restart:
        def __reduce__(self):
            skate.shutdown()
            skate.init("embedded", num_cpus=1)
            return (str, ("mine",))

    @skate.remote
    def same(x):
        return x

    skate.init("embedded", num_cpus=1)
    try:
        {call}
    except skate.exceptions.EngineDiedError:
        pass
    else:
        raise AssertionError("a ref of the session that has ended")
    assert skate.get(same.remote(3), timeout=10) == 3
    skate.shutdown()
"""


@pytest.mark.parametrize("call", ["skate.put([Restart()])", "same.remote(Restart())"])
def test_a_call_whose_session_was_replaced_meanwhile_gives_no_ref(call: str) -> None:
    run(RESTART.format(call=call))
