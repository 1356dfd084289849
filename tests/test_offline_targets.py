"Critic targets: returns against sums written out in full, stacks against loops, and the statements of 01a_critic_targets."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.offline import targets as T
from rlpapers.offline.data import Transitions, UnknownTail, returns_to_go
from rlpapers.offline.networks import init_stack, mlp
from rlpapers.offline.sweeps import mixed_policy, optimal_values, policy_values, random_mdp

def check(*strategies, examples=80):
    "Over 80 examples, the same in every run."
    return lambda test: settings(max_examples=examples, deadline=None, derandomize=True)(given(*strategies)(test))

seeds = st.integers(0, 2**32 - 1)
gammas = st.sampled_from([0., .5, .9, .99])
lambdas = st.sampled_from([0., .3, .5, .9, 1.])

def make_log(seed, lengths, how):
    "Random rewards; each episode ends, is cut, or (0, a data set that breaks off) has no flag at all."
    rng, n = np.random.default_rng(seed), sum(lengths)
    terminal, timeout = np.zeros(n, bool), np.zeros(n, bool)
    last = np.cumsum(lengths) - 1
    kind = np.resize(how, len(lengths))
    terminal[last[kind == 1]], timeout[last[kind == 2]] = True, True
    x = np.zeros((n, 1), np.float32)
    return Transitions(x, x, rng.normal(size=n).astype(np.float32), x, terminal, timeout, np.repeat(np.arange(len(lengths)), lengths))

logs = st.builds(make_log, seeds, st.lists(st.integers(1, 9), min_size=1, max_size=8),
                 st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=8))

def normal(data, seed, *lead): return np.random.default_rng(seed).normal(size=(*lead, len(data)))

def episodes(data):
    "(first row, one past the last, ended) of each episode."
    return [(s, e + 1, bool(data.terminal[e])) for s, e in zip(np.append(0, data.ends[:-1] + 1), data.ends)]

def close(a, b): np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

# Definitions, without recursion

def full_n_step(data, v, n, gamma, bootstrap=True):
    out = []
    for s, e, ended in episodes(data):
        for t in range(s, e):
            k = min(n, e - t)
            known = t + k < e or (bootstrap and not ended)
            out.append(sum(gamma**i * float(data.rew[t + i]) for i in range(k)) + (gamma**k * v[t + k - 1] if known else 0.))
    return np.array(out)

def full_lambda(data, v, lam, gamma, bootstrap=True):
    longest = max(e - s for s, e, _ in episodes(data))
    n_step = [full_n_step(data, v, n, gamma, bootstrap) for n in range(1, longest + 1)]
    rest = [e - t for s, e, _ in episodes(data) for t in range(s, e)]
    return np.array([sum((1 - lam) * lam**(n - 1) * n_step[n - 1][t] for n in range(1, m)) + lam**(m - 1) * n_step[m - 1][t]
                     for t, m in enumerate(rest)])

def full_soft(data, h, alpha, gamma, tail, soft_tail, more=4000):
    "Cut episodes are prolonged by many repetitions of their last row."
    out = []
    for s, e, ended in episodes(data):
        r, ent = data.rew[s:e].astype(float), h[s:e].astype(float)
        goes_on = tail == "repeat_last" and not ended
        if goes_on: r, ent = np.append(r, np.full(more, r[-1])), np.append(ent, np.full(more, ent[-1]))
        for t in range(e - s):
            paid = ent[t + 1:] * (not (goes_on and soft_tail == "as_released" and t == e - s - 1))
            out.append((gamma**np.arange(len(r) - t) * r[t:]).sum() + alpha * (gamma**np.arange(1, len(ent) - t) * paid).sum())
    return np.array(out)

@check(logs, seeds, gammas, st.integers(1, 12), st.booleans())
def test_n_step_is_its_definition(data, seed, gamma, n, bootstrap):
    v = normal(data, seed)
    close(T.n_step_returns(data, v, n, gamma, bootstrap), full_n_step(data, v, n, gamma, bootstrap))

@check(logs, seeds, gammas, lambdas, st.booleans())
def test_lambda_return_is_the_mixture_of_n_step_returns(data, seed, gamma, lam, bootstrap):
    v = normal(data, seed)
    close(T.lambda_returns(data, v, lam, gamma, bootstrap), full_lambda(data, v, lam, gamma, bootstrap))

