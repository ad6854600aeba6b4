"""``sim.VectorEnv`` for Stable-Baselines3: give :class:`SB3VecEnv` to any algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from .vector_env import VectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(
        "skate.sim.sb3 needs stable-baselines3, which is not installed: "
        "pip install stable-baselines3"
    ) from error


class SB3VecEnv(VecEnv):
    """Stable-Baselines3's view of a vector environment.

    Args:
        env: made with ``autoreset_mode="SameStep"``, which is what the algorithms
            expect. Closed with this.

    Raises:
        ValueError: another autoreset mode.
    """

    def __init__(self, env: VectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode={env.autoreset_mode.value!r}: Stable-Baselines3 "
                'expects VectorEnv(..., autoreset_mode="SameStep").'
            )
        self._env = env
        self._actions: Any = None
        super().__init__(
            env.num_envs, env.single_observation_space, env.single_action_space
        )

    def reset(self) -> Any:
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError("sim.VectorEnv gives all environments the same options.")
        seeds = self._seeds if any(s is not None for s in self._seeds) else None
        observations, infos = self._env.reset(seed=seeds, options=options or None)
        self.reset_infos = info_list(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, infos = self._env.step(
            self._actions
        )
        done = terminated | truncated
        found = info_list(infos, self.num_envs)
        for i in np.flatnonzero(done):
            reset_info = found[i]
            last = reset_info.pop("final_obs")
            found[i] = reset_info.pop("final_info", {}) | {"terminal_observation": last}
            self.reset_infos[i] = reset_info
        for info, was_cut in zip(found, truncated & ~terminated, strict=True):
            info["TimeLimit.truncated"] = bool(was_cut)
        return observations, rewards.astype(np.float32), done, found

    def close(self) -> None:
        self._env.close()

    def get_images(self) -> Sequence[Any]:
        return self._env.render() or ()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return self._chosen(self._env.get_attr(attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        if indices is None:
            self._env.set_attr(attr_name, [value] * self.num_envs)
            return
        values = list(self._env.get_attr(attr_name))
        for i in self._get_indices(indices):
            values[i] = value
        self._env.set_attr(attr_name, values)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Of all environments, even if only some results are wanted, as gymnasium."""
        if indices is not None and len(list(self._get_indices(indices))) < len(self):
            raise ValueError(
                "sim.VectorEnv calls a method of all environments or none."
            )
        return list(self._env.call(method_name, *args, **kwargs))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        wrapped = self._env.call("is_wrapped_with", wrapper_class)
        return self._chosen(wrapped, indices)

    def __len__(self) -> int:
        return int(self.num_envs)

    def _chosen(self, values: Sequence[Any], indices: Any) -> list[Any]:
        chosen: Iterable[int] = self._get_indices(indices)
        return [values[i] for i in chosen]


def info_list(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """One dictionary for each environment, from gymnasium's arrays and masks."""
    found: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if mask is None:  # it is a mask itself
            continue
        parts = info_list(values, num_envs) if isinstance(values, dict) else values
        for i in np.flatnonzero(mask):
            found[i][name] = parts[i]
    return found
