"TD3+BC and its data: runs do not see each other, resuming changes nothing."
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from offline_toy import DyingWork, Killed, synthetic
from rlpapers.core.record import Work
from rlpapers.offline.data import MissingPolicy, Transitions, UnknownTail, load_policy, returns_to_go
from rlpapers.offline.td3bc import TD3BC, TD3BCConfig, train_td3bc
from rlpapers.offline.trainer import MAIN, UnknownVariant, diagnose


SMALL = TD3BCConfig(dataset="offline/pendulum/medium-v0", limit=4, seeds=(0, 1, 2), width=16, batch=32, updates=12, pretrain=6, eval_every=4, eval_episodes=1)


def trained(config, updates=10, data=synthetic()):
    agent = TD3BC(config, data)
    for u in range(1, updates + 1): agent.step(u)
    return agent


@pytest.mark.parametrize("lam", [0., .3])
def test_stack_equals_single_runs(lam):
    config = replace(SMALL, lam=lam, pretrain=5)
    stack = trained(config)
    for v, variant in enumerate(MAIN):
        for i, seed in enumerate(config.seeds):
            single, r = trained(replace(config, seeds=(seed,), variants=(variant,))), v * len(config.seeds) + i
            for name in ("actor", "critic"):
                torch.testing.assert_close(single.nets[name].theta[0], stack.nets[name].theta[r], atol=1e-5, rtol=0)
            torch.testing.assert_close(single.targets["critic"][0], stack.targets["critic"][r], atol=1e-5, rtol=0)


def test_same_seed_same_bits_other_seed_other_bits():
    a, b, c = trained(SMALL), trained(SMALL), trained(replace(SMALL, seeds=(3, 4, 5)))
    assert torch.equal(a.nets["actor"].theta, b.nets["actor"].theta) and torch.equal(a.nets["critic"].v, b.nets["critic"].v)
    assert not torch.equal(a.nets["actor"].theta, c.nets["actor"].theta)


@pytest.mark.parametrize("saves", [1, 2])
def test_killed_run_resumes_to_the_same_bits(tmp_path, saves):
    whole = train_td3bc(SMALL, Work()).metrics
    with pytest.raises(Killed): train_td3bc(SMALL, DyingWork(tmp_path, saves))
    resumed = train_td3bc(SMALL, Work(tmp_path)).metrics
    assert list(whole.columns) == list(resumed.columns) and whole.equals(resumed)


def test_actor_only_targets_stay_random_unless_synchronised():
    released, fair = (trained(replace(SMALL, sync_targets=sync), updates=6) for sync in (False, True))
    start = TD3BC(SMALL, synthetic())
    runs = slice(6, 9)                                                # actor-only
    assert torch.equal(released.targets["actor"][runs], start.targets["actor"][runs])
    assert torch.equal(fair.targets["actor"][runs], fair.nets["actor"].theta[runs])


def test_critic_pretraining_approaches_returns():
    data = synthetic(seed=1)
    config = replace(SMALL, variants=("actor+critic",), width=64, batch=128, lr=1e-3, pretrain=400, tail="finite", gamma=.5)
    start, end = (trained(config, u, data) for u in (0, 400))
    assert diagnose(end)["mc_error"].mean() < .55 * diagnose(start)["mc_error"].mean()


def test_unknown_variant_and_tail_name_the_alternatives():
    with pytest.raises(UnknownVariant, match="actor-only"): TD3BC(replace(SMALL, variants=("actoronly",)), synthetic())
    with pytest.raises(UnknownTail, match="repeat_last"): returns_to_go(synthetic(), tail="repeat-last")
    with pytest.raises(UnknownTail, match="values"): returns_to_go(synthetic(), tail="bootstrap")
    with pytest.raises(MissingPolicy, match="pendulum-medium"): load_policy("pendulum-mediun")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(0, 10_000), st.floats(0, .999), st.sampled_from(("finite", "repeat_last")))
def test_returns_obey_bellman_and_ignore_other_episodes(n, seed, gamma, tail):
    data = synthetic(n, seed)
    g = returns_to_go(data, gamma, tail).astype(float)
    inside = np.setdiff1d(np.arange(n), data.ends)
    np.testing.assert_allclose(g[inside], data.rew[inside] + gamma * g[inside + 1], rtol=1e-4, atol=1e-3)
    last = data.episode == data.episode[-1]
    alone = Transitions(*(getattr(data, f)[last] for f in ("obs", "act", "rew", "next_obs", "terminal", "timeout", "episode")))
    np.testing.assert_array_equal(returns_to_go(alone, gamma, tail), g[last].astype(np.float32))


