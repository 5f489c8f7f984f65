"""Env under check: how to build it, single and vectorised, and how to play it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from ctrl.checks.result import Breach
from ctrl.envs.checks.transcript import Event, Playable, Restarting, play

COPIES = 5
"""Number of copies in a vector env."""
EPISODES = 3
"""Number of episodes of each copy in the play that a law checks, except in the check for memory leaks."""
CALLS = 2_000
"""Maximum number of steps in this play, for envs with long episodes."""
Single = gym.Env[Any, Any]
Vector = VectorEnv[Any, Any, Any]


@dataclass
class Subject:
    """Env to check: functions that build it, and facts about it."""

    make: Callable[..., Single]
    """Function that builds one copy; takes `render_mode`."""
    native: Mapping[AutoresetMode, Callable[[int], Vector]] = field(default_factory=dict)
    """Functions that build the env's own vector env with a number of copies, one for each mode that it has."""
    native_problem: str | None = None
    """Error text if the env has a vector env of its own that cannot be built."""
    strict: bool = False
    """True if remarks count as breaches, as for the tasks of this package."""
    longest: int | None = None
    """Number of steps in the longest episode, if it is stated."""
    seed: int = 0
    steps: int = 100_000
    """Number of steps in the check for memory leaks."""
    tick: Callable[[], None] | None = None
    """Function called after each step, to show progress."""
    _opened: list[Any] = field(default_factory=list)

    def single(self, **options: Any) -> Single:
        """Build one copy."""
        env = self.make(**options)
        self._opened.append(env)
        return env

    def forms(self) -> Iterator[tuple[str, Callable[[], Playable]]]:
        """Yield the name of each form of the env, single or native vector env, and a function that builds it."""
        yield "single env", lambda: Restarting(self.single())
        for mode in list(self.native)[:1]:
            yield "native vector env", partial(self.vector, mode)

    def vector(self, mode: AutoresetMode) -> Vector:
        """Build the env's own vector env."""
        envs = self.native[mode](COPIES)
        self._opened.append(envs)
        return envs

    def sync(self, mode: AutoresetMode) -> Vector:
        """Build gymnasium's vector env of single envs."""
        envs = SyncVectorEnv([self.make] * COPIES, autoreset_mode=mode)
        self._opened.append(envs)
        return envs

    def play(self, envs: Playable, *, calls: int = CALLS) -> Iterator[Event]:
        """Yield the events of random play from the subject's seed."""
        return play(envs, seed=self.seed, calls=calls, episodes=EPISODES, tick=self.tick)

    def close(self) -> None:
        """Close all envs that were built. Errors are ignored: the law `gymnasium_accepts_it` reports them."""
        while self._opened:
            try:
                self._opened.pop().close()
            except Exception:
                continue

    def insist(self, detail: str) -> str:
        """Raise `Breach` if the subject is strict, else return `detail` as a remark."""
        if self.strict:
            raise Breach(detail)
        return detail
