"""PPO and IMPALA agents with a memory core, in the manner of stable-baselines3.

from ctrl.agents import MemoryPPO

model = MemoryPPO("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"core": "compressive"})
model.learn(100_000)
"""

from ctrl.agents.actors.pool import ActorError
from ctrl.agents.checks.checking import check_memory
from ctrl.agents.evaluation import EvalCallback, evaluate_policy
from ctrl.agents.impala.impala import MemoryImpala, paper_impala
from ctrl.agents.policy.explain import AttendedTier, Explanation
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from ctrl.agents.ppo import MemoryPPO
from ctrl.agents.utils.nan_checks import NonFiniteError
from ctrl.agents.vec_envs.env_contract import EnvContractError
from ctrl.agents.vec_envs.vector_env import GymnasiumVecEnv, as_vec_env

__all__ = [
    "ActorError",
    "AttendedTier",
    "CnnMemoryPolicy",
    "EnvContractError",
    "EvalCallback",
    "Explanation",
    "GymnasiumVecEnv",
    "MemoryImpala",
    "MemoryPPO",
    "MemoryPolicy",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "NonFiniteError",
    "as_vec_env",
    "check_memory",
    "evaluate_policy",
    "paper_impala",
]
