"Properties of the motivating example, of returns and of approximate Q-iteration, over many random problems."
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlpapers.core.figures import published
from rlpapers.core.record import Work
from rlpapers.offline import sweeps as S
from rlpapers.offline import theory as T

def check(*strategies):
    "Over 80 examples, the same in every run."
    return lambda test: settings(max_examples=80, deadline=None, derandomize=True)(given(*strategies)(test))

seeds = st.integers(0, 2**32 - 1)
gammas = st.sampled_from([0., .5, .9, .99])
mdps = st.builds(lambda seed, states, actions, branching, reach, rewarding: S.random_mdp(
    np.random.default_rng(seed), states, actions, min(branching, states), reach, rewarding),
    seeds, st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.sampled_from([.1, .5, 1.]))

def sup(x): return np.abs(x).max((-2, -1))

def brute_force_returns(rewards, gamma):
    "The definition, without recursion."
    return [sum(gamma ** (k - t) * r for k, r in enumerate(rewards) if k >= t) for t in range(len(rewards))]


# The bound

@check(mdps, gammas, seeds, st.floats(0, 2), st.floats(0, 50), st.sampled_from(["uniform", "extreme", "constant"]))
def test_bound_is_never_violated(mdp, gamma, seed, eps, scale, kind):
    rng, shape = np.random.default_rng(seed), mdp.R.shape
    draw = {"uniform": lambda k: rng.uniform(-eps, eps, shape), "extreme": lambda k: eps * rng.choice([-1., 1.], shape),
            "constant": lambda k: np.full(shape, eps)}[kind]
    optimum = S.optimal_values(mdp, gamma)
    errors = sup(S.fitted_q(mdp, scale * rng.standard_normal(shape), gamma, 60, draw) - optimum)
    assert (errors <= S.error_bound(np.arange(61), errors[0], gamma, eps) + 1e-9).all()

@check(mdps, gammas.filter(bool), st.floats(.01, 2), st.floats(.1, 50))
def test_bound_cannot_be_improved(mdp, gamma, eps, shift):
    errors = sup(S.fitted_q(mdp, S.optimal_values(mdp, gamma) + shift, gamma, 30, lambda k: eps) - S.optimal_values(mdp, gamma))
    np.testing.assert_allclose(errors, S.error_bound(np.arange(31), shift, gamma, eps), rtol=1e-9)

@check(mdps, gammas, seeds)
def test_policy_loss_is_bounded_by_the_error(mdp, gamma, seed):
    optimum = S.optimal_values(mdp, gamma)
    q = optimum + np.random.default_rng(seed).standard_normal(mdp.R.shape)
    error, loss = sup(q - optimum), S.policy_loss(mdp, q, optimum, gamma)
    assert -1e-9 <= loss <= 2 * error / (1 - gamma) + 1e-9                                          # of V
    assert sup(optimum - S.policy_values(mdp, S.greedy(q), gamma)) <= gamma * loss + 1e-9           # of Q, one step later
    assert S.policy_loss(mdp, optimum, optimum, gamma) == pytest.approx(0, abs=1e-9)

@check(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(.01, .999))
def test_saving_does_not_depend_on_the_level(start, better, delta, gamma):
    difference = S.sweeps_needed(start, delta, gamma) - S.sweeps_needed(better, delta, gamma)
    assert difference == pytest.approx(S.sweeps_saved(start, better, gamma), rel=1e-6, abs=1e-6)
    assert S.error_bound(S.sweeps_saved(start, better, gamma), start, gamma) == pytest.approx(better, rel=1e-6)


# The operator

@check(mdps, gammas, seeds)
def test_bellman_contracts_and_is_monotone(mdp, gamma, seed):
    q, other = np.random.default_rng(seed).standard_normal((2, *mdp.R.shape))
    assert sup(S.bellman(mdp, q, gamma) - S.bellman(mdp, other, gamma)) <= gamma * sup(q - other) + 1e-12
    assert (S.bellman(mdp, np.maximum(q, other), gamma) >= S.bellman(mdp, q, gamma) - 1e-12).all()

@check(mdps, gammas, seeds, st.floats(-30, 30))
def test_constant_start_meets_the_same_policies(mdp, gamma, seed, shift):
    start = np.random.default_rng(seed).standard_normal(mdp.R.shape)
    plain, moved = (S.fitted_q(mdp, start + c, gamma, 15) for c in (0., shift))
    np.testing.assert_allclose(moved - plain, np.broadcast_to(shift * gamma ** np.arange(16)[:, None, None], plain.shape), atol=1e-9)

