"""Envs as the agents step them: gymnasium's vector envs as `VecEnv`s, and checks of what envs return."""
