"""Actor-critic policies with a memory core.

An observation passes the features extractor of stable-baselines3 and is joined by the previous action (and reward).
Then come the observation encoder, the core, and the policy and value heads. Acting takes one step at a time (`actor`),
learning takes whole windows (`evaluate_windows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.torch_layers import MlpExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

import ctrl
from ctrl.agents.policy.actor import Actor
from ctrl.agents.policy.masked_actions import STANDARD, MaskedActions, draw, entropy_of, without_parameters
from ctrl.agents.policy.policy_data import Evaluated, PolicyState, Windows, each_part
from ctrl.agents.policy.predicting import predict
from ctrl.agents.policy.windows import recorded_windows
from ctrl.agents.saving.saved_policy import SavedPolicy
from ctrl.agents.utils.cores import named_core
from ctrl.agents.utils.modes import evaluating
from ctrl.agents.utils.nan_checks import without_non_finite
from ctrl.agents.utils.other_names import answering_other_names
from ctrl.agents.utils.spaces import action_features, encode_action, first_values, from_zero, starts_of
from ctrl.agents.utils.value_normalisation import ValueNormalisation
from ctrl.agents.vec_envs.nested import checked_parts

Observation = np.ndarray | dict[str, np.ndarray]

VALUE_GAIN = 0.01
"""Initial gain of the value head's output layer. Values then start near the mean of returns, or near 0 where they are
not normalised. With stable-baselines3's gain of 1, differences of random values make up nearly all of the first
advantages."""
FUSED_ADAM: dict[str, Any] = {"eps": 1e-5, "fused": True}
"""Options of Adam: the epsilon of stable-baselines3, and PyTorch's fused kernel."""


