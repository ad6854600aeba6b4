"""Actor-learners on a bounded-stale server: each acts, and learns, at its own pace.

Every learner walks a corridor with the weights it pulled last, and pushes the gradient
of its own episodes. None waits for another, unless it is two steps ahead.
"""

import numpy as np

import skate
from skate import train

CELLS = 7  # the walk begins in the middle; the right end pays, the left one does not


def episodes(policy, rng, number):
    """REINFORCE: the gradient of the mean return, up to its sign, and that return."""
    gradient = np.zeros_like(policy)
    returns = []
    for _ in range(number):
        cell, steps = CELLS // 2, []
        while 0 < cell < CELLS - 1:
            right = 1 / (1 + np.exp(policy[cell, 0] - policy[cell, 1]))
            action = int(rng.random() < right)
            steps.append((cell, action, right))
            cell += 2 * action - 1
        reward = float(cell == CELLS - 1)
        returns.append(reward)
        for cell, action, right in steps:
            # Of log(probability): with respect to the logits of left and right.
            chance = np.array([1 - right, right])
            score = np.eye(2)[action] - chance
            gradient[cell] -= (reward - 0.5) * score / number
    return gradient, float(np.mean(returns))


@skate.remote
def learn(server, number, steps):
    worker = server.join(number)
    rng = np.random.default_rng(number)
    stalest = 0
    for _ in range(steps):
        policy = worker.pull()["policy"]
        gradient, _ = episodes(policy, rng, 16)
        worker.push({"policy": gradient})
        stalest = max(stalest, worker.staleness)
    return stalest


def main() -> None:
    server = train.ParameterServer(
        {"policy": np.zeros((CELLS, 2))},
        optimizer=train.SGD(1.0),
        mode="stale",
        staleness=2,
        num_workers=2,
    )
    learners = [learn.remote(server, number, 40) for number in range(2)]
    server.watch(dict(enumerate(learners)))  # one that ends, or dies, leaves
    stalest = max(skate.get(learners))
    print(f"no gradient was more than {stalest} updates old")
    policy = server.pull()["policy"]
    _, mean_return = episodes(policy, np.random.default_rng(2), 999)
    print(f"arrives in {999 * mean_return:.0f} of 999 walks")
    server.close()


if __name__ == "__main__":
    main()