def test_levels_do_not_depend_on_the_order_of_rows_and_scale_with_time():
    import pandas as pd
    from rlpapers.offline.curves import level_table
    g = np.random.default_rng(0)
    speed = {"none": 1., "actor-only": .5, "actor+critic": 2.}
    frame = pd.DataFrame([dict(variant=v, seed=s, update=u, score=20 + 60 * min(k * u / 1000, 1) + g.normal() - (v == "actor-only") * 5)
                          for v, k in speed.items() for s in range(5) for u in range(0, 2001, 50)])
    table = level_table(frame, switch=50)
    shuffled = level_table(pd.concat([frame[frame.variant == v].sample(frac=1, random_state=0) for v in speed]), switch=50)
    pd.testing.assert_frame_equal(table, shuffled)
    slow = level_table(frame.assign(update=frame["update"] * 10), switch=500)
    np.testing.assert_allclose(slow.updates, table.updates * 10)
    np.testing.assert_allclose(slow.speedup, table.speedup)
    both = table.set_index("variant").loc["actor+critic"]
    assert 1.5 < both.speedup < 2.5 and both.speedup_low <= both.speedup <= both.speedup_high


def curves_with(clone, none, both, seeds=5, noise=0., start=0.):
    import pandas as pd
    g = np.random.default_rng(0)
    ends = {"none": (start, none), "actor-only": (clone, clone), "actor+critic": (clone, both)}
    shift = g.normal(size=seeds) * noise
    def score(v, s, u): return start if u == 0 else np.interp(u, [100, 600], ends[v]) + (v != "actor-only") * shift[s]
    return pd.DataFrame([dict(variant=v, seed=s, update=u, score=score(v, s, u)) for v in ends for s in range(seeds) for u in range(0, 1001, 100)])


def test_a_plateau_that_is_not_above_the_clone_has_no_level():
    from rlpapers.offline.curves import level_table
    numbers = ["level", "updates", "low", "high", "speedup", "speedup_low", "speedup_high"]
    below = level_table(curves_with(clone=30, none=20, both=25), switch=100)
    assert below[numbers].isna().to_numpy().all() and not below.reached.any() and below.without.eq(1).all()
    unclear = level_table(curves_with(clone=30, none=20, both=31, noise=10), switch=100)       # the rise is 1, its interval includes zero
    assert unclear[numbers].isna().to_numpy().all() and (unclear.rise_low < 0).all() and unclear.without.between(.05, .95).all()
    above = level_table(curves_with(clone=30, none=60, both=60, noise=1), switch=100)
    assert above.level.notna().all() and (above.rise_low > 0).all() and above.without.eq(0).all()


def test_a_level_that_untrained_networks_are_at_is_none():
    from rlpapers.offline.curves import level_table
    frame = curves_with(clone=-10, none=0, both=-10, start=5)
    assert level_table(frame, switch=100).level.isna().all()                                   # was a speed-up of 0 / 1
    assert level_table(frame[frame["update"] > 0], switch=100).level.notna().all()


def test_speedups_of_censored_runs_have_open_intervals():
    from rlpapers.offline.curves import level_table
    table = level_table(curves_with(clone=10, none=20, both=60, noise=1), switch=100).set_index("variant")
    assert not table.reached["none"] and np.isinf(table.speedup_high["actor+critic"]) and table.speedup_low["actor+critic"] > 1
    table = level_table(curves_with(clone=10, none=60, both=20, noise=1), switch=100).set_index("variant")
    assert not table.reached["actor+critic"] and table.speedup_low["actor+critic"] == 0 and table.speedup_high["actor+critic"] < 1
    assert table.loc["none", ["speedup", "speedup_low", "speedup_high"]].eq(1).all()
    alone = level_table(curves_with(clone=10, none=60, both=60, seeds=1), switch=100)          # one seed: a level, no intervals
    assert alone.level.notna().all() and alone.speedup_low.isna().all()


def test_gain_after_the_switch_ignores_pretraining_and_pairs_seeds():
    from rlpapers.offline.curves import score_gain
    frame = curves_with(clone=30, none=20, both=20, noise=10)
    mean, low, high = score_gain(frame, after=700)
    assert abs(mean) < 1e-9 and abs(low) < 1e-9 and abs(high) < 1e-9                           # equal curves from then on, seed by seed
    assert score_gain(frame)[1] > 0                                                            # over the run the clone counts
    np.testing.assert_allclose(score_gain(frame, 300, "none", "actor+critic")[0], -score_gain(frame, 300)[0])