@check(logs, seeds, gammas, st.floats(0, 3), st.sampled_from(["repeat_last", "finite"]), st.sampled_from(T.SOFT_TAILS))
def test_soft_return_is_its_definition(data, seed, gamma, alpha, tail, soft_tail):
    h = normal(data, seed)
    close(T.soft_returns(data, h, alpha, gamma, tail, soft_tail), full_soft(data, h, alpha, gamma, tail, soft_tail))

# Special cases and identities

@check(logs, seeds, gammas)
def test_ends_of_the_scale(data, seed, gamma):
    v = normal(data, seed)
    close(T.lambda_returns(data, v, 0., gamma), T.n_step_returns(data, v, 1, gamma))
    monte_carlo = returns_to_go(data, gamma, "bootstrap", v[data.ends])
    close(T.lambda_returns(data, v, 1., gamma), monte_carlo)
    close(T.n_step_returns(data, v, len(data), gamma), monte_carlo)
    close(T.n_step_returns(data, v, len(data), gamma, False), returns_to_go(data, gamma, "finite"))

@check(logs, seeds, gammas, st.sampled_from(["repeat_last", "finite"]), st.sampled_from(T.SOFT_TAILS))
def test_temperature_zero_is_the_hard_return(data, seed, gamma, tail, soft_tail):
    assert np.array_equal(T.soft_returns(data, normal(data, seed), 0., gamma, tail, soft_tail), returns_to_go(data, gamma, tail))

@check(logs, seeds, gammas, st.floats(0, 3))
def test_consistent_soft_return_is_a_fixed_point(data, seed, gamma, alpha):
    h = normal(data, seed)
    G = T.soft_returns(data, h, alpha, gamma, soft_tail="consistent").astype(float)
    inside = np.setdiff1d(np.arange(len(data)), data.ends)
    np.testing.assert_allclose(G[inside], data.rew[inside] + gamma * (alpha * h[inside + 1] + G[inside + 1]), rtol=1e-4, atol=1e-4)

@check(logs, seeds, gammas, st.floats(0, 3))
def test_soft_tails_differ_in_the_last_row_of_cut_episodes_only(data, seed, gamma, alpha):
    h = normal(data, seed)
    released, consistent = (T.soft_returns(data, h, alpha, gamma, soft_tail=t) for t in T.SOFT_TAILS)
    cut = data.ends[~data.terminal[data.ends]]
    same = np.isin(np.arange(len(data)), cut, invert=True)
    assert np.array_equal(released[same], consistent[same])
    close(consistent[cut] - released[cut], alpha * gamma * h[cut] / (1 - gamma))

@check(logs, seeds, gammas, lambdas)
def test_true_values_are_a_fixed_point(data, seed, gamma, lam):
    "On a log without noise (r_t = V(s_t) - gamma V(s_{t+1})) every target is V(s_t)."
    V = normal(data, seed)
    after = np.append(V[1:], 0.)
    after[data.ends] = np.where(data.terminal[data.ends], 0., normal(data, seed + 1)[data.ends])
    exact = Transitions(data.obs, data.act, V - gamma * after, data.next_obs, data.terminal, data.timeout, data.episode)
    for target in (T.lambda_returns(exact, after, lam, gamma), T.n_step_returns(exact, after, 3, gamma)): close(target, V)

# Stacks, unknown values, order of episodes

@check(logs, seeds, gammas)
def test_stack_is_a_loop(data, seed, gamma):
    values, alphas, lams = normal(data, seed, 3), np.array([0., .5, 2.]), np.array([0., .5, 1.])
    for stack, loop in [(T.soft_returns(data, values, alphas, gamma), [T.soft_returns(data, v, a, gamma) for v, a in zip(values, alphas)]),
                        (T.soft_returns(data, values[0], alphas, gamma), [T.soft_returns(data, values[0], a, gamma) for a in alphas]),
                        (T.lambda_returns(data, values, lams, gamma), [T.lambda_returns(data, v, c, gamma) for v, c in zip(values, lams)]),
                        (T.lambda_returns(data, values[0], lams, gamma), [T.lambda_returns(data, values[0], c, gamma) for c in lams]),
                        (T.n_step_returns(data, values, 2, gamma), [T.n_step_returns(data, v, 2, gamma) for v in values])]:
        assert stack.shape == (3, len(data)) and stack.dtype == np.float32
        assert np.array_equal(stack, np.stack(loop))

