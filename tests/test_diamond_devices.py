"Every kind of run that the grids of paper scale ask for: it works, with small networks and few updates, and all its tensors meet on one device."
from dataclasses import replace

import numpy as np
import pytest
from elsewhere import elsewhere

from rlpapers.core.record import Work
from rlpapers.diamond import grids
from rlpapers.diamond.unet import UNetConfig

SMALL = dict(channels=(8, 8), depths=(1, 1), cond=8)


def small_unet(c: UNetConfig) -> UNetConfig:
    "The same inputs and extras, another size."
    return replace(c, **SMALL, attention=(0, 1 if any(c.attention) else 0))


def small_world(c):
    return replace(c, data=replace(c.data, steps=400), unet=small_unet(c.unet), updates=2, batch=2, log_every=1, drift=(1, 3), trajectories=2, horizon=4)


def small_run(c):
    "A run of a few seconds in everything else like `c`."
    if isinstance(c, grids.WorldRun): return small_world(c)
    if isinstance(c, grids.TokenRun): return replace(c, data=replace(c.data, steps=400), codes=8, channels=4, dim=8, width=16, layers=2, heads=2, tokeniser_updates=2, updates=2, batch=2, log_every=1, trajectories=2, horizon=4)
    if isinstance(c, grids.StageRun): return replace(c, walks=replace(c.walks, walkers=8, steps=40), unet=small_unet(c.unet), updates=2, batch=2, log_every=1, trajectories=2, horizon=4)
    heads, world = dict(channels=(4, 4, 4), lstm=16, image=16), replace(c.world, data=replace(grids.CATCH, policy="random"))      # episodes of seconds
    return replace(c, world=small_world(world), reward=replace(c.reward, **heads, depths=(1, 1, 1), cond=8), agent=replace(c.agent, **heads), initial=300, initial_most=600, rewarded=0, collect=60,
                   collect_epochs=1, epochs=2, first=(1, 1, 1), later=(1, 1, 1), dreams=2, dream_steps=3, pool=4, reward_batch=2, reward_steps=6, test_every=1, test_episodes=1, final_episodes=1, test_envs=1)


def kinds():
    "One run of each kind: seeds and games apart, they are alike."
    found = {}
    for notebook, grid in grids.EXPERIMENTS.items():
        for name, (fn, c) in grid("paper", 1).items():
            kind = repr(replace(c, data=grids.CATCH) if hasattr(c, "data") else replace(c, world=replace(c.world, data=grids.CATCH)) if hasattr(c, "world") else c)
            found.setdefault((fn, kind), pytest.param(fn, c, id=f"{notebook}, {name}"))
    return found.values()


@pytest.mark.parametrize("fn, c", kinds())
def test_runs_of_paper_scale(fn, c):
    assert c.device == "cuda"
    with elsewhere(): out = fn(small_run(c), Work())
    fitted = out.metrics[out.metrics.kind.isin(["train", "tokeniser", "writer", "world", "reward", "agent"])]
    assert len(fitted) and np.isfinite([row["policy_loss" if row["kind"] == "agent" else "loss"] for _, row in fitted.iterrows()]).all()
