"EDAC, SAC-N and EDAC+BC: agreement with a naive single run, independence of the stack, resuming across stages, invariants of the paper."
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from offline_toy import DyingWork, Killed, synthetic
from rlpapers.core.record import Work
from rlpapers.offline.data import Transitions, UnknownTail
from rlpapers.offline.edac import EDAC, BadEnsemble, EDACConfig, diversity, input_gradient, released_phases, small_heads, train_edac
from rlpapers.offline.hybrids import EDACBC, EDACBCConfig, train_edacbc
from rlpapers.offline.networks import count_parameters, init_stack, plain_mlp, unpack
from rlpapers.offline.policies import log_prob, sample, temperature_loss
from rlpapers.offline.targets import soft_returns
from rlpapers.offline.trainer import MAIN, Group, diagnose


SMALL = EDACConfig(dataset="offline/pendulum/medium-v0", limit=4, seeds=(0, 1, 2), width=16, batch=32, critics=3, updates=18, pretrain=10,
                   clone_updates=5, eval_every=3, eval_episodes=1)
HYBRID = EDACBCConfig(**{k: getattr(SMALL, k) for k in SMALL.__dataclass_fields__} | dict(variants=MAIN))


def trained(config, updates=10, data=synthetic()):
    agent = (EDACBC if isinstance(config, EDACBCConfig) else EDAC)(config, data)
    for u in range(1, updates + 1): agent.step(u)
    return agent


def tensors(agent): return [agent.nets[k].theta for k in ("actor", "critic", "log_alpha")] + [agent.targets["critic"]]


# --- the stack ---
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, lam=.3, eta=0.), replace(SMALL, diversity_rows=8), HYBRID],
                         ids=["EDAC", "SAC-N, lambda", "few rows", "EDAC+BC"])
def test_stack_equals_single_runs(config):
    config = replace(config, pretrain=6, clone_updates=3)
    stack = trained(config)
    for v, variant in enumerate(MAIN):
        for i, seed in enumerate(config.seeds):
            single, r = trained(replace(config, seeds=(seed,), variants=(variant,))), v * len(config.seeds) + i
            for one, all_ in zip(tensors(single), tensors(stack)): torch.testing.assert_close(one[0], all_[r], atol=1e-5, rtol=0)


def test_same_seed_same_bits_other_seed_other_bits():
    a, b, c = trained(SMALL), trained(SMALL), trained(replace(SMALL, seeds=(3, 4, 5)))
    assert all(map(torch.equal, tensors(a), tensors(b))) and not any(map(torch.equal, tensors(a), tensors(c)))


@pytest.fixture(scope="module")
def uninterrupted(): return {train: train(c, Work()).metrics for train, c in ((train_edac, SMALL), (train_edacbc, HYBRID))}


@pytest.mark.parametrize("train,config,saves", [
    pytest.param(train_edac, SMALL, 1, id="BC stage"), pytest.param(train_edac, SMALL, 2, id="critic stage"),
    pytest.param(train_edac, SMALL, 5, id="RL"),
    pytest.param(train_edacbc, HYBRID, 2, id="EDAC+BC, critic stage"), pytest.param(train_edacbc, HYBRID, 4, id="EDAC+BC, RL")])
def test_killed_run_resumes_to_the_same_bits(tmp_path, uninterrupted, train, config, saves):
    with pytest.raises(Killed): train(config, DyingWork(tmp_path, saves))
    resumed = train(config, Work(tmp_path)).metrics
    assert list(uninterrupted[train].columns) == list(resumed.columns) and uninterrupted[train].equals(resumed)


# --- one run, one network at a time ---
def net(theta, x, sizes):
    layers = unpack(theta, sizes)
    for k, (w, b) in enumerate(layers):
        x = x @ w + b
        if k < len(layers) - 1: x = F.relu(F.layer_norm(x, x.shape[-1:]))
    return x