@check(logs, seeds, st.integers(1, 5), lambdas, st.floats(0, .6))
def test_nan_marks_what_depends_on_it_and_nothing_else(data, seed, n, lam, share):
    v, gone = normal(data, seed), np.random.default_rng(seed).random(len(data)) < share
    known = np.where(gone, np.nan, v)
    for f in (lambda x: T.n_step_returns(data, x, n, .9), lambda x: T.lambda_returns(data, x, lam, .9)):
        target, moved = f(known), f(np.where(gone, v + 1e6, v))
        touched = np.abs(moved - f(v)) > 1e-2
        assert np.array_equal(np.isnan(target), touched)
        close(target[~touched], f(v)[~touched])

@check(logs, seeds, gammas, lambdas)
def test_episodes_do_not_see_each_other(data, seed, gamma, lam):
    v, parts = normal(data, seed), episodes(data)
    order = np.random.default_rng(seed).permutation(len(parts))
    rows = np.concatenate([np.arange(*parts[i][:2]) for i in order])
    number = np.concatenate([np.full(parts[i][1] - parts[i][0], k) for k, i in enumerate(order)])
    mixed = Transitions(*(x[rows] for x in (data.obs, data.act, data.rew, data.next_obs, data.terminal, data.timeout)), number)
    assert np.array_equal(T.lambda_returns(mixed, v[rows], lam, gamma), T.lambda_returns(data, v, lam, gamma)[rows])
    assert np.array_equal(T.soft_returns(mixed, v[rows], .5, gamma), T.soft_returns(data, v, .5, gamma)[rows])

@check(logs, seeds)
def test_integer_rewards(data, seed):
    rewards = np.random.default_rng(seed).integers(-3, 4, len(data))
    whole = Transitions(data.obs, data.act, rewards, data.next_obs, data.terminal, data.timeout, data.episode)
    v = normal(data, seed)
    close(T.lambda_returns(whole, v, .5, .9), full_lambda(whole, v, .5, .9))
    close(T.soft_returns(whole, v, .5, .9), full_soft(whole, v, .5, .9, "repeat_last", "as_released"))

def test_numbers_of_the_specification():
    ended, cut = (make_log(0, [3], [kind]) for kind in (1, 2))
    h = np.array([.1, .2, .3])
    for data in (ended, cut): data.rew[:] = [1, 2, 3]
    close(T.soft_returns(ended, h, 2., .5), [3.1, 3.8, 3.0])
    close(T.soft_returns(cut, h, 2., .5), [4.0, 5.6, 6.0])
    close(T.soft_returns(cut, h, 2., .5, soft_tail="consistent"), [4.0, 5.6, 6.6])
    five = make_log(0, [5], [1])
    five.rew[:] = 0
    close(T.soft_returns(five, [0, 2, 4, 6, 8], 1., .5), [3.25, 4.5, 5, 4, 0])                # sum that excludes its first term

# Reward processes

def make_process(seed, states, end):
    rng = np.random.default_rng(seed)
    P = np.column_stack([rng.dirichlet(np.ones(states), states) * (1 - end), np.full(states, end)])
    return T.RewardProcess(P, rng.normal(size=P.shape))

processes = st.builds(make_process, seeds, st.integers(1, 6), st.sampled_from([0., .1, .5]))

@check(processes, seeds, lambdas, st.sampled_from([.5, .9]))
def test_lambda_operator_contracts(process, seed, lam, gamma):
    truth, critic = T.process_values(process, gamma), 5 * np.random.default_rng(seed).normal(size=len(process.P))
    error = np.abs(T.lambda_moments(process, critic, lam, gamma)[0] - truth).max()
    assert error <= T.lambda_contraction(lam, gamma) * np.abs(critic - truth).max() + 1e-9
    close(T.lambda_moments(process, truth, lam, gamma)[0], truth)                          # its fixed point
    close(T.lambda_moments(process, critic, 1., gamma)[0], truth)                          # Monte Carlo has no bias

