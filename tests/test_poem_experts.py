"Specification of POEM, section 8, items 1-10, 13 and 14, over many random experts; range, gradients, and tasks that cannot be answered."
import math
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core.paths import RLPapersError
from rlpapers.poem import experts
from rlpapers.poem import theory as T
from rlpapers.poem.experts import (COUNTS, BadExperts, BadTasks, Experts, Tasks, Views, check_tasks, fold, log_alpha, log_normaliser,
                                   log_prior, product, scores)

def check(**strategies):
    "Over 60 examples, the same in every run."
    return lambda test: settings(max_examples=60, deadline=None, derandomize=True)(given(**strategies)(test))

seeds = st.integers(0, 2**32 - 1)
dims = st.sampled_from([1, 2, 5, 16])
LN = T.log_normal
def generator(seed): return torch.Generator().manual_seed(seed)
def draw(g, *shape, spread=1.): return Experts(*(s * torch.randn(shape, generator=g, dtype=torch.float64) for s in (1, spread)))
def point(mean, tau): return Experts(torch.tensor(mean, dtype=torch.float64), torch.tensor(tau, dtype=torch.float64).log())
def rows(experts, index): return Experts(*(x[index] for x in experts))
def close(a, b, atol=1e-9, rtol=1e-9):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=rtol, check_dtype=False)

@st.composite
def ragged(draw_, most=6):
    "Views of some items in random order, and a generator for the rest of the test."
    g, D, number = generator(draw_(seeds)), draw_(dims), draw_(st.lists(st.integers(1, most), min_size=1, max_size=6))
    item = torch.repeat_interleave(torch.tensor(number))
    item = item[torch.randperm(len(item), generator=g)]
    return draw(g, len(item), D), item, len(number), g


# 1-4: closed form, chain rule, associativity

def test_1_inner_product():
    two, item = point([[1.], [3.]], [[1.], [3.]]), torch.zeros(2, dtype=torch.long)
    C, log_T = product(two, item, 1)
    log_S = log_normaliser(two, item, 1).item()
    assert (C.item(), log_T.exp().item(), log_S) == pytest.approx((2.5, 4., -2.562779569), abs=1e-9)
    assert log_S == pytest.approx(LN(1, 3, 4 / 3), abs=1e-12)

def test_2_outer_product():
    log_S_star = scores(point([[0.]], [[1.]]), point([[2.5]], [[4.]])).item()
    assert log_S_star == pytest.approx(-3.530510309, abs=1e-9) and log_S_star == pytest.approx(LN(0, 2.5, 1.25), abs=1e-12)

def test_3_chain_rule():
    item = torch.zeros(3, dtype=torch.long)
    triple = log_normaliser(point([[1.], [3.], [0.]], [[1.], [3.], [1.]]), item, 1).item()
    assert triple == pytest.approx(-6.093289878, abs=1e-9) and triple == pytest.approx(-2.562779569 - 3.530510309, abs=2e-9)

@check(seed=seeds, D=dims, V=st.integers(2, 8))
def test_3_any_grouping_and_order_give_one_total(seed, D, V):
    g = generator(seed)
    views, item = draw(g, V, D), torch.zeros(V, dtype=torch.long)
    whole, log_S = product(views, item, 1), log_normaliser(views, item, 1)
    order = torch.randperm(V, generator=g)
    for a, b in zip(product(rows(views, order), item, 1), whole): close(a, b)
    close(log_normaliser(rows(views, order), item, 1), log_S)
    group = torch.arange(V) % int(torch.randint(1, V + 1, (1,), generator=g))
    parts, groups = product(views, group, int(group.max()) + 1), int(group.max()) + 1
    one = torch.zeros(groups, dtype=torch.long)
    for a, b in zip(product(parts, one, 1), whole): close(a, b)
    close(log_normaliser(views, group, groups).sum() + log_normaliser(parts, one, 1), log_S)

