"""Proximal policy optimisation: what one learner does with a batch of rollouts.

Source: Schulman et al., "Proximal policy optimization algorithms", 2017,
https://arxiv.org/abs/1707.06347.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skate.sim import Trajectory
from skate.train import Context, ParameterServer
from skate.train.torch import DistributedOptimizer

from .distribution import distribution
from .exchange import ServedGradients
from .moments import RunningMoments
from .network import network, network_weights, to_numpy, to_torch
from .policy import Array, Weights, hidden_sizes, mlp_weights, scale
from .returns import gae
from .settings import PPOSettings


@dataclass(frozen=True)
class Samples:
    """A batch of B transitions, flat, as the loss needs them."""

    observations: Tensor  # (B, D), scaled
    actions: Tensor  # (B, ...), as the distribution takes them
    log_probs: Tensor  # (B,), of those actions when they were drawn
    advantages: Tensor  # (B,), mean 0 and variance 1
    returns: Tensor  # (B,), in the units of the value network's output


class PPO:
    """Policy and value networks, and how they learn. One a rank; all stay equal.

    Ranks average their gradients through ``server``, or by allreduce if it is None.
    """

    def __init__(
        self,
        initial: Weights,
        settings: PPOSettings,
        context: Context,
        seed: int,
        server: ParameterServer | None = None,
    ) -> None:
        self._initial = initial
        self._settings = settings
        self._minibatch_size = settings.minibatch_size // context.world_size
        self._rng = np.random.default_rng((seed, context.rank))
        num_observations = initial["w0"].shape[1]
        sizes = (num_observations, *hidden_sizes(initial), 1)
        value = mlp_weights(np.random.default_rng(seed), sizes, last_gain=1.0)

        self._policy = network(initial)
        self._value = network(value)
        self._distribution = distribution(initial)
        self._model = nn.ModuleList([self._policy, self._value])
        for name, parameter in self._distribution.parameters.items():
            self._model.register_parameter(name, parameter)
        self._optimizer: torch.optim.Optimizer = torch.optim.Adam(
            self._model.parameters(), eps=1e-5, fused=True
        )
        if server is None:
            distributed = DistributedOptimizer(self._optimizer, self._model)
            self._optimizer, self._average = distributed, distributed.synchronize
        else:
            self._average = ServedGradients(self._model, server).average
        self._observations = RunningMoments(num_observations, context.allreduce)
        self._returns = RunningMoments(1, context.allreduce)

    def update(
        self, trajectories: Sequence[Trajectory], learning_rate: float
    ) -> dict[str, float]:
        """Improve the policy on what it, or one slightly older, has done."""
        epochs = self._settings.epochs
        samples = self._samples(trajectories)
        rows = len(samples.returns)
        watched = torch.zeros(4)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        for _ in range(epochs):
            order = torch.from_numpy(self._rng.permutation(rows))
            for chosen in torch.split(order, self._minibatch_size):
                loss, figures = self._loss(samples, chosen)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._average()
                nn.utils.clip_grad_norm_(
                    self._model.parameters(), self._settings.max_gradient_norm
                )
                self._optimizer.step()
                watched += figures * (len(chosen) / rows / epochs)
        names = ("policy_loss", "value_loss", "kl", "clip_fraction")
        with torch.no_grad():
            outputs = self._policy(samples.observations)
        return {
            **dict(zip(names, watched.tolist(), strict=True)),
            **self._distribution.figures(outputs),
            "learning_rate": learning_rate,
        }

    def _loss(self, samples: Samples, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the chosen transitions, b of them, and figures to watch."""
        clip = self._settings.clip
        observations = samples.observations[chosen]  # (b, D)
        advantages = samples.advantages[chosen]  # (b,)

        outputs = self._policy(observations)  # (b, A)
        log_probs = self._distribution.log_probs(outputs, samples.actions[chosen])
        log_ratio = log_probs - samples.log_probs[chosen]
        ratio = log_ratio.exp()
        # The smaller of the two: no reward for moving beyond the clip, but a way back.
        policy_loss = -torch.minimum(
            ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
        ).mean()

        values = self._value(observations)[:, 0]  # (b,)
        value_loss = 0.5 * (values - samples.returns[chosen]).square().mean()

        loss = policy_loss + value_loss
        if self._settings.entropy_coefficient:
            entropy = self._distribution.entropy(outputs)
            loss = loss - self._settings.entropy_coefficient * entropy
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean()
            clipped = ((ratio - 1).abs() > clip).float().mean()
            figures = torch.stack([policy_loss, value_loss, kl, clipped])
        return loss, figures

    @torch.no_grad()
    def _samples(self, trajectories: Sequence[Trajectory]) -> Samples:
        """All transitions of the trajectories; N is the sum of their environments."""

        def joined(name: str) -> Any:
            parts = [getattr(trajectory, name) for trajectory in trajectories]
            return np.concatenate(parts, axis=1)  # (T, N, ...)

        observations = joined("observations")[:-1]  # (T, N, D)
        self._observations.add(observations)
        values = self._values(observations)  # (T, N)
        advantages = gae(
            joined("rewards"),
            values,
            self._values(joined("next_observations")),
            joined("terminated"),
            joined("truncated"),
            gamma=self._settings.gamma,
            gae_lambda=self._settings.gae_lambda,
        )  # (T, N)
        returns = advantages + values  # (T, N)
        self._returns.add(returns[..., None])

        actions = self._distribution.tensor(joined("actions"))  # (T, N, ...)
        parts = [trajectory.extras["log_probs"] for trajectory in trajectories]
        log_probs = np.concatenate(parts, axis=1)  # (T, N)
        return Samples(
            observations=self._scaled(observations).flatten(0, 1),
            actions=actions.flatten(0, 1),
            log_probs=_flat(self._distribution.log_probs_served(log_probs)),
            advantages=_flat((advantages - advantages.mean()) / advantages.std()),
            returns=_flat((returns - self._returns.mean) / self._returns.std),
        )

    def _values(self, observations: Array) -> Array:
        """In units of reward: ``(T, N, D)`` to ``(T, N)``."""
        scaled: Array = self._value(self._scaled(observations))[..., 0].numpy()
        return self._returns.mean + self._returns.std * scaled

    def _scaled(self, observations: Array) -> Tensor:
        moments = self._observations
        return torch.from_numpy(scale(observations, moments.mean, moments.std))

    def weights(self) -> dict[str, Array]:
        """The policy as it is served: see ``policy.Policy``."""
        return dict(self._initial) | {
            **network_weights(self._policy),
            **self._distribution.weights(),
            "observation_mean": self._observations.mean,
            "observation_std": self._observations.std,
        }

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on as if nothing had happened."""
        return {
            "model": to_numpy(self._model.state_dict()),
            "optimizer": to_numpy(self._optimizer.state_dict()),
            "observations": self._observations.sums.copy(),
            "returns": self._returns.sums.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(to_torch(state["model"]))
        self._optimizer.load_state_dict(to_torch(state["optimizer"]))
        self._observations.sums = state["observations"].copy()
        self._returns.sums = state["returns"].copy()
        self._rng.bit_generator.state = state["rng"]


def _flat(rows: Array) -> Tensor:
    """``(T, N, ...)`` to ``(T * N, ...)``."""
    return torch.from_numpy(rows).flatten(0, 1)