@check(processes, lambdas, st.sampled_from([.5, .9]))
def test_bootstrapping_from_the_truth_lowers_variance(process, lam, gamma):
    truth = T.process_values(process, gamma)
    (_, some), (_, all_of_it) = (T.lambda_moments(process, truth, c, gamma) for c in (lam, 1.))
    assert (some >= -1e-9).all() and (some <= all_of_it + 1e-9).all()

@pytest.mark.parametrize("lam", [0., .5, .9, 1.])
def test_moments_describe_first_rows_of_samples(lam):
    process, critic = make_process(0, 3, .1), np.array([1., -2., 3.])
    data = T.sample_process(np.random.default_rng(1), process, 60_000)
    G = T.lambda_returns(data, np.append(critic, 0.)[data.next_obs[:, 0].astype(int)], lam, .9)
    first = np.append(0, data.ends[:-1] + 1)
    mean, variance = T.lambda_moments(process, critic, lam, .9)
    for s in range(3):
        g = G[first[data.obs[first, 0] == s]].astype(float)
        assert abs(g.mean() - mean[s]) < 5 * g.std() / len(g)**.5
        squares = (g - g.mean())**2
        assert abs(g.var() - variance[s]) < 5 * squares.std() / len(g)**.5

@check(processes, st.sampled_from([.5, .9]), st.integers(1, 40))
def test_bias_of_tails(process, gamma, k):
    V, P = T.process_values(process, gamma), np.linalg.matrix_power(process.P[:, :-1], k)
    bias = lambda tail, v=None: (T.expected_returns(process, gamma, k, tail, v) - V)[-1]
    close(bias("finite"), -gamma**k * P @ V)
    close(bias("bootstrap", V), np.zeros_like(V))
    close(bias("bootstrap", V + 3), gamma**k * P.sum(1) * 3)

def stationary(process):
    P = process.P[:, :-1]
    A, b = np.vstack([P.T - np.eye(len(P)), np.ones(len(P))]), np.append(np.zeros(len(P)), 1.)
    return np.linalg.lstsq(A, b, rcond=None)[0]

@check(st.builds(make_process, seeds, st.integers(1, 6), st.just(0.)), st.sampled_from([.5, .9]))
def test_repeat_last_is_right_on_average_over_the_stationary_distribution(process, gamma):
    process = process._replace(R=np.repeat(process.R[:, :1], len(process.P) + 1, 1))
    bias = T.expected_returns(process, gamma, 10, "repeat_last") - T.process_values(process, gamma)
    np.testing.assert_allclose(bias @ stationary(process), np.zeros(10), atol=1e-8)