@check(seed=seeds, D=dims, V=st.integers(1, 6))
def test_3_normaliser_of_all_is_normaliser_plus_score(seed, D, V):
    g = generator(seed)
    views, query, item = draw(g, V, D), draw(g, 1, D), torch.zeros(V, dtype=torch.long)
    everything = Experts(*(torch.cat(pair) for pair in zip(views, query)))
    close(log_normaliser(everything, torch.zeros(V + 1, dtype=torch.long), 1),
          log_normaliser(views, item, 1) + scores(query, product(views, item, 1))[0])

@check(case=ragged())
def test_4_folding_views_one_at_a_time_is_the_segment_sum(case):
    views, item, M, _ = case
    total = product(views, item, M)
    for m in range(M):
        mine = rows(views, item == m)
        running = rows(mine, slice(0, 1))
        for v in range(1, len(mine.mean)): running = fold(running, rows(mine, slice(v, v + 1)))
        for a, b in zip(running, rows(total, slice(m, m + 1))): close(a, b)

@check(case=ragged())
def test_4_segments_agree_with_numpy(case):
    views, item, M, _ = case
    total, log_S = product(views, item, M), log_normaliser(views, item, M)
    for m in range(M):
        C, tau, S = T.gaussian_product(views.mean[item == m].numpy(), views.log_precision[item == m].exp().numpy())
        close(total.mean[m], C), close(total.log_precision[m].exp(), tau), close(log_S[m], S.sum())


# 5-7: prototypical limit, view counts, prior

@pytest.mark.parametrize("V, temperature", [(1, .25), (5, .416667), (18, .473684)])
@pytest.mark.parametrize("t", [1., .1, 30.])
def test_5_constant_precision_and_equal_views_is_a_prototypical_network(V, temperature, t):
    g = generator(V)
    views, query = (Experts(x, torch.full_like(x, math.log(t))) for x in (draw(g, 4 * V, 8).mean, draw(g, 9, 8).mean))
    item = torch.arange(4).repeat_interleave(V)
    prototypes = views.mean.view(4, V, 8).mean(1)
    distance, logits = torch.cdist(query.mean, prototypes) ** 2, scores(query, product(views, item, 4))
    assert T.temperature(V) == pytest.approx(temperature, abs=1e-6)
    close(logits.softmax(-1), (-T.temperature(V, t) * distance).softmax(-1))
    assert torch.equal(logits.argmax(-1), distance.argmin(-1))

def test_6_more_views_get_a_bonus_that_count_normalisation_removes():
    item = torch.tensor([0] + [1] * 10)
    views, query = point([[0.] * 128] * 11, [[1.] * 128] * 11), point([[0.] * 128], [[1.] * 128])
    bonus = {c: scores(query, product(views, item, 2, c), c).diff().item() for c in COUNTS}
    assert bonus["sum"] == pytest.approx(38.26157, abs=1e-5) and bonus["sum"] == pytest.approx(T.count_bonus(10, 1, 128), abs=1e-9)
    assert bonus["mean"] == pytest.approx(0, abs=1e-12) and bonus["prior"] == pytest.approx(0, abs=1e-12)

@check(case=ragged())
def test_6_mean_is_the_geometric_mean_of_experts(case):
    views, item, M, _ = case
    number = torch.bincount(item)
    tempered = Experts(views.mean, views.log_precision - number[item].double().log()[:, None])     # expert to the power 1/V
    for a, b in zip(product(views, item, M, "mean"), product(tempered, item, M)): close(a, b)

@check(case=ragged())
def test_7_flat_prior_leaves_the_posterior(case):
    views, item, M, g = case
    items, query = product(views, item, M), draw(g, 3, views.mean.shape[-1])
    flat = point([[.3] * views.mean.shape[-1]], [[1e-8] * views.mean.shape[-1]])          # any prior mean
    exact = scores(query, items) - scores(flat, items)
    close(exact.softmax(-1), scores(query, items).softmax(-1), atol=1e-4)
    close((exact + 7.).softmax(-1), exact.softmax(-1))

