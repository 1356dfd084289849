"""TD3+BC updates a second: one stack of runs, the same runs one after the other, and a plain PyTorch loop as peers write it.

`python benchmarks/stacked_training.py [width ...]`, one torch thread, synthetic data of Hopper's sizes.
"""
import copy
import sys
import time

import numpy as np
import torch
from torch import nn

from rlpapers.offline.data import Transitions
from rlpapers.offline.td3bc import TD3BC, TD3BCConfig

OBS, ACT, ROWS = 11, 3, 20_000
SEEDS = (1, 4, 16)


def synthetic() -> Transitions:
    "Random transitions in episodes of 1000."
    rng = np.random.default_rng(0)
    def normal(*shape): return rng.standard_normal(shape, np.float32)
    ends = np.arange(ROWS) % 1000 == 999
    return Transitions(obs=normal(ROWS, OBS), act=np.tanh(normal(ROWS, ACT)), rew=normal(ROWS), next_obs=normal(ROWS, OBS),
                       terminal=np.zeros(ROWS, bool), timeout=ends, episode=np.arange(ROWS) // 1000)


def mlp(sizes: list[int], *last: nn.Module) -> nn.Sequential:
    hidden = [m for a, b in zip(sizes, sizes[1:-1]) for m in (nn.Linear(a, b), nn.LayerNorm(b, elementwise_affine=False), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-2], sizes[-1]), *last)


class PlainTD3BC:
    "The usual single run: nn.Sequential, one torch.optim.Adam a network, target copies."
    def __init__(self, c: TD3BCConfig, data: Transitions):
        self.c, self.data = c, [torch.as_tensor(x) for x in (data.obs, data.act, data.rew, data.next_obs, data.timeout.astype(np.float32))]
        self.actor = mlp([OBS, *[c.width] * c.actor_depth, ACT], nn.Tanh())
        self.critics = nn.ModuleList(mlp([OBS + ACT, *[c.width] * c.critic_depth, 1]) for _ in range(2))
        self.nets = [self.actor, self.critics]
        self.targets = copy.deepcopy(self.nets)
        self.optimisers = [torch.optim.Adam(net.parameters(), lr=c.lr) for net in self.nets]

    def descend(self, loss, which: int) -> None:
        self.optimisers[which].zero_grad()
        loss.backward()
        self.optimisers[which].step()

    def step(self, update: int) -> None:
        c = self.c
        s, a, r, s2, d = (x[torch.randint(ROWS, (c.batch,))] for x in self.data)
        with torch.no_grad():
            noise = (c.policy_noise * torch.randn_like(a)).clamp(-c.noise_clip, c.noise_clip)
            a2 = (self.targets[0](s2) + noise).clamp(-1, 1)
            y = r + c.gamma * (1 - d) * torch.minimum(*(q(torch.cat([s2, a2], -1))[:, 0] for q in self.targets[1]))
        self.descend(sum((q(torch.cat([s, a], -1))[:, 0] - y).pow(2).mean() for q in self.critics), 1)
        if update % 2: return
        pi = self.actor(s)
        q = self.critics[0](torch.cat([s, pi], -1))
        self.descend(-c.alpha * q.mean() / q.abs().mean().detach() + (pi - a).pow(2).mean(), 0)
        with torch.no_grad():
            for net, target in zip(self.nets, self.targets):
                for p, t in zip(net.parameters(), target.parameters()): t.lerp_(p, c.tau)


def rate(steps, seconds: float = 1.5, repeats: int = 3) -> float:
    "Best rounds a second of calling all of `steps`."
    best, update = 0., 0
    for _ in range(repeats):
        start, rounds = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / repeats:
            update, rounds = update + 1, rounds + 1
            for f in steps: f(update)
        best = max(best, rounds / (time.perf_counter() - start))
    return best


def main() -> None:
    torch.set_num_threads(1)
    data = synthetic()
    print("TD3+BC updates a second, all runs together (runs x updates / second), one torch thread")
    print(f"{'width':>6} {'runs':>5} {'stacked':>9} {'one by one':>11} {'plain loop':>11} {'stacked / one by one':>21} {'stacked / plain':>16}")
    for width in map(int, sys.argv[1:] or (64, 256)):
        for n in SEEDS:
            config = TD3BCConfig(seeds=tuple(range(n)), variants=("none",), width=width, pretrain=0)
            single = TD3BCConfig(seeds=(0,), variants=("none",), width=width, pretrain=0)
            stack, alone, plain = TD3BC(config, data), TD3BC(single, data), PlainTD3BC(single, data)
            stacked = n * rate([stack.step])
            loop, peer = rate([alone.step]), rate([plain.step])
            print(f"{width:>6} {n:>5} {stacked:>9.0f} {loop:>11.0f} {peer:>11.0f} {stacked / loop:>21.2f} {stacked / peer:>16.2f}")


if __name__ == "__main__": main()
