"""Training episodes per CPU second of our POEM and ProtoNet against easyfsl's prototypical network: same glyph episodes, same backbone, one thread.

    python benchmarks/poem_episodes.py [--peer easyfsl-env/lib/python3.11/site-packages] [--rounds 7]

easyfsl comes from an environment of its own (`pip install --no-deps easyfsl==1.5.0`); `--peer` names the folder that it was installed to, and without it the
comparison is skipped. Its network gets the usual conv4 of `torch.nn` modules and, as our ProtoNet here, classifies by distances of the backbone's features,
without heads; both have Adam's fused kernel. A step is zero gradients, loss, backward, update; the episodes are drawn before. "POEM" has two heads more;
easyfsl's method takes one episode at a time, ours any number.
The two work in turn in one process, each for a moment, on the clock of CPU time; a ratio is the median over the rounds.
"""
import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from rlpapers.core.rng import counter_generator
from rlpapers.poem.encoders import conv4
from rlpapers.poem.glyphs import glyphs
from rlpapers.poem.learners import POEM, ProtoNet
from rlpapers.poem.views import partial_tasks, whole_tasks

EPISODES = 20
SETTINGS = {"crops of 14 px, 3 blocks of 32": (14, 32, 3), "crops of 14 px, 3 blocks of 64": (14, 64, 3),
            "whole, 28 px, 4 blocks of 32": (28, 32, 4), "whole, 28 px, 4 blocks of 64": (28, 64, 4)}


def usual_conv4(channels: int, blocks: int) -> nn.Sequential:
    "The backbone as one would write it."
    parts = []
    for i in range(blocks):
        parts += [nn.Conv2d(1 if i == 0 else channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten())


def bare(learner):
    "Our ProtoNet without a head: distances of the backbone's features."
    learner.head = nn.Identity()
    return learner


class Peer:
    "A training step of easyfsl's tutorial."
    def __init__(self, folder: str, channels: int, blocks: int):
        self.model = load_easyfsl(folder)(usual_conv4(channels, blocks)).train()
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-3, fused=True)

    def __call__(self, task) -> None:
        self.optimiser.zero_grad()
        self.model.process_support_set(task.support.pixels, task.item)
        F.cross_entropy(self.model(task.query.pixels), task.target[0]).backward()
        self.optimiser.step()


def load_easyfsl(folder: str):
    "easyfsl's PrototypicalNetworks from the folder that it was installed to, without its data sets and their dependencies."
    root = Path(folder)/"easyfsl"
    if not root.is_dir(): raise SystemExit(f"--peer: no easyfsl in {folder}. Name the site-packages folder of the environment that has it.")
    for name, path in (("easyfsl", root), ("easyfsl.methods", root/"methods")):
        sys.modules[name] = package = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, None))
        package.__path__ = [str(path)]
    from easyfsl.methods.prototypical_networks import PrototypicalNetworks
    return PrototypicalNetworks


class Ours:
    "A training step of one of our learners."
    def __init__(self, learner):
        self.learner = learner.train()
        self.optimiser = torch.optim.Adam(learner.parameters(), 1e-3, fused=True)

    def __call__(self, task) -> None:
        self.optimiser.zero_grad()
        self.learner.loss(task).backward()
        self.optimiser.step()


def seconds(step, tasks) -> float:
    "CPU seconds of an episode."
    start = time.process_time()
    for task in tasks: step(task)
    return (time.process_time() - start) / sum(task.tasks for task in tasks)


def compare(name: str, peer: str, rounds: int) -> None:
    "One block of the table."
    size, channels, blocks = SETTINGS[name]
    images, draw = glyphs("train"), lambda i: counter_generator(0, i)
    if size == 14: make = lambda i, n: partial_tasks(images, draw(i), n, classes=(3, 3), support=9)
    else: make = lambda i, n: whole_tasks(images, draw(i), n, ways=(10, 10))
    tasks, fours = [make(i, 1) for i in range(EPISODES)], [make(i, 4) for i in range(EPISODES // 4)]
    place = 4 if size == 14 else 0
    encoder = lambda p: conv4(size, 1, channels, blocks, p)
    plain = [t._replace(support=t.support._replace(place=t.support.place[:, :0]), query=t.query._replace(place=t.query.place[:, :0])) for t in tasks]
    runs = {"ProtoNet": (Ours(bare(ProtoNet(encoder(0)))), plain), "ProtoNet, head and place": (Ours(ProtoNet(encoder(place), 64, 64)), tasks),
            "POEM": (Ours(POEM(encoder(place), 64, 64)), tasks),
            "POEM, 4 episodes a step": (Ours(POEM(encoder(place), 64, 64)), fours)}
    if peer: runs["easyfsl"] = Peer(peer, channels, blocks), tasks
    for step, t in runs.values(): seconds(step, t[:3])
    times = {k: np.array(x) for k, x in zip(runs, zip(*[[seconds(*run) for run in runs.values()] for _ in range(rounds)]))}
    print(f"{name}: {len(tasks[0].item) + tasks[0].target.numel()} views")
    for k, x in times.items():
        ratio = times["easyfsl"] / x if peer else np.full(rounds, np.nan)
        print(f"  {k:25} {1 / np.median(x):7.1f} episodes/s" + (f"  {np.median(ratio):5.2f} x easyfsl [{ratio.min():.2f}, {ratio.max():.2f}]" if peer and k != "easyfsl" else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", default="", help="site-packages folder that has easyfsl")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.peer: print("poem_episodes: no comparison, for --peer names no folder that has easyfsl (see the head of benchmarks/poem_episodes.py)")
    for name in SETTINGS: compare(name, args.peer, args.rounds)


if __name__ == "__main__": main()
