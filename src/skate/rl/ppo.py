"""Proximal policy optimisation: what one learner does with a batch of rollouts.

Source: Schulman et al., "Proximal policy optimization algorithms", 2017,
https://arxiv.org/abs/1707.06347.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skate.sim import Trajectory
from skate.train import Context
from skate.train.torch import DistributedOptimizer

from .moments import RunningMoments
from .policy import Array, Weights, hidden_sizes, mlp_weights, scale
from .returns import gae
from .settings import PPOSettings


@dataclass(frozen=True)
class Samples:
    """A batch of B transitions, flat, as the loss needs them."""

    observations: Tensor  # (B, D), scaled
    actions: Tensor  # (B, A), in units of the policy's action scale
    log_probs: Tensor  # (B,), of those actions when they were drawn
    advantages: Tensor  # (B,), mean 0 and variance 1
    returns: Tensor  # (B,), scaled as the value network's output


class PPO:
    """Policy and value networks, and how they learn. One a rank; all stay equal."""

    def __init__(
        self, initial: Weights, settings: PPOSettings, context: Context, seed: int
    ) -> None:
        self.settings = settings
        self._initial = initial
        self._rng = np.random.default_rng((seed, context.rank))
        num_observations = initial["w0"].shape[1]
        value_sizes = (num_observations, *hidden_sizes(initial), 1)
        self._policy = network(initial)
        value = mlp_weights(np.random.default_rng(seed), value_sizes, last_gain=1.0)
        self._value = network(value)
        self._log_std = nn.Parameter(torch.tensor(initial["log_std"]))
        self._model = nn.ModuleList([self._policy, self._value])
        self._model.register_parameter("log_std", self._log_std)
        adam = torch.optim.Adam(self._model.parameters(), eps=1e-5, fused=True)
        self._optimizer = DistributedOptimizer(adam, self._model)
        self._observations = RunningMoments(num_observations, context.allreduce)
        self._returns = RunningMoments(1, context.allreduce)
        self._minibatch_size = settings.minibatch_size // context.world_size

    def update(
        self, trajectories: Sequence[Trajectory], learning_rate: float
    ) -> dict[str, float]:
        """Improve the policy on what it, or one slightly older, has done."""
        self._optimizer.param_groups[0]["lr"] = learning_rate
        samples = self._samples(trajectories)
        rows = len(samples.returns)
        totals = torch.zeros(4)
        for _ in range(self.settings.epochs):
            order = torch.from_numpy(self._rng.permutation(rows))
            for chosen in torch.split(order, self._minibatch_size):
                loss, details = self._loss(samples, chosen)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.synchronize()
                nn.utils.clip_grad_norm_(
                    self._model.parameters(), self.settings.max_gradient_norm
                )
                self._optimizer.step()
                totals += details * (len(chosen) / rows / self.settings.epochs)
        names = ("policy_loss", "value_loss", "kl", "clip_fraction")
        return dict(zip(names, totals.tolist(), strict=True)) | {
            "action_std": self._log_std.detach().exp().mean().item(),
            "learning_rate": learning_rate,
        }

    def _loss(self, samples: Samples, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the chosen transitions, b of them, and figures to watch."""
        clip = self.settings.clip
        observations = samples.observations[chosen]  # (b, D)
        advantages = samples.advantages[chosen]  # (b,)

        log_probs = self._log_probs(observations, samples.actions[chosen])  # (b,)
        log_ratio = log_probs - samples.log_probs[chosen]
        ratio = log_ratio.exp()
        # The smaller of the two: no reward for moving beyond the clip, but a way back.
        policy_loss = -torch.minimum(
            ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
        ).mean()

        values = self._value(observations)[:, 0]  # (b,)
        value_loss = 0.5 * (values - samples.returns[chosen]).square().mean()

        entropy = self._log_std.sum()  # of a Gaussian, but for a constant
        loss = policy_loss + value_loss - self.settings.entropy_coefficient * entropy
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean()
            clipped = ((ratio - 1).abs() > clip).float().mean()
            details = torch.stack([policy_loss, value_loss, kl, clipped])
        return loss, details

    def _log_probs(self, observations: Tensor, actions: Tensor) -> Tensor:
        noise = (actions - self._policy(observations)) * torch.exp(-self._log_std)
        density = -0.5 * noise.square() - self._log_std - 0.5 * math.log(2 * math.pi)
        total: Tensor = density.sum(dim=1)  # (b,)
        return total

    @torch.no_grad()
    def _samples(self, trajectories: Sequence[Trajectory]) -> Samples:
        """Advantages and returns of all trajectories, by the networks as they are."""

        def joined(name: str) -> Any:
            parts = [getattr(trajectory, name) for trajectory in trajectories]
            return np.concatenate(parts, axis=1)  # (T, N, ...)

        self._observations.add(joined("observations")[:-1])
        observations = self._scaled(joined("observations")[:-1])  # (T, N, D)
        next_observations = self._scaled(joined("next_observations"))
        rewards = joined("rewards")  # (T, N)

        mean, std = self._returns.mean[0], self._returns.std[0]
        values = mean + std * self._value(observations)[..., 0].numpy()  # (T, N)
        next_values = mean + std * self._value(next_observations)[..., 0].numpy()
        advantages = gae(
            rewards,
            values,
            next_values,
            joined("terminated"),
            joined("truncated"),
            gamma=self.settings.gamma,
            gae_lambda=self.settings.gae_lambda,
        )
        returns = advantages + values  # (T, N)
        self._returns.add(returns[..., None])
        returns = (returns - self._returns.mean[0]) / self._returns.std[0]

        center, unit = self._initial["action_center"], self._initial["action_scale"]
        actions = torch.from_numpy((joined("actions") - center) / unit)  # (T, N, A)
        parts = [trajectory.extras["log_probs"] for trajectory in trajectories]
        log_probs = np.concatenate(parts, axis=1) + np.log(unit).sum()  # (T, N)
        return Samples(
            observations=observations.flatten(0, 1),
            actions=actions.flatten(0, 1),
            # A density over scaled actions: larger by the volume of their unit.
            log_probs=torch.from_numpy(log_probs).flatten(),
            advantages=torch.from_numpy(_standardised(advantages)).flatten(),
            returns=torch.from_numpy(returns).flatten(),
        )

    def _scaled(self, observations: Array) -> Tensor:
        moments = self._observations
        return torch.from_numpy(scale(observations, moments.mean, moments.std))

    def weights(self) -> dict[str, Array]:
        """The policy as it is served: see ``policy.GaussianPolicy``."""
        return dict(self._initial) | {
            **_layers(self._policy),
            "log_std": self._log_std.detach().numpy().copy(),
            "observation_mean": self._observations.mean,
            "observation_std": self._observations.std,
        }

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on as if nothing had happened."""
        return {
            "model": _numpy(self._model.state_dict()),
            "optimizer": _numpy(self._optimizer.state_dict()),
            "observations": self._observations.sums.copy(),
            "returns": self._returns.sums.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(_torch(state["model"]))
        self._optimizer.load_state_dict(_torch(state["optimizer"]))
        self._observations.sums = state["observations"].copy()
        self._returns.sums = state["returns"].copy()
        self._rng.bit_generator.state = state["rng"]


def network(weights: Weights) -> nn.Sequential:
    """The tanh network with these weights, as ``GaussianPolicy.mean`` computes it."""
    layers: list[nn.Module] = []
    for i in range(sum(name[0] == "w" for name in weights)):
        weight = torch.tensor(weights[f"w{i}"])
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight = nn.Parameter(weight)
        linear.bias = nn.Parameter(torch.tensor(weights[f"b{i}"]))
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _layers(net: nn.Sequential) -> dict[str, Array]:
    weights = {}
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        weights[f"w{i}"] = layer.weight.detach().numpy().copy()
        weights[f"b{i}"] = layer.bias.detach().numpy().copy()
    return weights


def _standardised(x: Array) -> Array:
    scaled: Array = (x - x.mean()) / (x.std() + 1e-8)
    return scaled


def _numpy(tree: Any) -> Any:
    """A state dictionary with arrays for tensors: readable without torch."""
    if isinstance(tree, Tensor):
        return tree.detach().numpy().copy()
    if isinstance(tree, dict):
        return {key: _numpy(value) for key, value in tree.items()}
    return tree


def _torch(tree: Any) -> Any:
    if isinstance(tree, np.ndarray):
        return torch.tensor(tree)
    if isinstance(tree, dict):
        return {key: _torch(value) for key, value in tree.items()}
    return tree