class NaiveRun:
    "SAC-N, EDAC, EDAC+BC as one would write them first: torch's Adam, a loop over critics, double backward, all pairs."
    def __init__(self, agent, r):
        leaf = lambda t: t.clone().requires_grad_()
        self.c, self.sizes = agent.config, agent.sizes
        self.actor, self.log_alpha = leaf(agent.nets["actor"].theta[r]), leaf(agent.nets["log_alpha"].theta[r])
        self.critics, self.targets = ([leaf(t) for t in x[r]] for x in (agent.nets["critic"].theta, agent.targets["critic"]))
        self.optim = [torch.optim.Adam(p, self.c.lr) for p in ([self.log_alpha], [self.actor], self.critics)]

    def policy(self, s):
        mu, log_std = net(self.actor, s, self.sizes["actor"]).chunk(2, -1)
        return torch.distributions.Normal(mu, log_std.clamp(-5, 2).exp())

    def density(self, pi, u): return (pi.log_prob(u) - (1 - u.tanh() ** 2 + 1e-6).log()).sum(-1)

    def act(self, s, noise):
        pi = self.policy(s)
        u = pi.mean + pi.stddev * noise
        return u.tanh(), self.density(pi, u)

    def q(self, critics, s, a): return torch.stack([net(t, torch.cat([s, a], -1), self.sizes["critic"])[:, 0] for t in critics])

    def descend(self, i, loss):
        self.optim[i].zero_grad()
        loss.backward()
        self.optim[i].step()

    def tune(self, logp, act_dim): self.descend(0, -(self.log_alpha * (logp.detach() - act_dim)).mean())

    def clone(self, s, a, noise):
        logp = self.act(s, noise)[1]
        self.tune(logp, a.shape[-1])
        data = self.density(self.policy(s), a.clamp(-1 + 1e-6, 1 - 1e-6).atanh())
        self.descend(1, (self.log_alpha.exp().detach() * logp - data).mean())

    def align(self, s, a):
        a = a.clone().requires_grad_()
        g = [torch.autograd.grad(q.sum(), a, create_graph=True)[0] for q in self.q(self.critics, s, a)]
        g = [x / x.norm(dim=-1, keepdim=True) for x in g]
        return sum((x * y).sum(-1).mean() for x in g for y in g if x is not y) / (len(g) - 1)

    def regress(self, s, a, target, mean):
        error = (self.q(self.critics, s, a) - target).pow(2).mean(1)
        self.descend(2, (error.mean() if mean else error.sum()) + self.c.eta * self.align(s, a))
        with torch.no_grad():
            for t, theta in zip(self.targets, self.critics): t.lerp_(theta, self.c.tau)

    def improve(self, s, a, r, s2, d, noise, noise2):
        act, logp = self.act(s, noise)
        self.tune(logp, a.shape[-1])
        alpha = self.log_alpha.exp().detach()
        loss = (alpha * logp - self.q(self.critics, s, act).min(0).values).mean()
        if hasattr(self.c, "bc"):
            clone = ((act - a) ** 2).mean()
            loss = loss / loss.detach().abs() + self.c.bc * clone / clone.detach()
        self.descend(1, loss)
        with torch.no_grad():
            a2, logp2 = self.act(s2, noise2)
            y = r + self.c.gamma * (1 - d) * (self.q(self.targets, s2, a2).min(0).values - alpha * logp2)
        self.regress(s, a, y, mean=False)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, eta=0.), HYBRID], ids=["EDAC", "SAC-N", "EDAC+BC"])
def test_all_stages_equal_the_naive_run(config):
    config = replace(config, variants=("actor+critic",), pretrain=4, clone_updates=2)
    agent = trained(config, 0)
    naive, r = NaiveRun(agent, 1), 1
    for u in range(1, 9):
        b, g = agent.batch(u), agent.groups(u)[0]
        noise = lambda name: b.normal(name, config.batch, 2)[r]
        s, a = b.s[r], b.a[r]
        if u <= 2: naive.clone(s, a, noise("actor"))
        elif u <= 4: naive.regress(s, a, agent.returns(b, g)[r], mean=True)
        else: naive.improve(s, a, b.r[r], b.s2[r], b.d[r], noise("actor"), noise("target"))
        agent.step(u)
        ours = agent.nets["actor"].theta[r], agent.nets["critic"].theta[r], agent.targets["critic"][r], agent.nets["log_alpha"].theta[r]
        theirs = naive.actor, torch.stack(naive.critics), torch.stack(naive.targets), naive.log_alpha
        for x, y in zip(ours, theirs): torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


