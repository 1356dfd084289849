"World models and agents: resumed runs are the same runs, wrong names are named, and the whole loop runs."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rlpapers.core.grid import compare_metrics
from rlpapers.core.record import Work
from rlpapers.diamond.agent import AgentConfig
from rlpapers.diamond.dream import BadDream
from rlpapers.diamond.edm import SamplerConfig
from rlpapers.diamond.gameplay import DataConfig, TooShort, UnknownPolicy, gather, held_out
from rlpapers.diamond.grids import EXPERIMENTS, plan
from rlpapers.diamond.reward import RewardConfig, transitions
from rlpapers.diamond.tokens import TokenRun, train_tokens
from rlpapers.diamond.training import Loop, LoopRun, Piece, restored, schedule, train_loop
from rlpapers.diamond.unet import UNetConfig
from rlpapers.diamond.world import MATCHED, RELEASED, UnknownObjective, WorldRun, make_objective, train_world, trained_world

NET = UNetConfig(channels=(8, 16), depths=(1, 1), attention=(0, 0), cond=16, patch=2)
CATCH = DataConfig(game="PixelCatch", size=16, steps=120, shares=(.1,))
WORLD = WorldRun(data=CATCH, unet=NET, updates=6, batch=4, lr=1e-3, log_every=2, save_every=3, drift=(1, 2), trajectories=2, horizon=3, weights=True)
LOOP = LoopRun(world=replace(WORLD, data=replace(CATCH, policy="random"), sampler=SamplerConfig(steps=1)), reward=RewardConfig(channels=(8,), depths=(1,), cond=8, lstm=16, image=16),
               agent=AgentConfig(channels=(8, 8), lstm=16, image=16), initial=60, initial_most=60, collect=15, collect_epochs=1, epochs=2, first=(3, 2, 2), later=(2, 1, 1), dreams=4, pool=2,
               reward_batch=2, reward_steps=5, test_every=1, test_episodes=3, final_episodes=4, test_envs=2, chunk=2, imagined=1, world_events=.5)
TOKENS = TokenRun(data=CATCH, codes=8, channels=8, dim=4, width=16, layers=1, heads=2, tokeniser_updates=25, updates=5, batch=4, log_every=5, save_every=10, trajectories=2, horizon=3)


class Interrupted(Exception): "Stands for a lost machine."


class Dying(Work):
    "A machine that is lost after some checkpoints."
    def __init__(self, folder, lives): super().__init__(folder); self.lives = lives
    def save(self, step, state):
        super().save(step, state)
        self.lives -= 1
        if not self.lives: raise Interrupted


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("train, config, lives", [(train_world, WORLD, 1), (train_world, replace(WORLD, objective="DDPM", precision="bfloat16", cosine=True), 1),
                                                  (train_tokens, TOKENS, 2), (train_loop, LOOP, 1), (train_loop, LOOP, 4), (train_loop, LOOP, 9)])
def test_a_resumed_run_is_the_same_run(train, config, lives, tmp_path):
    "Every bit of every metric and tensor, wherever the run was cut off."
    whole = train(config, Work())
    with pytest.raises(Interrupted): train(config, Dying(tmp_path, lives))
    resumed = train(config, Work(tmp_path))
    assert compare_metrics(whole.metrics, resumed.metrics)[0] == "identical"
    assert whole.tensors.keys() == resumed.tensors.keys() and all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)


def test_the_loop_does_what_its_plan_says():
    metrics = train_loop(LOOP, Work()).metrics
    assert metrics.kind.tolist() == [p.kind for p in schedule(LOOP)]
    assert metrics[metrics.kind == "collect"].steps.tolist() == [60, 75] and metrics[metrics.kind == "test"].games.tolist() == [4, 4, 4]
    assert metrics[metrics.kind == "world"]["update"].max() == 5 and np.isfinite(metrics[metrics.kind.isin(["world", "reward"])].loss).all()
    agent = metrics[metrics.kind == "agent"]
    assert agent["update"].tolist() == [2, 3] and agent.entropy.between(0, np.log(3) + 1e-6).all()


