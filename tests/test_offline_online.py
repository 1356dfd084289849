"Offline to online: runs do not see each other, a killed run resumes to the same bits, own transitions teach."
from dataclasses import replace

import numpy as np
import pytest
import torch

from offline_toy import DyingWork, Killed
from rlpapers.core.record import Work
from rlpapers.offline.data import Normalizer, load_transitions
from rlpapers.offline.environments import CARTPOLE, Lanes, lanes
from rlpapers.offline.online import BadOnline, Online, OnlineConfig, first_dip, online_steps_to, train_online
from rlpapers.offline.td3bc import TD3BC
from rlpapers.offline.trainer import Evaluator

SMALL = OnlineConfig(dataset="offline/cartpole/tiny-v0", seeds=(0, 1), width=16, actor_depth=2, batch=32, lr=1e-3, updates=8, pretrain=4,
                     bootstrap_on_timeout=True, eval_every=8, eval_episodes=1, online_steps=48, warmup=6, save_every=16, exploration=.3)


def stack(config, steps, updates=8):
    "A stack after its offline phase and some online steps."
    data, env_id = load_transitions(config.dataset, config.limit)
    agent = TD3BC(config, data)
    for u in range(1, updates + 1): agent.step(u)
    online = Online(agent, Evaluator(agent, env_id, Normalizer.fit(data.obs)), env_id)
    for _ in range(steps): online.step()
    return online


def test_stack_equals_single_runs():
    config = replace(SMALL, exploration=1., online_steps=60)          # loud noise ends episodes: lanes restart at different steps
    together = stack(config, 60)
    assert len(set(together.actors.episode)) > 1
    for v, variant in enumerate(config.variants):
        for i, seed in enumerate(config.seeds):
            alone, r = stack(replace(config, seeds=(seed,), variants=(variant,)), 60), v * len(config.seeds) + i
            for k, x in alone.buffer.columns.items(): torch.testing.assert_close(x[0], together.buffer.columns[k][r], atol=1e-5, rtol=0)
            for name in ("actor", "critic"):
                torch.testing.assert_close(alone.agent.nets[name].theta[0], together.agent.nets[name].theta[r], atol=1e-5, rtol=0)
                torch.testing.assert_close(alone.agent.targets[name][0], together.agent.targets[name][r], atol=1e-5, rtol=0)


@pytest.mark.parametrize("task, saves", [("cartpole", 1), ("cartpole", 2), ("cartpole", 3), ("pendulum", 2), ("hopper", 3)])
def test_killed_run_resumes_to_the_same_bits(tmp_path, task, saves):  # save 1 ends the offline phase
    config = replace(SMALL, dataset=f"offline/{task}/tiny-v0", exploration=1.)
    whole, again = Work(tmp_path / "whole"), Work(tmp_path / "again")
    metrics = train_online(config, whole).metrics
    with pytest.raises(Killed): train_online(config, DyingWork(tmp_path / "again", saves))
    assert metrics.equals(train_online(config, again).metrics)
    (step, a), (same, b) = whole.load(), again.load()
    assert step == same == config.updates + config.online_steps
    for name, p in a["nets"].items():
        for k, x in p.items(): assert torch.equal(x, b["nets"][name][k])
    for k, x in a["online"]["buffer"].items(): assert torch.equal(x, b["online"]["buffer"][k])


@pytest.mark.parametrize("env_id", [CARTPOLE, "Hopper-v5"])
def test_restarted_lanes_equal_fresh_episodes(env_id):
    env, rng = lanes(env_id, 3), np.random.default_rng(0)
    env.reset([1, 2, 3])
    actions = rng.uniform(-1, 1, (20, 3, *env.action_space.shape)).astype(np.float32)
    for a in actions[:10]: env.step(a)
    fresh = Lanes(env_id, 1)
    np.testing.assert_array_equal(env.restart(1, 7), fresh.reset([7])[0])
    for a in actions[10:]: np.testing.assert_array_equal(env.step(a)[0][1], fresh.step(a[1:2])[0][0])


def test_batches_mix_as_asked_and_own_rows_are_the_runs_own():
    for share, known in ((0., 0), (.5, 16), (1., 32)):
        online = stack(replace(SMALL, offline_share=share), 10)
        for g in online.agent.groups():
            b, own = online.batch(100, g), online.buffer.columns["s"][g.runs, :10]
            assert b.s.shape == (6, 32, 4) and b.d.shape == (6, 32)
            in_data = (b.s[:, :, None] == online.agent.data["s"]).all(-1).any(-1)
            in_own = (b.s[:, :, None] == own[:, None]).all(-1).any(-1)
            assert in_data[:, :known].all() and in_own[:, known:].all()


def test_time_limits_bootstrap_as_configured():
    for across in (True, False):
        online = stack(replace(SMALL, dataset="offline/pendulum/tiny-v0", online_steps=202, warmup=201, bootstrap_on_timeout=across), 201)
        assert online.buffer.columns["d"].sum(1).tolist() == [0. if across else 1.] * 6          # Pendulum is cut after 200 steps
        assert online.actors.episode.tolist() == [1] * 6


def test_warm_up_collects_and_does_not_update():
    online = stack(SMALL, 6)
    before, update = online.agent.nets["actor"].theta.clone(), online.update
    assert update == SMALL.updates and online.buffer.filled == 6
    online.step()
    assert online.update == update + 1 and online.agent.nets["critic"].t[-1].max() == 9
    online.step()
    assert not torch.equal(before, online.agent.nets["actor"].theta)


def test_bad_settings_name_the_field():
    with pytest.raises(BadOnline, match="warmup"): replace(SMALL, warmup=0)
    with pytest.raises(BadOnline, match="offline_share"): replace(SMALL, offline_share=1.5)


def test_own_transitions_teach():
    "A clone of few rows balances longer after some time online, and measures agree with the curve."
    config = replace(SMALL, seeds=(0, 1, 2), variants=("actor+critic",), width=32, batch=64, updates=200, pretrain=200,
                     gamma=.95, tau=.02, online_alpha=1000., online_steps=1500, warmup=100,
                     eval_every=250, eval_episodes=5, save_every=10_000, exploration=.1)
    frame = train_online(config, Work()).metrics
    curve = frame[frame["update"] >= 200].pivot(index="step", columns="seed", values="score")
    assert curve.iloc[-3:].mean().mean() > curve.iloc[0].mean() + 5
    np.testing.assert_allclose(first_dip(frame).dip, (curve.iloc[0] - curve.iloc[1:].min()).clip(lower=0))
    assert online_steps_to(frame, curve.iloc[0].min()).steps.min() == 0 and not online_steps_to(frame, 1000.).reached.any()