# --- soft returns of the stage ---
def test_table_of_soft_returns_is_that_of_each_run_and_of_scaled_rewards():
    data, config = synthetic(), replace(SMALL, variants=("actor+critic",), reward_scale=.5)
    agent = trained(config, 5, data)
    g, b = agent.groups(6)[0], agent.batch(6)
    h, alpha = agent.entropies(g), agent.alpha(g, clip=False)[:, 0]
    assert torch.equal(h, agent.entropies(g)) and h.shape == (3, 300)
    for r in range(3):
        expected = soft_returns(replace(data, rew=.5 * data.rew), h[r].numpy(), alpha[r].item())
        np.testing.assert_allclose(agent.returns(b, g)[r], expected[b.rows[r]], rtol=1e-4, atol=1e-4)
    alone = trained(replace(config, seeds=(1,)), 5, data)
    torch.testing.assert_close(agent.entropies(g)[1:2], alone.entropies(Group(slice(0, 1), g.variant, 1)), atol=1e-4, rtol=0)


def test_tables_are_dropped_after_pretraining():
    agent = trained(SMALL, SMALL.pretrain)
    assert len(agent.soft) == 1
    agent.step(SMALL.pretrain + 1)
    assert not agent.soft


def test_critic_stage_approaches_soft_returns():
    config = replace(SMALL, variants=("actor+critic",), width=64, batch=128, lr=1e-3, pretrain=400, clone_updates=100,
                     tail="finite", gamma=.5, eta=.01)
    def error(agent):
        g, b = agent.groups(400)[0], agent.batch(0)
        q = torch.as_tensor(agent.values(b.s, b.a)).float()
        return (q - agent.returns(b, g)).pow(2).mean().sqrt().item()
    assert error(trained(config, 400)) < .6 * error(trained(config, 100))


# --- invariants of the specification ---
@pytest.mark.parametrize("obs,act,critic,actor", [(11, 3, 135_681, 136_198), (17, 6, 137_985, 139_276), (45, 24, 149_761, 155_696)])
def test_parameter_counts(obs, act, critic, actor):                           # 8.10
    agent = EDAC(EDACConfig(seeds=(0,), variants=("none",), critics=2), synthetic(20, obs=obs, act=act))
    assert agent.nets["critic"].theta.shape == (1, 2, critic) and agent.nets["actor"].theta.shape == (1, actor)
    assert count_parameters(agent.sizes["critic"]) == critic


