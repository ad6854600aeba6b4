import itertools
import math

import pytest

from skate.sim.cost import LearnedCosts, config_key, learned_costs
from skate.sim.progress import Tally
from skate.sim.schedule import Grouping, Job, schedule


def test_groups_fill_the_time_of_a_task_and_shrink_towards_the_end() -> None:
    grouping = Grouping(num_workers=2, task_s=0.125)
    jobs = iter([Job(i, None) for i in range(200)])
    left, sizes = 200, []
    while left:
        group = grouping.take(jobs, left)
        left -= len(group)
        sizes.append(len(group))
        for job in group:
            grouping.record(job, 0.015625)
    assert sum(sizes) == 200
    assert sizes[:2] == [1, 1]  # nothing is known
    assert max(sizes) == 8  # of 1/64 s
    assert sizes[-8:] == [1] * 8
    assert sizes[2:] == sorted(sizes[2:], reverse=True)


def test_expensive_jobs_travel_alone() -> None:
    grouping = Grouping(num_workers=1, task_s=0.125)
    grouping.record(Job(0, None, cost=1.0), 0.01)
    jobs = iter([Job(i, None, cost) for i, cost in enumerate([50.0, 4.0, 4.0, 4.0])])
    sizes = [len(grouping.take(jobs, math.inf)) for _ in range(3)]
    assert sizes == [1, 3, 0]


def test_an_endless_iterator_is_not_read_ahead_beyond_its_window() -> None:
    drawn = []

    def configs() -> itertools.count:  # type: ignore[type-arg]
        for x in itertools.count():
            drawn.append(x)
            yield x

    jobs = iter(schedule(configs(), lambda x: x, window=3))
    assert [next(jobs).index for _ in range(3)] == [2, 1, 0]
    assert drawn == [0, 1, 2]


def test_what_was_learned_is_a_mean_that_follows_changes() -> None:
    costs = LearnedCosts()
    assert costs.expect("new") == 0.0
    costs.record("a", 2.0)
    costs.record("b", 4.0)
    assert costs.expect("new") == 3.0
    costs.record("a", 4.0)
    assert costs.expect("a") == 3.0


def test_costs_belong_to_a_function_by_its_name() -> None:
    assert learned_costs(len) is learned_costs(len)
    assert learned_costs(len) is not learned_costs(repr)


@pytest.mark.parametrize("config", [3, "x", (1, "a"), {"a": [1]}, [1.5]])
def test_equal_configurations_have_one_key(config: object) -> None:
    import copy

    assert config_key(config) == config_key(copy.deepcopy(config))


def test_time_left_goes_by_cost_where_it_is_known() -> None:
    by_number = Tally(total=10, total_cost=None, done=5)
    assert by_number.seconds_left(10.0) == 10.0
    by_cost = Tally(total=10, total_cost=100.0, done=1, done_cost=50.0)
    assert by_cost.seconds_left(10.0) == 10.0
    assert Tally(total=None, total_cost=None, done=5).seconds_left(1.0) is None