@pytest.mark.parametrize("limit", [2, 5, 20])
def test_timeouts_as_ends_shrink_the_discount(limit):
    process = make_process(0, 4, 0.)
    data = T.sample_process(np.random.default_rng(1), process, 100_000 // limit, limit, stationary(process))
    state, after = (x[:, 0].astype(int) for x in (data.obs, data.next_obs))
    for discount, bootstrap in ((.9 * (1 - 1 / limit), False), (.9, True)):
        V = T.process_values(process, discount)
        error = T.lambda_returns(data, V[after], 0., .9, bootstrap) - V[state]      # TD error at its fixed point
        for s in range(4): assert abs(error[state == s].mean()) < 5 * error.std() / (state == s).sum()**.5

@pytest.mark.parametrize("tail", ["finite", "repeat_last", "bootstrap", "drop"])
def test_expected_returns_are_those_of_the_log(tail):
    process, limit = make_process(0, 3, .2), 6
    data, v = T.sample_process(np.random.default_rng(1), process, 60_000, limit), np.array([1., -2., 3.])
    G = returns_to_go(data, .5, tail, np.append(v, 0.)[data.next_obs[data.ends, 0].astype(int)])
    exact = T.expected_returns(process, .5, limit, tail, v)
    time = np.concatenate([np.arange(e - s) for s, e, _ in episodes(data)])
    for t in range(limit):
        for s in range(3):
            g = G[(time == t) & (data.obs[:, 0] == s)]
            g = g[np.isfinite(g)]
            assert abs(g.mean() - exact[limit - t - 1, s]) < 5 * g.std() / len(g)**.5 + 1e-6

def test_sampled_process_is_well_formed():
    data = T.sample_process(np.random.default_rng(0), make_process(0, 4, .1), 50, limit=12)
    lengths = np.diff(data.ends, prepend=-1)
    assert len(lengths) == 50 and lengths.max() == 12 and (lengths > 1).any()
    assert np.array_equal(np.flatnonzero(data.terminal | data.timeout), data.ends)
    assert (lengths[data.timeout[data.ends]] == 12).all() and np.array_equal(data.next_obs[:, 0] == 4, data.terminal)
    inside = np.setdiff1d(np.arange(len(data)), data.ends)
    assert np.array_equal(data.next_obs[inside], data.obs[inside + 1])

# LayerNorm and improvement

@check(seeds, st.sampled_from([(2, 8, 1), (3, 16, 16, 1)]), st.sampled_from([1e-3, 1., 1e5]), st.sampled_from([.1, 1., 30.]), examples=40)
def test_layer_norm_bounds_the_output(seed, sizes, size, scale):
    g = torch.Generator().manual_seed(seed)
    theta = scale * init_stack(sizes, [g, g], members=3)
    out = mlp(theta, size * torch.randn(2, 3, 50, sizes[0], generator=g), sizes)
    assert T.output_bound(theta, sizes).shape == (2, 3)
    assert (out.abs().amax((-1, -2)) <= T.output_bound(theta, sizes) * (1 + 1e-4)).all()

@check(seeds, st.floats(0, 50), st.sampled_from([.5, .9]))
def test_soft_policy_improvement(seed, alpha, gamma):
    mdp = random_mdp(np.random.default_rng(seed), 6, 3)
    beta = mixed_policy(optimal_values(mdp, gamma), .5)
    q = policy_values(mdp, beta, gamma)
    better = T.tilted_policy(beta, q, alpha)
    np.testing.assert_allclose(better.sum(-1), 1)
    V = lambda pi: (pi * policy_values(mdp, pi, gamma)).sum(-1)
    assert (V(better) >= V(beta) - 1e-9).all()
    np.testing.assert_allclose(T.tilted_policy(beta, q, 0.), beta)
    np.testing.assert_allclose(T.tilted_policy(beta, 1e-5 * q, alpha), better, atol=1e-9)

def test_random_critic_destroys_the_clone():
    lost = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        mdp = random_mdp(rng, 20, 4)
        beta = mixed_policy(optimal_values(mdp, .9), .5)
        V = lambda pi: (pi * policy_values(mdp, pi, .9)).sum(-1).mean()
        uniform, random = V(np.full_like(beta, .25)), V(T.tilted_policy(beta, rng.normal(size=beta.shape), 100.))
        lost.append((V(beta) - random) / (V(beta) - uniform))
    assert .8 < np.mean(lost) < 1.2                         # all that cloning had won over random actions

# Errors

def test_errors_say_what_to_do():
    data = make_log(0, [3, 2], [1, 2])
    with pytest.raises(T.BadTarget, match="each of the 5 rows"): T.n_step_returns(data, np.zeros(4), 2)
    with pytest.raises(T.BadTarget, match="each of the 5 rows"): T.lambda_returns(data, np.zeros((5, 2)))
    with pytest.raises(T.BadTarget, match="each of the 5 rows"): T.soft_returns(data, np.zeros(6), 1.)
    with pytest.raises(T.BadTarget, match="n >= 1"): T.n_step_returns(data, np.zeros(5), 0)
    with pytest.raises(T.BadTarget, match=r"\[0, 1\]"): T.lambda_returns(data, np.zeros(5), 1.2)
    with pytest.raises(UnknownTail, match="'repeat_last' and 'finite'"): T.soft_returns(data, np.zeros(5), 1., tail="drop")
    with pytest.raises(UnknownTail, match="consistent"): T.soft_returns(data, np.zeros(5), 1., soft_tail="consistant")
    with pytest.raises(UnknownTail, match="values="): T.expected_returns(make_process(0, 2, 0.), .9, 3, "bootstrap")
