"Promises of every offline algorithm: runs do not see each other, equal seeds give equal bits, resuming changes nothing, it learns."
from dataclasses import dataclass, field, fields, replace
from typing import Callable

import numpy as np
import pytest
import torch

from offline_toy import DyingWork, Killed, synthetic
from rlpapers.core.record import Work
from rlpapers.core.scale import UnknownField, at_scale
from rlpapers.offline import bc, cql, edac, hybrids, iql, rebrac, td3bc
from rlpapers.offline.data import Transitions
from rlpapers.offline.trainer import MAIN, Agent, OfflineConfig, UnknownVariant, diagnose


@dataclass(frozen=True)
class Algorithm:
    "An algorithm under test: fields for cheap updates, fields for learning in seconds, and how near to the best action it must come."
    agent: type[Agent]
    config: type[OfflineConfig]
    train: Callable
    small: dict = field(default_factory=dict)
    bandit: dict = field(default_factory=dict)
    greed: float = .2


ALGORITHMS = {
    "bc": Algorithm(bc.BC, bc.BCConfig, bc.train_bc),
    "td3bc": Algorithm(td3bc.TD3BC, td3bc.TD3BCConfig, td3bc.train_td3bc),
    "cql": Algorithm(cql.CQL, cql.CQLConfig, cql.train_cql, dict(samples=3, policy_lr=1e-3), dict(cql=1.), .3),
    "td3bccql": Algorithm(hybrids.TD3BCCQL, hybrids.TD3BCCQLConfig, hybrids.train_td3bccql, dict(samples=3),
                          dict(alpha=10., cql=.1, pretrain_cql=.1), .25),
    "rebrac": Algorithm(rebrac.ReBRAC, rebrac.ReBRACConfig, rebrac.train_rebrac),
    "iql": Algorithm(iql.IQL, iql.IQLConfig, iql.train_iql, {}, dict(beta=20., tau=.05), .3),
    "edac": Algorithm(edac.EDAC, edac.EDACConfig, edac.train_edac, dict(critics=3, clone_updates=3),
                      dict(clone_updates=150, eta=.1, lr=3e-3), .3),
    "edacbc": Algorithm(hybrids.EDACBC, hybrids.EDACBCConfig, hybrids.train_edacbc, dict(critics=3, clone_updates=3, eta=1.),
                        dict(clone_updates=150, eta=.1, lr=3e-3, bc=.1), .3),
}
LEARNERS = [name for name in ALGORITHMS if name != "bc"]       # cloning random actions teaches nothing
each = pytest.mark.parametrize("name", ALGORITHMS)


def small(name, **changes):
    shared = dict(dataset="offline/pendulum/tiny-v0", limit=2, seeds=(0, 1), variants=MAIN, width=16, batch=32, updates=12, pretrain=6,
                  eval_every=4, eval_episodes=1)
    return ALGORITHMS[name].config(**{**shared, **ALGORITHMS[name].small, **changes})


def trained(name, config, updates=10, data=synthetic()):
    agent = ALGORITHMS[name].agent(config, data)
    for u in range(1, updates + 1): agent.step(u)
    return agent


def state(agent):
    "All tensors of an agent by name."
    nets = {f"{n}.{k}": x for n, p in agent.nets.items() for k, x in vars(p).items()}
    return nets | {f"target.{n}": x for n, x in agent.targets.items()}


@pytest.mark.parametrize("lam", [0., .3])
@each
def test_stack_equals_single_runs(name, lam):
    config = small(name, lam=lam, pretrain=5)
    stack = trained(name, config)
    for v, variant in enumerate(MAIN):
        for i, seed in enumerate(config.seeds):
            single, r = trained(name, replace(config, seeds=(seed,), variants=(variant,))), v * len(config.seeds) + i
            for key, x in state(stack).items():
                if key.endswith((".m", ".v")): continue                         # moments follow from the rest, at other scales
                torch.testing.assert_close(state(single)[key][0], x[r], atol=1e-5, rtol=0, msg=lambda m: f"{variant} {seed} {key}: {m}")