@check(mdps, gammas, seeds)
def test_renaming_states_and_actions_renames_values(mdp, gamma, seed):
    rng = np.random.default_rng(seed)
    s, a = rng.permutation(mdp.R.shape[0]), rng.permutation(mdp.R.shape[1])
    renamed = S.MDP(mdp.P[s][:, a][:, :, s], mdp.R[s][:, a])
    np.testing.assert_allclose(S.optimal_values(renamed, gamma), S.optimal_values(mdp, gamma)[s][:, a], atol=1e-8)

@check(mdps, gammas, seeds)
def test_no_policy_beats_the_optimum(mdp, gamma, seed):
    policy = np.random.default_rng(seed).dirichlet(np.ones(mdp.R.shape[1]), len(mdp.R))
    assert (S.policy_values(mdp, policy, gamma) <= S.optimal_values(mdp, gamma) + 1e-8).all()

@check(mdps)
def test_random_mdp_is_one(mdp):
    np.testing.assert_allclose(mdp.P.sum(-1), 1)
    assert (mdp.P >= 0).all() and ((mdp.R >= 0) & (mdp.R <= 1)).all() and mdp.R.any()

def test_local_mdp_moves_to_neighbours():
    P = S.random_mdp(np.random.default_rng(0), states=12, reach=1).P
    s, _, t = np.nonzero(P)
    assert np.abs(s - t).max() == 1

def test_sampled_returns_estimate_the_behaviour_policy():
    mdp = S.random_mdp(np.random.default_rng(0), 5, 2)
    policy = S.mixed_policy(S.optimal_values(mdp, .9), .5)
    exact = S.policy_values(mdp, policy, .9)
    few, many = (np.abs(S.sample_returns(np.random.default_rng(1), mdp, policy, .9, n)[0] - exact).max() for n in (4, 2000))
    assert many < .1 and many < .3 * few


# The recorded experiment

def test_experiment_rows():
    config = S.FQIConfig(gamma=.9, states=8, seeds=(3, 4))
    frame = S.fqi_errors(config, Work()).metrics
    assert (frame.error <= frame.bound + 1e-9).all()
    zero = frame[(frame.sweep == 0) & (frame.variant == "zero")]
    np.testing.assert_allclose(zero.error, zero.norm)                        # the error of zero is the norm of Q*
    final = frame[frame.sweep == frame.sweep.max()]
    assert (final.sweeps_to_delta <= final.sweep).all() and (final.error <= config.delta * final.norm).all()
    for gone, row in frame.groupby(["seed", "variant"]):                     # first passage agrees with the written errors
        first = row.sweeps_to_delta.iloc[0]
        assert (row.error[row.sweep < first] > config.delta * row.norm[row.sweep < first]).all(), gone

def test_experiment_is_deterministic_and_seeds_are_independent():
    run = lambda *seeds: S.fqi_errors(S.FQIConfig(gamma=.9, states=8, seeds=seeds), Work()).metrics
    assert run(1, 2).equals(run(1, 2))
    pair, alone = run(1, 2), run(2)
    np.testing.assert_allclose(pair[pair.seed == 2].error, alone.error, rtol=1e-12)


# Monte-Carlo and bootstrapped critics

logs = st.builds(lambda seed, n, slip, episodes: (T.sample_chain(np.random.default_rng(seed), n, slip, episodes), n),
                 seeds, st.integers(1, 6), st.floats(0, .6), st.integers(1, 12))

@check(logs, gammas)
def test_monte_carlo_is_the_mean_of_returns(log, gamma):
    episodes, n = log
    returns = [(s, G) for states, rewards in episodes for s, G in zip(states, brute_force_returns(rewards, gamma))]
    for s, value in enumerate(T.monte_carlo_values(episodes, n, gamma)):
        seen = [G for state, G in returns if state == s]
        assert value == pytest.approx(np.mean(seen) if seen else 0, abs=1e-9)