def test_7_unit_prior():
    item = point([[0.]], [[1.]])
    assert log_prior(item).item() == pytest.approx(-1.265512, abs=1e-6) and log_prior(item).item() == pytest.approx(LN(0, 0, 2), abs=1e-12)
    g = generator(0)
    query, items = draw(g, 4, 3), draw(g, 5, 3)
    unit = Experts(torch.zeros(1, 3).double(), torch.zeros(1, 3).double())
    close(scores(query, items, "prior"), scores(query, items) - scores(unit, items))


# 8-10: uninformative experts, joint precision, quadrature and gradients

@check(seed=seeds, D=st.sampled_from([2, 5, 16]))
def test_8_what_the_query_does_not_know_discriminates_nothing(seed, D):
    g = generator(seed)
    query, items = draw(g, 4, D), draw(g, 3, D)
    query.log_precision[:, 0] = math.log(1e-12)
    without = scores(rows(query, (slice(None), slice(1, None))), rows(items, (slice(None), slice(1, None))))
    effect = scores(query, items) - without
    assert (effect.amax(-1) - effect.amin(-1)).max() < 1e-6

@check(seed=seeds, D=dims)
def test_8_an_uninformed_item_scores_lower(seed, D):
    "On its own view: nothing to lose by distance, and everything by vagueness."
    g = generator(seed)
    item = draw(g, 1, D)
    vague = Experts(item.mean, item.log_precision.clone())
    vague.log_precision[:, 0] = math.log(1e-12)
    assert scores(item, vague).item() < scores(item, item).item() - 5

@check(a=st.floats(-100, 100), b=st.floats(-100, 100))
def test_9_joint_precision(a, b):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    joint = log_alpha(a, b)
    assert joint <= min(a, b) + 1e-12 and joint == log_alpha(b, a)
    assert log_alpha(a, a).item() == pytest.approx((a - math.log(2)).item(), abs=1e-12)

@check(seed=seeds, V=st.integers(1, 5))
def test_10_quadrature(seed, V):
    g, z = generator(seed), np.linspace(-60, 60, 400_001)
    views, query, item = draw(g, V, 1, spread=.7), draw(g, 1, 1, spread=.7), torch.zeros(V, dtype=torch.long)
    log_density = lambda e: sum(LN(z, m, math.exp(-t)) for m, t in zip(e.mean.flatten().tolist(), e.log_precision.flatten().tolist()))
    integral = lambda log_f: math.log(np.trapezoid(np.exp(log_f), z))
    total = product(views, item, 1)
    assert integral(log_density(views)) == pytest.approx(log_normaliser(views, item, 1).item(), abs=1e-6)
    assert integral(log_density(query) + log_density(total)) == pytest.approx(scores(query, total).item(), abs=1e-6)

@pytest.mark.parametrize("limit", [30., -1.], ids=["tame", "log space"])
@pytest.mark.parametrize("counts", COUNTS)
def test_10_gradients_equal_finite_differences(counts, limit, monkeypatch):
    monkeypatch.setattr(experts, "TAME", limit)
    g, item = generator(0), torch.tensor([0, 1, 1, 2, 0, 1])
    def posterior(mean, log_precision, query_mean, query_log_precision):
        items = product(Experts(mean, log_precision), item, 3, counts)
        return scores(Experts(query_mean, query_log_precision), items, counts).log_softmax(-1)
    inputs = [x.requires_grad_() for x in (*draw(g, 6, 4), *draw(g, 2, 4))]
    assert torch.autograd.gradcheck(posterior, inputs)
    assert torch.autograd.gradcheck(lambda m, t: log_normaliser(Experts(m, t), item, 3), inputs[:2])
    assert torch.autograd.gradcheck(lambda m, t, qm, qt: torch.cat(fold(Experts(m, t), Experts(qm, qt))), [*inputs[2:], *inputs[2:]])


# 13, 14: symmetry and scale

