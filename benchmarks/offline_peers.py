"""Gradient steps x seeds per CPU second of TD3+BC and EDAC against d3rlpy: same data, networks, batch, one thread each.

    python benchmarks/offline_peers.py --peer d3rlpy-env/bin/python [--widths 64 256] [--rounds 7] [--layer-norm]

d3rlpy needs an environment of its own, for it pins gymnasium 1.0: tests/golden/make_d3rlpy_updates.py says which packages. The two
processes work in turn, each for a moment, on the clock of CPU time; a ratio is the median over the rounds. A step includes drawing its
batch; "update" leaves d3rlpy's drawing out (a Python loop over rows), ours never. Networks have two hidden layers and no LayerNorm,
d3rlpy's default; with --layer-norm both have it (d3rlpy after the ReLU and with affine parameters, we before it and without).
"""
import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rlpapers.offline.data import Transitions
from rlpapers.offline.edac import EDAC, EDACConfig
from rlpapers.offline.td3bc import TD3BC, TD3BCConfig

OBS, ACT, ROWS, BATCH = 11, 3, 50_000, 256     # Hopper's sizes
MOMENT = .4                                    # CPU seconds of a turn, about


def synthetic() -> Transitions:
    "Random transitions in episodes of 1000."
    rng = np.random.default_rng(0)
    def normal(*shape): return rng.standard_normal(shape, np.float32)
    ends = np.arange(ROWS) % 1000 == 999
    return Transitions(obs=normal(ROWS, OBS), act=np.tanh(normal(ROWS, ACT)), rew=normal(ROWS), next_obs=normal(ROWS, OBS),
                       terminal=np.zeros(ROWS, bool), timeout=ends, episode=np.arange(ROWS) // 1000)


class Ours:
    "A stack of seeds of one of our algorithms."
    def __init__(self, name: str, seeds: int, width: int, layer_norm: bool, data: Transitions):
        shared = dict(seeds=tuple(range(seeds)), variants=("none" if layer_norm else "no LayerNorm",), width=width, batch=BATCH,
                      actor_depth=2, critic_depth=2, pretrain=0)
        if name == "TD3+BC": self.agent = TD3BC(TD3BCConfig(**shared), data)
        else: self.agent = EDAC(EDACConfig(critics=10, eta=float(name == "EDAC"), clone_updates=0, **shared), data)
        self.seeds, self.update = seeds, 0

    def __call__(self, updates: int) -> float:
        "CPU seconds of that many updates of all seeds."
        start = time.process_time()
        for _ in range(updates):
            self.update += 1
            self.agent.step(self.update)
        return time.process_time() - start


class Peer:
    "d3rlpy in its own interpreter."
    def __init__(self, python: str, data: Transitions, folder: str):
        path = Path(folder)/"data.npz"
        np.savez(path, obs=data.obs, act=data.act, rew=data.rew, terminal=data.terminal, timeout=data.timeout)
        script = Path(__file__).with_name("_d3rlpy_peer.py")
        self.process = subprocess.Popen([python, str(script), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __call__(self, request: str, updates: int) -> np.ndarray:  # CPU seconds of drawing and of updating
        self.process.stdin.write(f"{request} {updates}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer: raise SystemExit("d3rlpy's process ended: run benchmarks/_d3rlpy_peer.py by hand to see why")
        return np.array(answer.split(), float)


def burst(run) -> int:
    "An even number of updates that takes about a moment."
    run(4)
    return max(2, 2 * round(MOMENT / (float(np.sum(run(2))) + 1e-9)))


def compare(name: str, seeds: int, width: int, layer_norm: bool, rounds: int, data: Transitions, peer: Peer) -> None:
    "One line of the table."
    ours = Ours(name, seeds, width, layer_norm, data)
    request, mine, theirs = f"{'td3bc' if name == 'TD3+BC' else 'sac'} {width} {int(layer_norm)} {BATCH}", [], []
    n, m = burst(ours), burst(lambda k: peer(request, k))
    for _ in range(rounds):
        mine.append(ours(n) / n / seeds)
        theirs.append(peer(request, m) / m)
    mine, theirs = np.array(mine), np.array(theirs)
    whole = theirs.sum(1)
    rates = [1 / np.median(mine), 1 / np.median(whole)]
    ratios = [np.median(whole / mine), np.min(whole / mine), np.max(whole / mine), np.median(theirs[:, 1] / mine)]
    print(f"{name:>7} {width:>6} {seeds:>6} {rates[0]:>9.1f} {rates[1]:>9.1f} {ratios[0]:>7.2f} [{ratios[1]:.2f}, {ratios[2]:.2f}] {ratios[3]:>14.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", default="", help="Python interpreter of the environment that has d3rlpy")
    parser.add_argument("--algorithms", nargs="+", default=["TD3+BC", "SAC-N", "EDAC"])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layer-norm", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.peer: return print("offline_peers: skipped, for --peer names no interpreter that has d3rlpy (see the head of benchmarks/offline_peers.py)")
    data = synthetic()
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(args.peer, data, folder)
        print(f"gradient steps x seeds per CPU second, batch {BATCH}, {'LayerNorm' if args.layer_norm else 'no LayerNorm'}, torch {torch.__version__}")
        print(f"{'':>7} {'width':>6} {'seeds':>6} {'ours':>9} {'d3rlpy':>9} {'ours / d3rlpy':>20} {'update alone':>14}")
        for width in args.widths:
            for name in args.algorithms:
                for seeds in args.seeds: compare(name, seeds, width, args.layer_norm, args.rounds, data, peer)
        peer.process.stdin.close()
        peer.process.wait(10)


if __name__ == "__main__": main()
