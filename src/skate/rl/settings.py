"""What training is told: every number of a run, in one object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PPOSettings:
    """How PPO learns."""

    gamma: float = 0.99
    gae_lambda: float = 0.95
    learning_rate: float = 3e-4  # at the start; falls to zero over the run
    epochs: int = 10  # passes over each batch
    minibatch_size: int = 512  # transitions, over all learners together
    clip: float = 0.2
    entropy_coefficient: float = 0.0
    max_gradient_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)


SYNC = ("allreduce", "parameter_server")


@dataclass(frozen=True)
class Layout:
    """How many steps PPO takes, and where."""

    total_steps: int = 400_000
    num_workers: int = 2
    num_envs_per_worker: int = 32
    rollout_length: int = 64
    num_learners: int = 1
    sync: str = "allreduce"  # how learners average their gradients


# What was found to work, by environment; the defaults serve the others.
TUNED_PPO = {
    # A horizon of 33 steps: with 10 (0.9) some policies stay hanging for ever from some
    # states; with 100 the swing-up is learnt several times more slowly.
    "Pendulum-v1": PPOSettings(gamma=0.97, learning_rate=1e-3),
    "CartPole-v1": PPOSettings(gamma=0.98, gae_lambda=0.9, learning_rate=1e-3),
}
TUNED_LAYOUT = {
    "CartPole-v1": Layout(
        total_steps=100_000, num_envs_per_worker=8, rollout_length=128
    ),
}


@dataclass(frozen=True)
class ESSettings:
    """How evolution strategies learn."""

    pairs: int = 32  # perturbations of an iteration; each is tried in both directions
    sigma: float = 0.1  # their standard deviation
    learning_rate: float = 0.03
    weight_decay: float = 0.0
    hidden: tuple[int, ...] = (32, 32)


TUNED_ES_STEPS = {"Pendulum-v1": 2_000_000, "CartPole-v1": 500_000}


@dataclass(frozen=True)
class ESRun:
    """A run of evolution strategies."""

    algo: str
    env: str
    seed: int
    total_steps: int
    es: ESSettings
    target_return: float | None = None  # ends the run early

    @property
    def hidden(self) -> tuple[int, ...]:
        return self.es.hidden

    def checked(self) -> ESRun:
        """Itself, if it makes sense; else ValueError."""
        at_least(1, "total_steps", self.total_steps)
        at_least(1, "pairs", self.es.pairs)
        at_least(0, "seed", self.seed)
        return self


@dataclass(frozen=True)
class Settings:
    """A run of PPO."""

    algo: str
    env: str
    seed: int
    layout: Layout
    ppo: PPOSettings
    target_return: float | None = None  # ends the run early

    @property
    def hidden(self) -> tuple[int, ...]:
        return self.ppo.hidden

    @property
    def total_steps(self) -> int:
        """A whole number of updates: at least ``layout.total_steps``."""
        return self.updates * self.steps_per_update

    @property
    def steps_per_update(self) -> int:
        layout = self.layout
        num_envs = layout.num_workers * layout.num_envs_per_worker
        return num_envs * layout.rollout_length

    @property
    def updates(self) -> int:
        return max(1, -(-self.layout.total_steps // self.steps_per_update))

    def checked(self) -> Settings:
        """Itself, if it makes sense.

        Raises:
            ValueError: a number is out of range, or the shares would be unequal.
        """
        layout = self.layout
        for name, value in vars(layout).items():
            if name != "sync":
                at_least(1, name, value)
        if layout.sync not in SYNC:
            raise ValueError(
                f"sync={layout.sync!r}; expected {' or '.join(map(repr, SYNC))}."
            )
        at_least(0, "seed", self.seed)
        if layout.num_workers % layout.num_learners:
            raise ValueError(
                f"num_workers={layout.num_workers} cannot be shared equally by "
                f"num_learners={layout.num_learners}; use a multiple of it."
            )
        return self


def at_least(least: int, name: str, value: int) -> None:
    """Raise ValueError, naming it, if ``value`` is smaller."""
    if value < least:
        raise ValueError(f"{name}={value!r}; expected at least {least}.")