class MemoryPolicy(SavedPolicy):
    """Actor and critic on one memory core; use one of its subclasses by name, such as `MlpMemoryPolicy`.

    :param observation_space: the env's
    :param action_space: the env's
    :param lr_schedule: learning rate of `optimizer`, a function of the remaining progress (1 to 0)
    :param core: a name for `ctrl.make_core`: "compressive", "transformer_xl", "gtrxl", "lstm", "gru",
        "mingru", "feedforward"; or a core, such as one from `ctrl.load_core`, whose options and weights are copied
    :param core_kwargs: the core's own options, if it is given by name
    :param encoder_arch: widths of the layers between features and core
    :param previous_action: whether the last action joins the features
    :param previous_reward: whether the last reward joins the features. `predict` then needs `reward=`. It is off by
        default, since stable-baselines3's `evaluate_policy` and `EvalCallback` never pass that argument
    :param net_arch: widths of the layers of policy and value heads, as in stable-baselines3
    :param activation_fn: activation function of encoder and heads
    :param normalize_values: whether a value is the value head's output times a running scale of returns, plus their
        running mean. The algorithm updates both; values are 0 before its first update
    :param memory_lr: initial learning rate of `memory_optimizer`; the algorithm updates it
    :param kwargs: `ortho_init`, `log_std_init`, `features_extractor_class`, `features_extractor_kwargs`,
        `normalize_images`, `optimizer_class`, `optimizer_kwargs`, as in stable-baselines3
    """

    memory_optimizer: torch.optim.Optimizer | None
    """Adam for `core.compression_parameters()`: compressors and measures of novelty; None where there are none."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        core: str | ctrl.MemoryCore[Any] = "compressive",
        core_kwargs: dict[str, Any] | None = None,
        encoder_arch: Sequence[int] = (64,),
        previous_action: bool = True,
        previous_reward: bool = False,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_values: bool = True,
        memory_lr: float = 5e-3,
        use_sde: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde=True is not supported by memory policies")
        if not kwargs.get("share_features_extractor", True):
            raise ValueError("share_features_extractor=False is not supported: actor and critic share one memory")
        self._core, self._core_kwargs = named_core(core, core_kwargs)
        self._given = (core.input_size, core.state_dict()) if isinstance(core, ctrl.MemoryCore) else None
        self._encoder_arch = list(encoder_arch)
        self._previous_sizes = (
            action_features(action_space) if previous_action else 0,
            1 if previous_reward else 0,
        )
        self._normalize_values = normalize_values
        self._memory_lr = memory_lr
        net_arch = {"pi": [64], "vf": [64]} if net_arch is None else net_arch
        if (
            kwargs.get("optimizer_kwargs") is None
            and kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam
        ):
            kwargs["optimizer_kwargs"] = dict(FUSED_ADAM)
        super().__init__(
            observation_space, action_space, lr_schedule, net_arch=net_arch, activation_fn=activation_fn, **kwargs
        )

    def _build_mlp_extractor(self) -> None:
        joined = self.features_dim + sum(self._previous_sizes)
        layers = create_mlp(joined, -1, self._encoder_arch, self.activation_fn)
        self.encoder = nn.Sequential(*layers)
        width = self._encoder_arch[-1] if self._encoder_arch else joined
        self.core: ctrl.MemoryCore[Any] = ctrl.make_core(self._core, width, **self._core_kwargs)
        if self._given is not None:
            size, weights = self._given
            if size != width:
                raise ValueError(
                    f"core has input_size = {size}, but the encoder gives {width}; use encoder_arch=[{size}]"
                )
            self.core.load_state_dict(weights)
            self._given = None
        self.mlp_extractor = MlpExtractor(
            self.core.output_size, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        asked = type(self)._get_action_dist_from_latent is not SavedPolicy._get_action_dist_from_latent
        self._own_distribution = asked or type(self.action_dist) not in STANDARD
        self._is_categorical = type(self.action_dist) is CategoricalDistribution and not self._own_distribution
        self._starts = starts_of(self.observation_space)
        self.value_normalisation = ValueNormalisation(0.0 if self._normalize_values else 1.0)
        if self.ortho_init:
            for module in self.encoder:
                self.init_weights(module, gain=float(np.sqrt(2)))
            with torch.no_grad():  # scaled instead of drawn again, so that the seed's other weights stay the same
                self.value_net.weight.mul_(VALUE_GAIN)
        self._ignore_previous_at_first()
        compression = self.core.compression_parameters()
        of_compression = {id(parameter) for parameter in compression}
        main = [parameter for parameter in self.parameters() if id(parameter) not in of_compression]
        self.optimizer = self.optimizer_class(main, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.memory_optimizer = torch.optim.Adam(compression, lr=self._memory_lr, **FUSED_ADAM) if compression else None

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: all but the last distribution, whose tensors may have a graph."""
        return {**self.__dict__, "action_dist": without_parameters(self.action_dist)}

    def _ignore_previous_at_first(self) -> None:
        """Set the weights of previous action and reward to 0, so that they matter only once training needs them.

        Sampled actions put noise into every stored slot. An agent that has learned to cope with this noise fails when
        it acts deterministically, since all slots may then hold the same action.
        """
        with torch.no_grad():
            self.previous_weights().zero_()

    def previous_weights(self) -> Tensor:
        """Return the encoder's first-layer weights of previous action and reward, [E, A + R], as a view.

        Without an encoder there are none, [0, 0]: the core then sees both from the beginning.
        """
        first = self.encoder[0] if self._encoder_arch else None
        return first.weight[:, self.features_dim :] if isinstance(first, nn.Linear) else torch.empty(0, 0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Return the constructor arguments that `policy.save` stores for `policy.load`."""
        return {
            **super()._get_constructor_parameters(),
            "core": self._core,
            "core_kwargs": self._core_kwargs,
            "encoder_arch": self._encoder_arch,
            "previous_action": self._previous_sizes[0] > 0,
            "previous_reward": self._previous_sizes[1] > 0,
            "normalize_values": self._normalize_values,
            "memory_lr": self._memory_lr,
        }

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients through the optimizers' parameter lists; `nn.Module` would first search all modules."""
        if not set_to_none or self.optimizer is None:  # actors' copies have no optimizers
            super().zero_grad(set_to_none)
            return
        for optimizer in (self.optimizer, self.memory_optimizer):
            for group in [] if optimizer is None else optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def initial_state(self, batch_size: int) -> PolicyState:
        """Return the state before the first step of an episode, for `batch_size` envs."""
        action, reward = (torch.zeros(batch_size, size, device=self.device) for size in self._previous_sizes)
        return PolicyState(self.core.initial_state(batch_size), action, reward)

    def step(self, obs: PyTorchObs, state: PolicyState, reset: Tensor) -> tuple[Tensor, PolicyState]:
        """Consume one observation per env.

        :param obs: [B, ...]
        :param state: the state after the previous step
        :param reset: [B] bool, true where `obs` is the first of an episode
        :return: the core's output [B, O] and the state after the step. The caller sets the state's previous action and
            reward once they are known
        """
        started = reset[:, None]
        action = torch.where(started, 0, state.previous_action)
        reward = torch.where(started, 0, state.previous_reward)
        latent, core_state = self.core.step(self.embed(obs, action, reward), state.core, reset)
        return latent, PolicyState(core_state, action, reward)

    def actor(self, state: PolicyState) -> Actor:
        """Return an `Actor` that starts from `state` and keeps the state between steps."""
        return Actor(self, state)

    def decide(
        self, latent: Tensor, deterministic: bool, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, values [B] in the rewards' units and log-probabilities [B] for the core's outputs [B, O].

        :param action_masks: [B, M] bool, true where a choice may be taken; None where all may
        """
        latent_pi, latent_vf = self.mlp_extractor(latent)
        values = self._values(latent_vf)
        if action_masks is not None:
            actions, log_prob = self.masked_actions(latent_pi, action_masks).choose(deterministic)
            return actions, values, log_prob
        if self._is_categorical:  # by hand, with the same result: building torch's distribution takes longer than this
            log_probs: Tensor = self.action_net(latent_pi).log_softmax(dim=1)
            action = log_probs.argmax(dim=1, keepdim=True) if deterministic else draw(log_probs)
            return action[:, 0], values, log_probs.gather(1, action)[:, 0]
        distribution = self._get_action_dist_from_latent(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def values_after(self, obs: PyTorchObs, state: PolicyState, reset: Tensor) -> Tensor:
        """Return the values [B], in the rewards' units, of observations that follow `state`, in evaluation mode."""
        with evaluating(self):
            latent, _ = self.step(obs, state, reset)
            return self._values(self.mlp_extractor.forward_critic(latent))

    def windows(
        self,
        observations: Any,
        actions: Any,
        episode_starts: Any,
        rewards: Any = None,
        action_masks: Any = None,
        core_state: Any = None,
    ) -> Windows:
        """Return recorded steps as windows for `evaluate_windows`, such as demonstrations to learn from.

        :param observations: [N, T, ...] as the env gave them, or a dict of such
        :param actions: [N, T, ...] as the env took them
        :param episode_starts: [N, T] true where a step is the first of an episode
        :param rewards: [N, T] rewards of the actions; only for policies with `previous_reward=True`
        :param action_masks: [N, T, M] true where a choice could be taken; None where all could
        :param core_state: the core's state before the windows; None where they begin with an episode
        :raises ValueError: where something does not fit the shapes or the spaces, is not finite, or is missing
        """
        return recorded_windows(self, observations, actions, episode_starts, rewards, action_masks, core_state)

    def evaluate_windows(self, windows: Windows, *, diagnose: bool = False) -> Evaluated:
        """Unroll the core over whole windows; return values, and log-probabilities and entropies of the actions.

        :param windows: observations and actions, with the core's state before each window
        :param diagnose: also report the core's attention statistics
        """
        shape = windows.reset.shape
        unrolled = self._unroll(windows, diagnose=diagnose)
        (outputs,), spoiled = without_non_finite(unrolled.outputs)  # or the heads' gradients would be NaN
        latent_pi, latent_vf = self.mlp_extractor(outputs.flatten(0, 1))
        masks = None if windows.action_masks is None else windows.action_masks.flatten(0, 1)
        log_prob, entropy = self._judge(latent_pi, windows.actions.flatten(0, 1), masks)
        values, log_prob = self._values(latent_vf).view(shape), log_prob.view(shape)
        if spoiled is not None:
            values, log_prob = (torch.where(spoiled, torch.nan, part) for part in (values, log_prob))
        return Evaluated(
            values,
            latent_vf.unflatten(0, shape),
            log_prob,
            None if entropy is None else entropy.view(shape),
            unrolled,
        )

    def value_outputs(self, latent_vf: Tensor) -> Tensor:
        """Return the value head's outputs [...] for `latent_vf` [..., V], in current units of `value_normalisation`."""
        outputs: Tensor = self.value_net(latent_vf)
        return outputs[..., 0]

    def _values(self, latent_vf: Tensor) -> Tensor:
        """Return the values [N], in the rewards' units, for `latent_vf` [N, V]."""
        values: Tensor = self.value_normalisation(self.value_outputs(latent_vf))
        return values

    def remember(self, windows: Windows) -> Any:
        """Return the core's state after each window, with the current weights, in evaluation mode, without a graph."""
        with torch.no_grad(), evaluating(self):
            return self._unroll(windows, diagnose=False).state

    def inputs_of(self, windows: Windows) -> Tensor:
        """Return the core's inputs [N, T, I]."""
        (obs, reward), spoiled = without_non_finite(windows.observations, windows.previous_reward)
        inputs = self.embed(each_part(_flattened, obs), windows.previous_action.flatten(0, 1), reward.flatten(0, 1))
        if spoiled is not None:  # the core knows how far that may reach; the encoder only sees finite numbers
            inputs = torch.where(spoiled.flatten()[:, None], torch.nan, inputs)
        return torch.unflatten(inputs, 0, windows.reset.shape)

    def _unroll(self, windows: Windows, *, diagnose: bool) -> ctrl.Unrolled:
        steps = self.inputs_of(windows), windows.core_state, windows.reset
        return self.core.unroll(*steps, plan=windows.plan, diagnose=diagnose)

    def _judge(self, latent_pi: Tensor, actions: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities [N] of actions, and entropies [N], or None where they have no closed form."""
        if masks is not None:
            return self.masked_actions(latent_pi, masks).judge(actions)
        if self._is_categorical:  # by hand, as in `decide`
            log_probs: Tensor = self.action_net(latent_pi).log_softmax(dim=1)
            return log_probs.gather(1, actions.long()[:, None])[:, 0], entropy_of(log_probs)
        distribution = self._get_action_dist_from_latent(latent_pi)
        return distribution.log_prob(actions), distribution.entropy()

    def masked_actions(self, latent_pi: Tensor, masks: Tensor) -> MaskedActions:
        """Return the distribution of actions under masks [N, M] for the policy head's features [N, P]."""
        if self._own_distribution:
            raise ValueError(f"{type(self).__name__} has a distribution of its own, so action masks can't be applied")
        return MaskedActions(self.action_space, self.action_net(latent_pi), masks)

    def encode_action(self, actions: Tensor) -> Tensor:
        """Return features [N, A] of actions [N, ...], or [N, 0] where the policy does not use the previous action."""
        if not self._previous_sizes[0]:
            return actions.new_zeros(len(actions), 0, dtype=torch.float32)
        return encode_action(self.action_space, actions)

    def encode_reward(self, rewards: np.ndarray | Tensor) -> Tensor:
        """Return features [N, 1] of rewards [N], or [N, 0] where the policy does not use the previous reward."""
        reward = torch.as_tensor(rewards, dtype=torch.float32, device=self.device)
        return reward.reshape(-1, 1)[:, : self._previous_sizes[1]]

    @answering_other_names
    def predict(
        self,
        observation: Observation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        reward: np.ndarray | float | None = None,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions from observations and the state that the last call returned.

        :param observation: of one env, or of several with a leading axis
        :param state: the state that the last call returned; None at the start of all episodes
        :param episode_start: [B] true where `observation` is the first of an episode; None if none is
        :param deterministic: take the most likely action
        :param reward: [B] the rewards of the last actions, or one for all envs; only for policies with
            `previous_reward=True`
        :param action_masks: [B, M] true where a choice may be taken, as in sb3-contrib; None where all may
        :return: actions, and the state for the next call: a tuple of numpy arrays, batch first
        :raises ValueError: where the state or a mask does not fit the observation, or a needed reward is missing
        """
        return predict(self, observation, state, episode_start, deterministic, reward, action_masks)

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Return an observation of one or several envs as tensors [B, ...], and whether it was of several.

        :raises ValueError: where it does not fit the observation space
        """
        if isinstance(self.observation_space, spaces.Dict):
            observation = checked_parts(observation, self.observation_space)
        return super().obs_to_tensor(observation)

    def embed(self, obs: PyTorchObs, action: Tensor, reward: Tensor) -> Tensor:
        """Return the core's inputs [N, I] for observations, previous actions [N, A] and rewards [N, 1]."""
        features: Any = self.extract_features(from_zero(obs, self._starts) if self._starts else obs)
        embedded: Tensor = self.encoder(torch.cat([features, action, reward], dim=1))
        return embedded

    def env_actions(self, actions: Tensor) -> np.ndarray:
        """Return sampled actions as the env takes them: in the space's shape and dtype, within its bounds."""
        result: np.ndarray = actions.cpu().numpy().reshape((-1, *cast("tuple[int, ...]", self.action_space.shape)))
        if isinstance(self.action_space, spaces.Box):
            result = np.clip(result, self.action_space.low, self.action_space.high)
        shifted: np.ndarray = result + first_values(self.action_space)
        return shifted.astype(self.action_space.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise a NotImplementedError: a memory policy can't act without its state."""
        raise NotImplementedError("a memory policy needs its state: use actor(), evaluate_windows() or predict()")

    def evaluate_actions(self, *args: Any, **kwargs: Any) -> Any:
        """Raise a NotImplementedError, as `forward` does."""
        return self.forward()

    def get_distribution(self, *args: Any, **kwargs: Any) -> Distribution:
        """Raise a NotImplementedError, as `forward` does."""
        return cast(Distribution, self.forward())

    def predict_values(self, *args: Any, **kwargs: Any) -> Tensor:
        """Raise a NotImplementedError, as `forward` does."""
        return cast(Tensor, self.forward())


def _flattened(steps: Tensor) -> Tensor:
    return steps.flatten(0, 1)