@check(logs, gammas, seeds)
def test_order_of_episodes_is_irrelevant(log, gamma, seed):
    episodes, n = log
    mixed = [episodes[i] for i in np.random.default_rng(seed).permutation(len(episodes))]
    np.testing.assert_allclose(T.monte_carlo_values(mixed, n, gamma), T.monte_carlo_values(episodes, n, gamma), atol=1e-9)
    np.testing.assert_allclose(T.fitted_evaluation(mixed, np.zeros(n), gamma, 5), T.fitted_evaluation(episodes, np.zeros(n), gamma, 5), atol=1e-9)

@check(logs, st.sampled_from([.5, .9]), seeds)
def test_bootstrapping_ends_where_it_ends_whatever_the_start(log, gamma, seed):
    episodes, n = log
    start = np.random.default_rng(seed).standard_normal(n)
    np.testing.assert_allclose(T.fitted_evaluation(episodes, start, gamma, 300)[-1], T.fitted_evaluation(episodes, np.zeros(n), gamma, 300)[-1], atol=1e-9)

@check(st.integers(1, 6), st.floats(0, .8), st.floats(.1, .99))
def test_chain_values_solve_their_equation(n, slip, gamma):
    v = np.append(T.chain_values(n, slip, gamma), 0)
    reward = np.where(np.arange(n) == n - 1, 1 - slip, 0)
    np.testing.assert_allclose(v[:-1], reward + gamma * (slip * v[:-1] + (1 - slip) * v[1:]), atol=1e-12)


# The motivating example

def test_published_table():
    starts = {"zero": {"": T.ZERO_TABLE}, "monte_carlo": {v: T.monte_carlo_table(T.TOY_EPISODE, visit=v) for v in ("first", "every")}}
    rows = published("offline", "toy_table").fillna({"visit": ""})
    names = [f"Q({s},{a})" for s, a in T.TOY_KEYS]
    assert len(rows) == 9
    for _, row in rows.iterrows():
        for visit, start in starts[row["init"]].items():
            if row["visit"] in ("", visit): assert (T.toy_table(start)[names].iloc[row["epoch"]] == row[names].astype(float)).all(), row

@check(st.sampled_from(T.ORDERS), st.lists(st.floats(-9, 9), min_size=4, max_size=4))
def test_every_order_ends_at_the_optimum_from_anywhere(order, values):
    assert T.q_learning(dict(zip(T.TOY_KEYS, values)), T.TOY_EPISODE, 60, gamma=.5, order=order)[-1] == pytest.approx(
        {(0, "right"): -.25, (1, "left"): -1.125, (1, "right"): -.5, (2, "right"): 3.}, abs=1e-9)

@check(st.integers(1, 40), st.floats(.1, 1.), st.sampled_from(["forward", "synchronous"]))
def test_chains_cost_their_length(n, gamma, order):
    steps, optimum = T.chain_episode(n), {(s, "right"): gamma ** (n - 1 - s) for s in range(n)}
    assume(min(optimum.values()) > 1e-9)          # a value below the tolerance counts as learnt
    zero = dict.fromkeys(optimum, 0.)
    assert T.sweeps_to_optimum(zero, steps, optimum, gamma, order) == n
    assert T.sweeps_to_optimum(zero, steps, optimum, gamma, "reverse") == 1
    assert T.sweeps_to_optimum(T.monte_carlo_table(steps, gamma), steps, optimum, gamma, order) == 0

@check(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.floats(-5, 5)), min_size=1, max_size=10), gammas)
def test_first_and_every_visit_returns(rows, gamma):
    steps = tuple(T.Step(s, a, r, 0) for s, a, r in rows)
    seen = {}
    for (s, a, _), G in zip(rows, brute_force_returns([r for *_, r in rows], gamma)): seen.setdefault((s, a), []).append(G)
    assert T.monte_carlo_table(steps, gamma, "first") == pytest.approx({k: v[0] for k, v in seen.items()}, abs=1e-9)
    assert T.monte_carlo_table(steps, gamma, "every") == pytest.approx({k: np.mean(v) for k, v in seen.items()}, abs=1e-9)

def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="forward, reverse, synchronous"): T.q_learning_sweep(T.ZERO_TABLE, T.TOY_EPISODE, order="backward")
    with pytest.raises(ValueError, match="first or every"): T.monte_carlo_table(T.TOY_EPISODE, visit="last")
    with pytest.raises(RuntimeError, match="every transition"): T.sweeps_to_optimum(T.ZERO_TABLE, T.TOY_EPISODE[:2], T.TOY_OPTIMUM, limit=20)