@each
def test_same_seed_same_bits_other_seed_other_bits(name):
    a, b, c = (state(trained(name, small(name, seeds=seeds))) for seeds in ((0, 1), (0, 1), (2, 3)))
    assert all(torch.equal(x, b[k]) for k, x in a.items())
    assert not torch.equal(a["actor.theta"], c["actor.theta"])


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if "edac" not in n])     # its soft returns have tails of their own
def test_tail_bootstrap_needs_no_network_that_an_algorithm_lacks(name):
    agent = trained(name, small(name, tail="bootstrap", nstep=3, variants=("actor+critic",)), 4)
    assert all(x.isfinite().all() for x in state(agent).values())


@each
def test_killed_run_resumes_to_the_same_bits(name, tmp_path):
    config, train = small(name, eval_every=5, pretrain=7), ALGORITHMS[name].train          # killed within phase 1 and within phase 2
    whole = train(config, Work()).metrics
    for saves in (1, 1):
        with pytest.raises(Killed): train(config, DyingWork(tmp_path, saves))
    resumed = train(config, Work(tmp_path)).metrics
    assert list(whole.columns) == list(resumed.columns) and whole.equals(resumed)
    assert set(whole["update"]) == {0, 5, 10, 12} and np.isfinite(whole["score"]).all()


@each
def test_unknown_field_and_variant_name_the_alternatives(name):
    algorithm = ALGORITHMS[name]
    with pytest.raises(UnknownField, match="pretrain"): at_scale(algorithm.config, {"smoke": dict(pretrane=5)}, "smoke")
    with pytest.raises(TypeError, match="pretrane"): algorithm.config(pretrane=5)
    with pytest.raises(UnknownVariant, match="actor-only"): algorithm.agent(small(name, variants=("actoronly",)), synthetic())


@each
def test_metrics_are_finite_and_only_bc_lacks_a_critic(name):
    columns = diagnose(trained(name, small(name)))
    lacking = {k for k, x in columns.items() if not np.isfinite(x).all()}
    assert lacking == ({"q_data", "q_gap", "mc_error"} if name == "bc" else set())
    assert all(x.shape == (len(MAIN) * 2,) for x in columns.values())


def bandit(n=4000):
    "One-step episodes, random actions, reward 1 - (a - s)^2: the best action equals the state."
    g = np.random.default_rng(0)
    s, a = g.uniform(-1, 1, (n, 1)).astype(np.float32), g.uniform(-1, 1, (n, 1)).astype(np.float32)
    yes = np.ones(n, bool)
    return Transitions(s, a, 1 - ((a - s) ** 2)[:, 0], s, yes, ~yes, np.arange(n))


@pytest.mark.parametrize("name", LEARNERS)
def test_bandit_is_solved_with_and_without_pretraining(name):
    algorithm, data = ALGORITHMS[name], bandit()
    sizes = dict(variants=("none", "actor+critic"), width=32, batch=128, lr=1e-3, actor_depth=2, critic_depth=2, updates=2000, pretrain=300)
    agent = trained(name, small(name, **{**sizes, **algorithm.bandit}), 800, data)
    with torch.no_grad(): pi = agent.policy(agent.nets["actor"].theta, agent.data["s"].expand(4, -1, -1), agent.groups()[0])
    error = (pi - torch.as_tensor(data.obs)).abs().mean((1, 2))
    assert (error < algorithm.greed).all(), error


def test_the_hybrid_without_its_term_is_the_plain_algorithm():
    for hybrid, off, plain in (("td3bccql", dict(cql=0., pretrain_cql=0.), "td3bc"), ("edacbc", dict(bc=0.), "edac")):
        config = small(hybrid, **off)
        base = ALGORITHMS[plain].config(**{f.name: getattr(config, f.name) for f in fields(ALGORITHMS[plain].config)})
        a, b = state(trained(hybrid, config)), state(trained(plain, base))
        assert all(torch.equal(x, b[k]) for k, x in a.items()), hybrid


@pytest.mark.parametrize("name", ["td3bccql", "edacbc"])
def test_unknown_loss_scale_names_the_alternatives(name):
    config = small(name, loss_scale="as released")
    with pytest.raises(hybrids.UnknownLossScale, match="as_released"): ALGORITHMS[name].agent(config, synthetic())
