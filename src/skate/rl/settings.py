"""What training is told: every number of a run, in one object."""

from __future__ import annotations

from dataclasses import dataclass, replace


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


TUNED = {
    # One swing is over in a second or two: a short horizon learns several times faster.
    "Pendulum-v1": PPOSettings(gamma=0.9, learning_rate=1e-3),
}


@dataclass(frozen=True)
class Settings:
    """How a run is laid out."""

    algo: str
    env: str
    seed: int
    total_steps: int
    num_workers: int
    num_envs_per_worker: int
    rollout_length: int
    num_learners: int
    ppo: PPOSettings

    @property
    def steps_per_update(self) -> int:
        return self.num_workers * self.num_envs_per_worker * self.rollout_length

    @property
    def updates(self) -> int:
        """Enough for ``total_steps``, and at least one."""
        return max(1, -(-self.total_steps // self.steps_per_update))

    def checked(self) -> Settings:
        """Itself, if it makes sense.

        Raises:
            ValueError: a number is out of range, or the shares would be unequal.
        """
        for name in (
            "total_steps",
            "num_workers",
            "num_envs_per_worker",
            "rollout_length",
            "num_learners",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value!r}; expected at least 1.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed!r}; expected 0 or more.")
        if self.num_workers % self.num_learners:
            raise ValueError(
                f"num_workers={self.num_workers} cannot be shared equally by "
                f"num_learners={self.num_learners}; use a multiple of it."
            )
        return self


def tuned(env: str) -> PPOSettings:
    """PPO's settings for ``env``: those found for it, else the defaults."""
    return replace(TUNED.get(env, PPOSettings()))
