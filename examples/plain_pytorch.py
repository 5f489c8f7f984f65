"""PPO with a Compressive Transformer in one file: PyTorch, numpy and ctrl, nothing else.

A cue is shown at an episode's first step, noise follows, and the last step asks for the cue. The cue is 24 steps back
by then, three times as far as the memory keeps steps as they are. Without memory success is at most 0.25.

    python examples/plain_pytorch.py          # 300,000 steps, about a minute on one core
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

import ctrl

ENVS, WINDOW, CUES, DELAY, GAMMA, LAMBDA, EPOCHS = 64, 64, 4, 24, 0.95, 0.95, 4


class Recall:
    """Copies of the task, each at its own step of its own episode."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.time, self.cue = self.random.integers(DELAY, size=ENVS), self.random.integers(CUES, size=ENVS)

    def observe(self) -> Tensor:
        """Return [B, CUES + 2]: a symbol, and the flags "this is the cue" and "which one was it?"."""
        symbol = np.where(self.time == 0, self.cue, self.random.integers(CUES, size=ENVS))
        flags = np.stack([self.time == 0, self.time == DELAY], axis=1)
        return torch.tensor(np.hstack([np.eye(CUES)[symbol], flags]), dtype=torch.float32)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return rewards [B], and [B] true where an episode has ended and the next observation begins another."""
        ended = self.time == DELAY
        reward = ended & (action.numpy() == self.cue)
        self.time = np.where(ended, 0, self.time + 1)
        self.cue = np.where(ended, self.random.integers(CUES, size=ENVS), self.cue)
        return torch.tensor(reward, dtype=torch.float32), torch.tensor(ended)


def train(steps: int = 300_000, seed: int = 1) -> float:
    """Train for some steps, summed over the copies, and return the success in the last tenth of the episodes."""
    torch.manual_seed(seed)
    encoder, heads = nn.Sequential(nn.Linear(CUES + 2, 64), nn.ReLU()), nn.Linear(64, CUES + 1)  # policy and value
    core = ctrl.make_core("compressive", 64, memory=[ctrl.Tier(8), ctrl.Tier(8, rate=4)])
    groups = [[*encoder.parameters(), *core.main_parameters(), *heads.parameters()], core.compression_parameters()]
    # The reconstruction loss has an optimizer and a clip of its own.
    optimizers = [torch.optim.Adam(group, lr=rate) for group, rate in zip(groups, (1e-3, 5e-3), strict=True)]
    env, state, reset, successes = Recall(seed), core.initial_state(ENVS), torch.ones(ENVS, dtype=torch.bool), []
    for _ in range(steps // (ENVS * WINDOW)):
        before, acting, rollout = state, core.acting(state), []
        with torch.no_grad():
            for _ in range(WINDOW):
                obs = env.observe()
                logits, value = heads(acting.step(encoder(obs), reset)).split([CUES, 1], dim=1)
                action = torch.multinomial(logits.softmax(1), 1)
                log_prob = logits.log_softmax(1).gather(1, action)[:, 0]
                reward, ended = env.step(action[:, 0])
                rollout.append((obs, action, log_prob, value[:, 0], reward, reset, ended))
                reset = ended
                successes += reward[ended].tolist()
            state = acting.state()
            columns = (torch.stack(part, 1) for part in zip(*rollout, strict=True))
            obs, action, old, value, reward, resets, ends = columns  # [B, T, ..]
            following = heads(core.step(encoder(env.observe()), state, reset)[0])[:, -1]
            advantage, gae = torch.zeros_like(value), torch.zeros(ENVS)
            for t in reversed(range(WINDOW)):
                going_on = GAMMA * ~ends[:, t]
                gae = reward[:, t] + going_on * (following + LAMBDA * gae) - value[:, t]
                advantage[:, t], following = gae, value[:, t]
            returns, advantage = advantage + value, (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        plan, longest = core.plan(before, resets), {}
        for _ in range(EPOCHS):
            unrolled = core.unroll(encoder(obs), before, resets, plan=plan)
            logits, predicted = heads(unrolled.outputs).split([CUES, 1], dim=2)
            log_probs = logits.log_softmax(2)
            ratio = (log_probs.gather(2, action)[..., 0] - old).exp()
            policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            entropy = -(log_probs.exp() * log_probs).sum(2).mean()
            loss = policy_loss + 0.5 * (predicted[..., 0] - returns).square().mean() - 0.01 * entropy
            (loss + unrolled.reconstruction_loss).backward()  # the two share no parameter
            for optimizer, group, limit in zip(optimizers, groups, (0.5, 0.1), strict=True):
                nn.utils.clip_grad_norm_(group, limit)
                optimizer.step()
                optimizer.zero_grad()
            longest = {name: float(value) for name, value in unrolled.diagnostics.items()}
        core.adapt(longest)  # the clock stops after the longest episode that training has met
    return float(np.mean(successes[-len(successes) // 10 :]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"success {train(*map(int, sys.argv[1:])):.2f}; without memory at most {1 / CUES:.2f}")