@check(seed=seeds, V=st.integers(1, 4), counts=st.sampled_from(COUNTS))
def test_13_equal_items_give_a_uniform_posterior(seed, V, counts):
    g = generator(seed)
    views, query = draw(g, V, 6), draw(g, 5, 6)
    copies, item = Experts(*(x.repeat(10, 1) for x in views)), torch.arange(10).repeat_interleave(V)
    logits = scores(query, product(copies, item, 10, counts), counts)
    loss = torch.nn.functional.cross_entropy(logits, torch.randint(10, (5,), generator=g)).item()
    assert loss == pytest.approx(2.302585, abs=1e-6)

@check(case=ragged(), s=st.floats(.01, 100), counts=st.sampled_from(["sum", "mean"]))
def test_14_scaling_means_and_precisions_leaves_logit_differences(case, s, counts):
    views, item, M, g = case
    query = draw(g, 3, views.mean.shape[-1])
    scale = lambda e: Experts(s * e.mean, e.log_precision - 2 * math.log(s))
    before, after = scores(query, product(views, item, M, counts)), scores(scale(query), product(scale(views), item, M, counts))
    close(after, before - views.mean.shape[-1] * math.log(s), atol=1e-8)


# Range: what float32 can and cannot hold

def wild(*shape): return Experts(torch.randn(shape, requires_grad=True), (torch.rand(shape) * 200 - 100).requires_grad_())

@pytest.mark.parametrize("counts", COUNTS)
def test_log_precisions_of_100_stay_finite(counts):
    torch.manual_seed(0)
    views, query, item = wild(30, 16), wild(8, 16), torch.arange(30) % 10
    logits = scores(query, product(views, item, 10, counts), counts)
    torch.nn.functional.cross_entropy(logits, torch.arange(8)).backward()
    everything = [logits, log_normaliser(views, item, 10), *(x.grad for e in (views, query) for x in e)]
    assert all(x.isfinite().all() for x in everything)

@check(seed=seeds, counts=st.sampled_from(COUNTS), spread=st.sampled_from([1., 10., 30.]))
def test_float32_agrees_with_float64(seed, counts, spread):
    g, item = generator(seed), torch.arange(20) % 5
    views, query = draw(g, 20, 32), draw(g, 6, 32)
    views, query = (Experts(e.mean, (spread * e.log_precision).clamp(-100, 18)) for e in (views, query))   # float32 resolves means to e^-18
    run = lambda v, q: scores(q, product(v, item, 5, counts), counts)
    single = run(*(Experts(*(x.float() for x in e)) for e in (views, query)))
    close(single, run(views, query), atol=1e-3, rtol=1e-3)

@check(case=ragged(), counts=st.sampled_from(COUNTS))
def test_both_ways_give_the_same_numbers(case, counts):
    views, item, M, g = case
    query = draw(g, 3, views.mean.shape[-1])
    run = lambda: (*product(views, item, M, counts), scores(query, product(views, item, M, counts), counts))
    fast = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "TAME", -1.)
        for a, b in zip(run(), fast): close(a, b)

@check(seed=seeds, step=st.floats(-1e-3, 1e-3))
def test_no_jump_where_the_ways_meet(seed, step):
    g = generator(seed)
    at = lambda e, level: Experts(e.mean, torch.full_like(e.log_precision, level))
    query, items = draw(g, 2, 4), draw(g, 3, 4)
    for level in (-30., 30.):
        below, above = (scores(at(query, level + d), items) for d in (-abs(step), abs(step)))
        close(below, above, atol=4 * abs(step) + 1e-9, rtol=1e-12)

def test_equally_sure_experts_average_at_any_level():
    for level in (-100., 0., 100.):
        C, log_T = product(Experts(torch.tensor([[1.], [3.]]), torch.full((2, 1), level)), torch.zeros(2, dtype=torch.long), 1)
        assert (C.item(), log_T.item()) == pytest.approx((2., level + math.log(2)), rel=1e-6)


