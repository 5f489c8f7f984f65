"""Names from other libraries: a ValueError gives our name for them. Other unknown names get Python's own error."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import make_impala
from agent_toys import make_model, staggered_env
from sb3_contrib import RecurrentPPO
from sb3_contrib.ppo_recurrent.policies import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from stable_baselines3 import PPO
from stable_baselines3.ppo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

import ctrl
from ctrl import Tier
from ctrl.agents import MemoryImpala, MemoryPPO, MlpMemoryPolicy
from ctrl.agents.utils.other_names import ARGUMENTS, POLICIES, POLICY_KWARGS

BOTH = pytest.mark.parametrize("make", [make_model, make_impala])
THEIRS = inspect.signature(PPO).parameters.keys() | inspect.signature(RecurrentPPO).parameters.keys()


# Policies


@pytest.mark.parametrize("make", [make_model, make_impala])
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("MlpPolicy", "got MlpPolicy; use 'MlpMemoryPolicy'$"),
        ("CnnPolicy", "got CnnPolicy; use 'CnnMemoryPolicy'$"),
        ("MultiInputPolicy", "got MultiInputPolicy; use 'MultiInputMemoryPolicy'$"),
        ("MlpLstmPolicy", "got MlpLstmPolicy; use 'MlpMemoryPolicy', with policy_kwargs={'core': 'lstm'} for an LSTM$"),
        ("CnnLstmPolicy", "got CnnLstmPolicy; use 'CnnMemoryPolicy', with policy_kwargs={'core': 'lstm'} for an"),
        ("MultiInputLstmPolicy", "got MultiInputLstmPolicy; use 'MultiInputMemoryPolicy', with policy_kwargs={'core"),
        (MlpPolicy, "got ActorCriticPolicy; use 'MlpMemoryPolicy'$"),
        (CnnPolicy, "got ActorCriticCnnPolicy; use 'CnnMemoryPolicy'$"),
        (MultiInputPolicy, "got MultiInputActorCriticPolicy; use 'MultiInputMemoryPolicy'$"),
        (MlpLstmPolicy, "got RecurrentActorCriticPolicy; use 'MlpMemoryPolicy', with .*lstm"),
        (CnnLstmPolicy, "got RecurrentActorCriticCnnPolicy; use 'CnnMemoryPolicy', with .*lstm"),
        (MultiInputLstmPolicy, "got RecurrentMultiInputActorCriticPolicy; use 'MultiInputMemoryPolicy', with .*lstm"),
        ("TransformerPolicy", "got TransformerPolicy$"),
    ],
    ids=str,
)
def test_policies(make: Any, policy: Any, message: str) -> None:
    with pytest.raises(
        ValueError, match=f"policy must be one of MlpMemoryPolicy, .*, {message}".replace("., got", ".got")
    ):
        make(staggered_env(), policy=policy)


def test_policies_are_those_of_the_other_libraries() -> None:
    """The policies that the error names exist."""
    named = {name for names in POLICIES.values() for name in names}
    for kind in (PPO, RecurrentPPO):
        assert named >= kind.policy_aliases.keys() | {policy.__name__ for policy in kind.policy_aliases.values()}
    assert POLICIES.keys() == MemoryPPO.policy_aliases.keys()


# Arguments


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (make_model, "use_sde", "no state-dependent exploration: leave it out"),
        (make_model, "sde_sample_freq", "no state-dependent exploration: leave it out"),
        (make_model, "rollout_buffer_class", "rollouts are kept as windows: leave it out, and give n_steps"),
        (make_model, "rollout_buffer_kwargs", "rollouts are kept as windows: leave it out"),
        (make_impala, "use_sde", "no state-dependent exploration: leave it out"),
        (make_impala, "sde_sample_freq", "no state-dependent exploration: leave it out"),
        (make_impala, "rollout_buffer_class", "rollouts are kept as windows: leave it out"),
        (make_impala, "rollout_buffer_kwargs", "rollouts are kept as windows: leave it out"),
        (make_impala, "gae_lambda", "use vtrace_lambda"),
        (make_impala, "clip_range", "use rho_bar and c_bar"),
        (make_impala, "clip_range_vf", "V-trace has no clip of values: leave it out"),
        (make_impala, "n_epochs", "each step is learned from once: leave it out"),
        (make_impala, "target_kl", "each step is learned from once: leave it out"),
        (make_impala, "normalize_advantage", "use normalize_values"),
        (make_impala, "window", "use n_steps"),
        (make_impala, "refresh", "leave it out"),
    ],
)
def test_arguments(make: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"there is no argument {name} here \(got 3\); .*{message}"):
        make(staggered_env(), **{name: 3})


@pytest.mark.parametrize("kind", [MemoryPPO, MemoryImpala])
def test_every_argument_of_the_other_libraries_is_taken_or_answered(kind: Any) -> None:
    own = inspect.signature(kind).parameters.keys()
    assert not THEIRS - own - ARGUMENTS.keys()
    hints = " ".join(hint for name, hint in ARGUMENTS.items() if name not in own)
    stated = {"n_steps", "batch_size", "normalize_values"} | ({"vtrace_lambda", "c_bar"} & own)
    assert stated <= own and (kind is MemoryPPO or all(name in hints for name in stated))


@BOTH
def test_what_nobody_has_stays_a_type_error(make: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
        make(staggered_env(), bogus=1)


def test_an_argument_that_ppo_has_is_taken() -> None:
    assert make_model(staggered_env(), gae_lambda=0.5, normalize_advantage=False).gae_lambda == 0.5


def test_a_mask_of_predict() -> None:
    model, seen = make_model(staggered_env(), "gru"), np.zeros((3, 3), dtype=np.float32)
    for predict in (model.predict, model.policy.predict):
        with pytest.raises(ValueError, match=r"there is no argument mask here .*; use episode_start, true where"):
            predict(seen, None, mask=np.ones(3))  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'masks'"):
            predict(seen, None, masks=np.ones(3))  # type: ignore[call-arg]


# Options of the policy


@BOTH
@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"lstm_hidden_size": 128}, r"lstm_hidden_size \(got 128\); use core='lstm' and core_kwargs={'width': …}"),
        ({"n_lstm_layers": 1}, r"n_lstm_layers \(got 1\); use core='lstm' and core_kwargs={'layers': …}"),
        ({"shared_lstm": True}, "actor and critic share one memory: leave it out"),
        ({"enable_critic_lstm": False}, "actor and critic share one memory: leave it out"),
        ({"lstm_kwargs": {"dropout": 0.1}}, r"lstm_kwargs \(got {'dropout': 0.1}\); use core='lstm' and core_kwargs"),
        ({"layers": 2}, r"layers \(got 2\); it is an option of the core: use core_kwargs={'layers': 2}"),
        ({"memory": [Tier(4)]}, r"memory \(.*\); it is an option of the core: use core_kwargs={'memory': \[Tier\("),
        ({"core": "lstm", "width": 9}, "use core_kwargs={'width': 9}"),
        ({"core": "lstm", "slots": 9}, "use core_kwargs={'slots': 9}"),
        ({"memory_lr": 1e-3}, r"memory_lr \(got 0.001\); use the algorithm's memory_learning_rate"),
        ({"normalize_values": False}, r"normalize_values \(got False\); it is an argument of the algorithm"),
    ],
    ids=str,
)
def test_options_of_the_policy(make: Any, policy_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"policy_kwargs must be without .*{message}"):
        make(staggered_env(), policy_kwargs=policy_kwargs)


def test_every_option_of_a_recurrent_policy_is_taken_or_answered() -> None:
    theirs = inspect.signature(MlpLstmPolicy).parameters.keys()
    shared = inspect.signature(MlpPolicy).parameters.keys()
    assert theirs - shared == POLICY_KWARGS.keys()


@pytest.mark.parametrize("core", ctrl.core_names())
def test_every_option_of_every_core_is_answered(core: str) -> None:
    for option in inspect.signature(ctrl._CORES[core]).parameters:
        with pytest.raises(ValueError, match=rf"policy_kwargs must be without {option} .*use core_kwargs={{'{option}'"):
            make_model(staggered_env(), core, policy_kwargs={option: 1})


def test_a_policy_of_ones_own_may_have_options_of_such_names() -> None:
    class Own(MlpMemoryPolicy):
        def __init__(self, *args: Any, layers: int, n_lstm_layers: int, **kwargs: Any) -> None:
            self.sum = layers + n_lstm_layers
            super().__init__(*args, **kwargs)

    model = make_model(staggered_env(), "gru", policy=Own, policy_kwargs={"layers": 2, "n_lstm_layers": 3})
    assert model.policy.sum == 5
    with pytest.raises(ValueError, match="policy_kwargs must be without width"):
        make_model(staggered_env(), "gru", policy=Own, policy_kwargs={"width": 2})


@BOTH
def test_options_of_the_policy_are_a_dict(make: Any) -> None:
    kind = MemoryPPO if make is make_model else MemoryImpala
    with pytest.raises(ValueError, match=r"policy_kwargs must be a dict, got \[1\]"):
        kind("MlpMemoryPolicy", staggered_env(), policy_kwargs=[1])
    assert torch.is_tensor(make(staggered_env(), "gru").policy.value_net.weight), "and so is none at all"
