from __future__ import annotations

import pytest

pytest.importorskip("skate._core", reason="it is about the embedded engine")

from skate.engine.embedded.actors import ActorRequest, Actors
from skate.engine.embedded.processes import Proc


def test_an_actor_that_ends_between_two_pages_hides_no_other_and_shows_once() -> None:
    actors = Actors()
    for number in range(1, 7):
        actors.add(ActorRequest(number, "A"), Proc(1, 1), Proc(1 + number, 1))
    first = actors.page(0, 3)
    for number in (5, 1):
        actor = actors.get(number)
        assert actor is not None
        actors.end(actor)
    second = actors.page(first[-1].number, 3)
    seen = [actor.request.actor_id for actor in first + second]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert actors.page(second[-1].number, 3) == []