def test_every_second_segment_of_the_reward_model_ends_in_a_dream():
    loop = Loop(LOOP)
    loop.do(Piece(0, "collect", 60))
    segment = loop.game.replay.segments(2, 5, np.random.default_rng(0), "reward").to()
    real, (obs, following, counts) = transitions(segment), loop.pairs(segment)
    assert torch.equal(obs, real[0]) and torch.equal(counts, real[2]) and counts[:, -1].all()          # one step is imagined: no later one starts from it
    changed = (following != real[1]).flatten(2).any(-1)
    assert changed.tolist() == [[False] * 3 + [True], [False] * 4]
    loop.c = replace(LOOP, imagined=0)
    assert all(map(torch.equal, loop.pairs(segment), real))
    loop.c = replace(LOOP, imagined=2)
    with pytest.raises(BadDream, match="last=2: need 1 to 1"): loop.pairs(segment)


def test_recorded_networks_come_back():
    output = train_loop(LOOP, Work())
    loop = restored(LOOP, output.tensors)
    assert {k for k in output.tensors if k.startswith("weights/")} == {f"weights/{n}/{k}" for n in ("world", "reward", "agent") for k in getattr(loop, n).module.state_dict()}
    run = type("Run", (), dict(tensors=train_world(WORLD, Work()).tensors, key="x"))
    objective, inner = trained_world(WORLD, run)
    frames, act = (torch.as_tensor(x) for x in held_out(CATCH, 1, 5))
    assert objective.sample(inner, frames[:, :4].float() / 127.5 - 1, act[:, :4], torch.Generator().manual_seed(0)).shape == (1, 3, 16, 16)
    with pytest.raises(UnknownObjective, match="weights=True"): trained_world(WORLD, type("Run", (), dict(tensors={}, key="x")))


def test_seeds_differ_and_objectives_share_their_batches():
    first, second = (train_world(replace(WORLD, seed=s), Work()).metrics for s in (0, 1))
    assert compare_metrics(first, second)[0] != "identical"
    drift = train_world(replace(WORLD, **MATCHED), Work()).metrics.query("kind == 'drift'")
    assert set(zip(drift.spacing, drift.steps)) == {(s, n) for s in ("leading", "trailing") for n in (1, 2)}
    released = make_objective(replace(WORLD, **RELEASED))
    assert released.context_scale == 1 and make_objective(replace(WORLD, **MATCHED)).context_scale == .5
    one = train_world(replace(WORLD, objective="Regression"), Work()).metrics
    assert set(one.kind) == {"train", "drift"} and one[one.kind == "drift"].steps.unique().tolist() == [1]


def test_wrong_names():
    with pytest.raises(UnknownObjective, match="Did you mean 'DDPM'"): make_objective(replace(WORLD, objective="DPPM"))
    with pytest.raises(UnknownObjective, match="bfloat16"): train_world(replace(WORLD, precision="bfloat8"), Work())
    with pytest.raises(UnknownPolicy, match="Known: expert, random"): gather(replace(CATCH, policy="exprt"))
    with pytest.raises(TooShort, match="shorter"): held_out(replace(CATCH, policy="random"), 1, 120)


def test_unknown_game():
    from rlpapers.diamond.atari import UnknownGame
    pytest.importorskip("ale_py")
    with pytest.raises(UnknownGame, match="Breakout"): gather(DataConfig(game="Braekout", steps=10))


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_grid_can_be_planned(scale):
    rows = plan(scale)
    assert {r["notebook"] for r in rows} == set(EXPERIMENTS) and all(r["updates"] > 0 and r["hours"] >= 0 for r in rows)
    assert isinstance(pd.DataFrame(rows), pd.DataFrame)