# Many tasks at once

@check(seed=seeds, tasks=st.integers(1, 4), M=st.integers(1, 5), counts=st.sampled_from(COUNTS))
def test_tasks_do_not_see_each_other(seed, tasks, M, counts):
    g = generator(seed)
    number = torch.randint(1, 5, (tasks * M,), generator=g)
    item = torch.repeat_interleave(number)
    views, query = draw(g, len(item), 4), Experts(*(x.view(tasks, 3, 4) for x in draw(g, tasks * 3, 4)))
    together = scores(query, product(views, item, tasks * M, counts).per_task(tasks), counts)
    assert together.shape == (tasks, 3, M)
    for t in range(tasks):
        mine = item // M == t
        close(together[t], scores(rows(query, t), product(rows(views, mine), item[mine] - t * M, M, counts), counts))

def test_views_are_support_then_query():
    tasks = toy()
    assert (tasks.tasks, tasks.items) == (2, 3)
    assert torch.equal(tasks.views.pixels, torch.cat([tasks.support.pixels, tasks.query.pixels])) and len(tasks.views.place) == 20


# Theory exports what figures need

def test_toy_of_figure_1():
    toy = T.two_view_toy()
    table = T.toy_posteriors(toy).set_index("learner")
    assert table.A["product of experts"] > .85 and table.A["distance to the mean"] < .5
    np.testing.assert_allclose(toy.items.mean, toy.truth, atol=.05)
    x, y = T.ellipse((1, 2), (3, .5))
    np.testing.assert_allclose((x - 1) ** 2 / 9 + (y - 2) ** 2 / .25, 1)

def test_limit_table_is_exact_and_repeatable():
    table = T.proto_limit_table(((3, 3), (1, 10)), (1, 64), queries=50)
    assert table.equals(T.proto_limit_table(((3, 3), (1, 10)), (1, 64), queries=50))
    assert (table.exact < 1e-12).all() and (table.same_prediction_mean == 1).all()
    assert (table.prototypical[table.views == "3"] < 1e-12).all() and table.bonus_nats.iloc[-1] == pytest.approx(19.130784)

@pytest.mark.parametrize("precision", [.5, 1., 4.])
def test_exact_world_has_no_count_bias(precision):
    bias = T.count_bias(0., precision).set_index("method")
    assert bias.to_many["prior"] == pytest.approx(.5, abs=.02) and bias.accuracy.idxmax() == "prior"

@pytest.mark.parametrize("items", [0, 1, 5])
def test_count_bias_needs_two_equal_halves(items):
    with pytest.raises(BadTasks, match=f"items={items}"): T.count_bias(0., items=items)


# Bad input says which

def toy(tasks=2, M=3, V=2, Q=4):
    views = lambda n: Views(torch.rand(n, 1, 6, 6), torch.zeros(n, 2))
    item, target = torch.arange(tasks * M).repeat_interleave(V), torch.arange(tasks * Q).view(tasks, Q) % M
    return Tasks(views(tasks * M * V), item, views(tasks * Q), target)

def changed(x, index, value):
    x = x.clone()
    x[index] = value
    return x