def test_initial_weights():
    agent = EDAC(replace(SMALL, width=64), synthetic())
    actor, critic = (unpack(agent.nets[k].theta, agent.sizes[k]) for k in ("actor", "critic"))
    for net_, head in ((actor, 1e-3), (critic, 3e-3)):
        w, bias = net_[-1]
        assert all((b == .1).all() for _, b in net_[:-1]) and .9 * head < w.abs().max() <= head and bias.abs().max() <= head
    assert .9 / 3 ** .5 < actor[0][0].abs().max() <= 1 / 3 ** .5              # fan-in of three observations
    assert critic[0][0].abs().max() <= 1 / 64 ** .5                            # the released quirk: the width instead of five inputs
    corrected = unpack(EDAC(replace(SMALL, width=64, released_init=False), synthetic()).nets["critic"].theta, agent.sizes["critic"])
    assert .9 / 5 ** .5 < corrected[0][0].abs().max() <= 1 / 5 ** .5
    assert small_heads((3, 8, 2), [torch.Generator().manual_seed(0)], 4).shape == (1, 4, count_parameters((3, 8, 2)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_diversity(n, act, seed):                                             # 8.13
    g = torch.randn(2, n, 8, act, generator=torch.Generator().manual_seed(seed))
    unit = F.normalize(g, dim=-1)
    pairs = (torch.einsum("rnba,rmba->rnmb", unit, unit).mean(-1).sum((1, 2)) - n) / (n - 1)
    torch.testing.assert_close(diversity(g), pairs, atol=1e-5, rtol=0)
    torch.testing.assert_close(diversity(g[:, :1].expand(-1, n, -1, -1)), torch.full((2,), float(n)))
    torch.testing.assert_close(diversity(torch.stack([g[:, 0], -g[:, 0]], 1)), torch.full((2,), -2.))
    assert diversity(torch.eye(n)[None, :, None].expand(-1, -1, 3, -1)).abs() < 1e-5


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_input_gradient_equals_double_backward(depth, members, norm, seed):
    gen = torch.Generator().manual_seed(seed)
    sizes = (5, *[12] * depth, 1)
    theta, normal = init_stack(sizes, [gen, gen], members), lambda *shape: torch.randn(*shape, generator=gen)
    x, weight = normal(2, 1, 7, 5), normal(2, members, 7, 2)
    def both(f):
        leaf = theta.clone().requires_grad_()
        q, g = f(leaf)
        return q, g, torch.autograd.grad((q.sin() + (weight * g.sin()).sum(-1)).sum(), leaf)[0]
    def reference(leaf):
        inputs = x.expand(-1, members, -1, -1).clone().requires_grad_()
        q = plain_mlp(leaf, inputs, sizes, norm).squeeze(-1)
        return q, torch.autograd.grad(q.sum(), inputs, create_graph=True)[0][..., 3:]
    for ours, theirs in zip(both(lambda leaf: input_gradient(leaf, x, sizes, norm, slice(3, None))), both(reference)):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_tanh_gaussian():                                                     # 8.16
    zero = torch.zeros(3)
    assert abs(sample(zero, zero, zero)[1].item() + 2.756818) < 1e-5
    g = torch.Generator().manual_seed(0)
    mu, log_std, noise = .5 * torch.randn(500, 3, generator=g), torch.rand(500, 3, generator=g) - 1.5, torch.randn(500, 3, generator=g)
    a, logp = sample(mu, log_std, noise)
    inside = (mu + log_std.exp() * noise).abs().amax(-1) < 3
    assert inside.sum() > 400
    torch.testing.assert_close(log_prob(a, mu, log_std)[inside], logp[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize("logp,up", [(3., True), (1., False)])
def test_temperature_direction(logp, up):                                     # 8.17, two action dimensions
    agent = trained(replace(SMALL, variants=("none",)), 0)
    g = agent.groups()[0]
    agent.tune(torch.full((3, 32), logp), g)
    assert ((agent.nets["log_alpha"].theta > 0) == up).all() and (agent.alpha(g).log() != 0).all()
    assert temperature_loss(torch.zeros(1, 1), torch.ones(1, 4), 2).item() == 0


def test_phase_arithmetic():                                                  # 8.18
    assert released_phases(20) == (21_000, 10_000) and released_phases(200) == (201_000, 100_000) and released_phases(5) == (6_000, 2_000)
    c = EDACConfig()
    assert (c.pretrain, c.clone_updates) == released_phases(20)
    calls = {v: [] for v in MAIN}
    class Log(EDAC):
        def note(self, what, g): [calls[v].append(what) for i, v in enumerate(MAIN) if g.runs.start <= i < g.runs.stop]
        def clone(self, b, g): self.note("clone", g)
        def regress(self, b, g): self.note("regress", g)
        def improve(self, b, g, update): self.note("improve", g)
    agent = Log(replace(SMALL, seeds=(0,), pretrain=21, clone_updates=10), synthetic())
    for u in range(1, 31): agent.step(u)
    assert calls["actor+critic"] == ["clone"] * 10 + ["regress"] * 11 + ["improve"] * 9
    assert calls["actor-only"] == ["clone"] * 21 + ["improve"] * 9 and calls["none"] == ["improve"] * 30


def test_lambda():                                                            # 8.19
    def moment(lam, improve=False):
        agent = trained(replace(SMALL, variants=("actor+critic",), lam=lam, eta=0.), 5)
        b, g = agent.batch(6), agent.groups(6)[0]
        agent.td_target(b, g)
        (agent.improve_critic if improve else agent.regress)(b, g)
        return agent.nets["critic"].m[0, 0]
    cosine = lambda x, y: F.cosine_similarity(x, y, dim=0)
    assert torch.equal(moment(0.), moment(-1.))
    assert cosine(moment(1.), moment(0., improve=True)) > .9999 > cosine(moment(0.), moment(0., improve=True))


def test_eta_is_n_times_stronger_in_pretraining():
    agent = trained(replace(SMALL, variants=("actor+critic",)), 5)
    b, g = agent.batch(6), agent.groups(6)[0]
    def gradient(part):                                                       # critic loss with and without the regression
        leaf = agent.nets["critic"].theta.clone().requires_grad_()
        q, aligned = agent.q_diverse(leaf, b, g)
        error = (agent.returns(b, g)[:, None] - q).pow(2).mean(-1)
        return torch.autograd.grad(dict(mean=error.mean(1).sum(), sum=error.sum(), aligned=aligned.sum())[part], leaf)[0].norm()
    assert abs(gradient("sum") / gradient("mean") - SMALL.critics) < 1e-3 and gradient("aligned") > 0


def test_time_limits_end_targets():                                           # 8.20
    agent = trained(SMALL, 0)
    g, b = agent.groups()[0], agent.batch(1)
    y, done = agent.td_target(b, g), b.d.bool()
    assert done.any() and torch.equal(y[done], b.r[done])


def test_actor_step_leaves_critics_alone_and_uses_the_minimum():
    agent = trained(replace(SMALL, variants=("none",)), 0)
    before = agent.nets["critic"].theta.clone()
    agent.improve_actor(agent.batch(1), agent.groups()[0])
    assert torch.equal(agent.nets["critic"].theta, before) and agent.nets["critic"].t.sum() == 0
    b = agent.batch(0)
    with torch.no_grad(): q = agent.q(before, b.s, b.a, agent.groups()[0])
    np.testing.assert_allclose(agent.values(b.s, b.a), q.amin(1), atol=1e-6)
    assert {"alpha", "entropy", "q_spread", "alignment"} <= set(diagnose(agent))


def test_as_released_scaling_lowers_positive_values():                        # pitfall P3
    for mode, rises in (("abs", True), ("as_released", False)):
        agent = trained(replace(HYBRID, loss_scale=mode, variants=("none",)), 0)
        b, g = agent.batch(1), agent.groups()[0]
        q = torch.full((3, 32), 2., requires_grad=True)
        slope = torch.autograd.grad(agent.actor_loss(q, torch.zeros(3, 32), torch.zeros(3, 32, 2), b, g).sum(), q)[0]
        assert ((-slope > 0) == rises).all()


@pytest.mark.parametrize("change,error,match", [
    (dict(critics=1), BadEnsemble, "critics >= 2"), (dict(clone_updates=11), BadEnsemble, "clone_updates=11"),
    (dict(nstep=3), BadEnsemble, "nstep=0"), (dict(tail="drop"), UnknownTail, "repeat_last"),
    (dict(soft_tail="consistant"), UnknownTail, "consistent")])
def test_bad_configurations_name_the_field(change, error, match):
    with pytest.raises(error, match=match): EDAC(replace(SMALL, **change), synthetic())
    EDAC(replace(SMALL, critics=1, eta=0.), synthetic())


def test_reward_scale_temperature_and_eta_scale_together():
    def loss(scale):
        config = replace(SMALL, variants=("none",), reward_scale=scale, init_alpha=scale, eta=scale ** 2)
        agent = trained(config, 0)
        for x in unpack(agent.nets["critic"].theta, agent.sizes["critic"])[-1]: x.mul_(scale)      # Q in the rewards' units, in place
        agent.targets["critic"].copy_(agent.nets["critic"].theta)
        g, b = agent.groups()[0], agent.batch(1)
        q, aligned = agent.q_diverse(agent.nets["critic"].theta, b, g)
        return ((agent.td_target(b, g)[:, None] - q).pow(2).mean(-1).sum(-1) + aligned) / scale ** 2
    torch.testing.assert_close(loss(.25), loss(1.), rtol=1e-4, atol=1e-5)


# --- learning ---
@pytest.mark.parametrize("config", [EDACConfig(eta=0.), EDACConfig(eta=.1), EDACBCConfig(eta=.1)], ids=["SAC-N", "EDAC", "EDAC+BC"])
def test_bandit(config):
    g = np.random.default_rng(0)
    s = g.uniform(-.6, .6, (3000, 1)).astype(np.float32)
    a, yes = np.clip(s + .3 * g.normal(size=s.shape), -1, 1).astype(np.float32), np.ones(3000, bool)
    data = Transitions(s, a, .3 - ((a - s) ** 2)[:, 0], s, yes, ~yes, np.arange(3000))
    config = replace(config, dataset="", seeds=(0,), variants=("none", "actor+critic"), critics=4, width=32, batch=64, lr=3e-3,
                     pretrain=200, clone_updates=100, actor_depth=2, critic_depth=2)
    agent = trained(config, 600, data)
    with torch.no_grad(): pi = agent.policy(agent.nets["actor"].theta, agent.data["s"].expand(2, -1, -1), agent.groups()[0])
    assert ((pi - torch.as_tensor(s)).abs().mean((1, 2)) < .12).all()