BAD = {
    "zero views of item 3": lambda t: t._replace(item=t.item + (t.item > 2)),
    "zero views of item 0": lambda t: t._replace(item=t.item + 1),
    "5 items do not divide into 2 tasks": lambda t: t._replace(item=t.item.clamp(max=4)),
    "item: ids are not sorted at view 6": lambda t: t._replace(item=t.item.roll(6)),
    "item: id -1 is negative": lambda t: t._replace(item=t.item - 1),
    "item: torch.float32": lambda t: t._replace(item=t.item.float()),
    "support.pixels: 11 views, but item says 12": lambda t: t._replace(support=t.support._replace(pixels=t.support.pixels[1:])),
    "query.place: 9 views, but target says 8": lambda t: t._replace(query=t.query._replace(place=torch.zeros(9, 2))),
    "query.place: shape (8,)": lambda t: t._replace(query=t.query._replace(place=torch.zeros(8))),
    "pixels: support views are torch.float32 (1, 6, 6), query views torch.float32 (1, 5, 5)": lambda t: t._replace(
        query=t.query._replace(pixels=torch.rand(8, 1, 5, 5))),
    "pixels: support views are torch.float32 (1, 6, 6), query views torch.uint8": lambda t: t._replace(
        query=t.query._replace(pixels=t.query.pixels.byte())),
    "place: support views are torch.float32 (2,), query views torch.float32 (3,)": lambda t: t._replace(
        query=t.query._replace(place=torch.zeros(8, 3))),
    "support.pixels: NaN or infinity in view 5": lambda t: t._replace(
        support=t.support._replace(pixels=changed(t.support.pixels, (5, 0, 2, 2), torch.nan))),
    "query.place: NaN or infinity in view 7": lambda t: t._replace(query=t.query._replace(place=changed(t.query.place, (7, 1), torch.inf))),
    "target: item 3 in task 1, query 2": lambda t: t._replace(target=changed(t.target, (1, 2), 3)),
    "target: item -1 in task 0, query 0": lambda t: t._replace(target=changed(t.target, (0, 0), -1)),
    "target: torch.int64 (8,)": lambda t: t._replace(target=t.target.flatten()),
    "target: torch.int32": lambda t: t._replace(target=t.target.int()),
    "target: torch.int64 (2, 0)": lambda t: t._replace(target=t.target[:, :0], query=Views(*(x[:0] for x in t.query))),
}

@pytest.mark.parametrize("message", BAD)
def test_bad_tasks_say_which(message):
    with pytest.raises(BadTasks) as error: check_tasks(BAD[message](toy()))
    assert message in str(error.value) and isinstance(error.value, RLPapersError)

@check(tasks=st.integers(1, 3), M=st.integers(1, 4), V=st.integers(1, 3), Q=st.integers(1, 3))
def test_good_tasks_pass_unchanged(tasks, M, V, Q):
    good = toy(tasks, M, V, Q)
    assert check_tasks(good) is good and (good.tasks, good.items) == (tasks, M)

def test_symbols_without_place_are_good_tasks():
    symbols = lambda n: Views(torch.zeros(n, 7, 7, dtype=torch.uint8), torch.zeros(n, 0))
    check_tasks(toy()._replace(support=symbols(12), query=symbols(8)))

def test_bad_experts_say_which():
    torch.manual_seed(0)
    e = lambda *shape: Experts(torch.randn(shape), torch.randn(shape))
    item = torch.tensor([0, 1, 1])
    for call, error, message in [
            (lambda: product(e(3, 4), item, 3), BadTasks, "zero views of item 2 (1 of 3 items"),
            (lambda: product(e(3, 4), item, 1), BadTasks, "ids run from 0 to 1, but there are 1 items"),
            (lambda: product(e(3, 4), item - 1, 2), BadTasks, "ids run from -1 to 0"),
            (lambda: product(e(0, 4), item[:0], 1), BadTasks, "zero views of item 0"),
            (lambda: product(e(4, 4), item, 2), BadExperts, "item: 3 ids for 4 views"),
            (lambda: product(Experts(torch.zeros(3, 4), torch.zeros(3, 1)), item, 2), BadExperts, "log_precision (3, 1)"),
            (lambda: product(e(3, 4), item, 2, "max"), BadExperts, "counts='max'"),
            (lambda: scores(e(2, 4), e(3, 5)), BadExperts, "items: 5 features, but 4 are needed"),
            (lambda: scores(e(2, 4), e(3, 4), "summ"), BadExperts, "Did you mean 'sum'?"),
            (lambda: fold(e(3, 4), e(3, 1)), BadExperts, "view: 1 features, but 4 are needed")]:
        with pytest.raises(error) as caught: call()
        assert message in str(caught.value)
