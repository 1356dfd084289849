"POEM's learners: shapes, parameter counts, limits, what they see of each other, MAML, and runs that are killed (spec section 8, items 5, 11-13, 19, 20)."
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from offline_toy import DyingWork, Killed
from rlpapers.core.record import Work
from rlpapers.poem.adaptation import MAML, Finetune, FinetuneConfig, MAMLConfig, UnknownRule, pretraining_batch, split_tasks
from rlpapers.poem.decoder import DecoderRun, make_decoder, train_decoder
from rlpapers.poem.encoders import BadViews, Block, conv4, mlp_head, pixels, symbolic
from rlpapers.poem.experts import BadTasks, Tasks, Views
from rlpapers.poem.learners import GRU, POEM, PRECISIONS, CompleteObservation, ProtoNet, UnknownLearner, make_learner
from rlpapers.poem.mazes import MazeConfig
from rlpapers.poem.training import MazeRun, UnknownOption, ViewRun, train_mazes, train_views
from rlpapers.poem.walks import WalkDecoderRun, train_walk_decoder


def random_views(n, g, kind):
    if kind == "symbols": return Views(torch.randint(4, (n, 7, 7), generator=g).byte(), torch.rand(n, 6, generator=g) * 2 - 1)
    return Views(torch.rand(n, 1, 14, 14, generator=g), torch.rand(n, 4, generator=g) * 2 - 1)


def random_tasks(tasks=2, items=3, queries=4, views=(1, 5), seed=0, kind="symbols"):
    "Views without meaning."
    g = torch.Generator().manual_seed(seed)
    number = torch.randint(views[0], views[1] + 1, (tasks * items,), generator=g)
    item = torch.arange(tasks * items).repeat_interleave(number)
    return Tasks(random_views(len(item), g, kind), item, random_views(tasks * queries, g, kind), torch.randint(items, (tasks, queries), generator=g))


def make(name, seed=0, kind="symbols", **options):
    torch.manual_seed(seed)
    encoder = symbolic(channels=4) if kind == "symbols" else conv4(14, 1, 4, 2, 4)
    return make_learner(name, encoder, dim=8, width=8, **options)


def count(module): return sum(p.numel() for p in module.parameters())


# ---- shapes and parameters

def test_encoder_widths():
    assert (pixels(56).width, pixels(84, place=5).width, pixels(56, place=5).width) == (134, 517, 133)
    with torch.no_grad():
        assert pixels(56)(Views(torch.rand(2, 3, 56, 56), torch.zeros(2, 6))).shape == (2, 134)
        assert pixels(84, place=0)(Views(torch.rand(2, 3, 84, 84), torch.zeros(2, 0))).shape == (2, 512)
    assert symbolic().width == 294 and conv4(14, 3, 32, 3, 4).width == 36


def test_parameter_counts_of_the_paper():
    assert count(pixels()) == 593_920 and count(mlp_head(134, 128, 128)) == 50_816 and count(make_decoder()) == 1_168_930
    assert [count(kind(pixels())) for kind in (POEM, ProtoNet, GRU)] == [695_552, 644_736, 743_808]


def test_learners_of_a_seed_start_from_the_same_encoder_and_head():
    first, *others = (make(name).state_dict() for name in ("POEM", "ProtoNet", "GRU"))
    for other in others: assert all(torch.equal(x, other[k]) for k, x in first.items() if k.startswith(("encoder.", "head.")))


# ---- blocks in the cheaper order are the usual blocks

@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(2, 15), st.integers(1, 4), st.integers(1, 6))
def test_block_equals_conv_norm_relu_pool(seed, size, inputs, n):
    g = torch.Generator().manual_seed(seed)
    block = Block(inputs, 5).double()
    with torch.no_grad():
        block.norm.weight.copy_(torch.randn(5, generator=g)), block.norm.bias.copy_(torch.randn(5, generator=g))
    mean, var = block.norm.running_mean.clone(), block.norm.running_var.clone()
    x = torch.randn(n, inputs, size, size, generator=g, dtype=torch.double)
    def usual(x): return F.max_pool2d(F.batch_norm(F.conv2d(x, block.conv.weight, padding=1), mean, var, block.norm.weight, block.norm.bias, True).relu(), 2)
    expected = usual(a := x.clone().requires_grad_())
    weights = torch.randn(expected.shape, generator=g, dtype=torch.double)
    wanted = torch.autograd.grad((expected * weights).sum(), [a, *block.parameters()])
    mine = block(b := x.clone().requires_grad_())
    torch.testing.assert_close(mine, expected)
    for p, q in zip(torch.autograd.grad((mine * weights).sum(), [b, *block.parameters()]), wanted): torch.testing.assert_close(p, q)
    torch.testing.assert_close((block.norm.running_mean, block.norm.running_var), (mean, var))


# ---- what a learner says

@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns_what_it_should(precision):
    learner, tasks = make("POEM", precision=precision), random_tasks()
    logits = learner(tasks)
    learner.loss(tasks).backward()
    assert logits.shape == (2, 4, 3) and all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())
    mean, log_precision = learner.encode(tasks.views)
    distinct = log_precision.unique()
    assert {"fixed": len(distinct) == 1, "shared": bool((log_precision == log_precision[0]).all()), "scalar": bool((log_precision == log_precision[:, :1]).all())}.get(precision, len(distinct) > 50)
    extra = count(learner) - count(make("POEM", precision="fixed"))
    assert extra == {"fixed": 0, "shared": 8, "scalar": count(mlp_head(42, 8, 1))}.get(precision, count(mlp_head(42, 8, 8)))


def test_support_and_query_precisions_act_on_their_side_only():
    tasks = random_tasks()
    for precision, side in (("support", "query"), ("query", "support")):
        learner = make("POEM", precision=precision).eval()
        encoded, n = learner.encode(tasks.views), len(tasks.item)
        changed = encoded.log_precision.clone()
        changed[slice(n, None) if side == "query" else slice(n)] += 1.
        assert torch.equal(learner.answer(tasks, encoded), learner.answer(tasks, encoded._replace(log_precision=changed)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 18))
def test_fixed_precisions_and_equal_views_are_a_prototypical_network(seed, V):
    tasks = random_tasks(views=(V, V), seed=seed)
    poem, proto = make("POEM", seed, precision="fixed").eval(), make("ProtoNet", seed).eval()
    poem.load_state_dict(proto.state_dict())
    with torch.no_grad(): a, b = poem(tasks), proto(tasks)
    torch.testing.assert_close(a.softmax(-1), (b * V / (2 * (V + 1))).softmax(-1), atol=1e-5, rtol=1e-4)
    sure = b.topk(2).values.diff().abs().squeeze(-1) > 1e-4
    assert (a.argmax(-1) == b.argmax(-1))[sure].all()


@pytest.mark.parametrize("name", ["POEM", "ProtoNet", "GRU"])
def test_a_task_is_answered_alike_alone_and_in_a_batch(name):
    learner, tasks = make(name).eval(), random_tasks(tasks=4)
    with torch.no_grad(): torch.testing.assert_close(learner(tasks), torch.cat([learner(t) for t in split_tasks(tasks)]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, sensitive", [("POEM", False), ("ProtoNet", False), ("GRU", True)])
def test_order_of_views_matters_to_the_recurrent_network_only(name, sensitive):
    learner, tasks = make(name).eval(), random_tasks(views=(3, 5))
    reverse = torch.cat([(tasks.item == k).nonzero().flatten().flip(0) for k in range(6)])
    with torch.no_grad(): a, b = learner(tasks), learner(tasks._replace(support=Views(*(x[reverse] for x in tasks.support))))
    assert torch.allclose(a, b, atol=1e-4) is not sensitive


@pytest.mark.parametrize("name", ["POEM", "ProtoNet", "GRU"])
def test_one_support_for_all_items_gives_a_uniform_posterior(name):
    g = torch.Generator().manual_seed(0)
    views = random_views(3, g, "symbols")
    tasks = Tasks(Views(*(x.repeat(10, *[1] * (x.dim() - 1)) for x in views)), torch.arange(10).repeat_interleave(3), random_views(5, g, "symbols"), torch.randint(10, (1, 5), generator=g))
    with torch.no_grad(): assert abs(make(name).eval().loss(tasks).item() - math.log(10)) < 1e-5


def test_padding_of_shorter_items_has_no_influence():
    learner, tasks = make("GRU").eval(), random_tasks(tasks=1, items=2, views=(2, 2))
    g = torch.Generator().manual_seed(1)
    more = random_views(6, g, "symbols")
    longer = tasks._replace(support=Views(*(torch.cat(pair) for pair in zip(tasks.support, more))), item=torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1, 1]))
    with torch.no_grad(): torch.testing.assert_close(learner.represent(*tasks[:2])[0], learner.represent(*longer[:2])[0])


def test_complete_observation_sees_maps():
    torch.manual_seed(0)
    learner, tasks = CompleteObservation(symbolic(channels=4), 8, 8), random_tasks()
    maps = tasks._replace(support=Views(torch.randint(4, (6, 11, 11)).byte(), torch.zeros(6, 0)), item=torch.arange(6))
    learner.loss(maps).backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters())


# ---- errors

def test_errors_say_which():
    tasks = random_tasks()
    with pytest.raises(UnknownLearner, match="POEM"): make("poem")
    with pytest.raises(UnknownLearner, match="support"): make("POEM", precision="supports")
    with pytest.raises(UnknownLearner, match="mean"): make("POEM", counts="means")
    with pytest.raises(BadTasks, match="item 2"): make("POEM")(tasks._replace(item=torch.where(tasks.item == 2, 1, tasks.item)))
    with pytest.raises(BadTasks, match="NaN"):
        images = random_tasks(kind="images")
        make("ProtoNet", kind="images")(images._replace(query=images.query._replace(pixels=images.query.pixels * math.nan)))
    with pytest.raises(BadViews, match="made for 6"): make("POEM")(tasks._replace(support=Views(tasks.support.pixels, tasks.support.place[:, :2]), query=Views(tasks.query.pixels, tasks.query.place[:, :2])))
    with pytest.raises(BadViews, match=r"\(7, 7\)"): symbolic()(random_views(2, torch.Generator(), "images"))
    with pytest.raises(BadViews, match="at most 3"): conv4(14, blocks=4)
    with pytest.raises(UnknownRule, match="sgd"): MAML(conv4(14, 1, 4, 2, 4), 8, MAMLConfig(rule="sdg"))
    with pytest.raises(UnknownOption, match="symbolic"): train_mazes(replace(MAZES, encoder="conv4"), Work())
    with pytest.raises(UnknownOption, match="partial"): train_views(replace(VIEWS, views="parts"), Work())


# ---- learners that train in every task

def maml(**inner):
    torch.manual_seed(0)
    return MAML(conv4(14, 1, 4, 2, 4), 8, MAMLConfig(**inner))


def test_maml_without_steps_knows_nothing():
    tasks = random_tasks(tasks=2, items=5, queries=7, kind="images")
    logits = maml(steps=0)(tasks)
    torch.testing.assert_close(logits, logits[..., :1].expand_as(logits))
    assert abs(maml(steps=0).loss(tasks).item() - math.log(5)) < 1e-6


def test_the_papers_inner_loop_is_nearly_no_step():
    tasks = random_tasks(kind="images")
    start, there = dict(maml().net.named_parameters()), maml().adapted(split_tasks(tasks)[0])
    assert max((w - start[k]).abs().max().item() for k, w in there.items()) < 3e-5
    assert abs(maml().loss(tasks).item() - math.log(3)) < 2e-3


def test_maml_adapts_each_task_on_its_own_and_evaluation_needs_no_grad_mode():
    tasks, learner = random_tasks(tasks=3, kind="images"), maml(steps=3, rule="sgd", lr=.1).eval()
    with torch.no_grad(): torch.testing.assert_close(learner(tasks), torch.cat([learner(t) for t in split_tasks(tasks)]))
    learner.loss(tasks).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


@pytest.mark.parametrize("part", ["head", "all"])
def test_finetune_fits_its_support_and_leaves_the_backbone(part):
    torch.manual_seed(0)
    learner, tasks = Finetune(conv4(14, 1, 4, 2, 4), 6, FinetuneConfig(steps=60, lr=.05, part=part)), random_tasks(views=(2, 3), kind="images")
    learner.training_logits(pretraining_batch(tasks.support, tasks.item)).sum().backward()
    learner.eval()
    before = {k: x.clone() for k, x in learner.state_dict().items()}
    with torch.no_grad(): assert learner(tasks).shape == (2, 4, 3)
    for one in split_tasks(tasks):
        asked = Tasks(one.support, one.item, one.support, one.item[None])
        with torch.no_grad(): assert (learner(asked).argmax(-1) == asked.target).float().mean() > .9
    assert all(torch.equal(x, before[k]) for k, x in learner.state_dict().items())


# ---- runs

MAZES = MazeRun(encoder="symbolic", channels=4, dim=8, width=8, updates=9, eval_every=3, eval_tasks=2, test_tasks=3, eval_batch=2, weights=True,
                mazes=MazeConfig(mazes=120, test=20, items=3, queries=8))
VIEWS = ViewRun(source="photos", encoder="conv4", channels=4, blocks=3, dim=8, width=8, head="mlp", distort=False, support=(2, 3), classes=(1, 2), updates=9, eval_every=3, lr=1e-3,
                eval_tasks=2, test_tasks=3, weights=True, maml=MAMLConfig(2, "sgd", .1), finetune=FinetuneConfig(3, lr=1e-2), pretrain_batch=16)
DECODER = DecoderRun(MAZES, updates=9, eval_every=3, batch=8, hidden=16, weights=True)
CASES = [(train_mazes, replace(MAZES, learner=name)) for name in ("POEM", "ProtoNet", "GRU", "complete")]
CASES += [(train_views, replace(VIEWS, learner=name)) for name in ("POEM", "MAML", "Finetune")] + [(train_views, replace(VIEWS, views="whole", ways=(2, 4))), (train_decoder, DECODER),
          (train_walk_decoder, WalkDecoderRun(MAZES, steps=6, mazes=40, updates=9, batch=4, hidden=16, eval_every=3))]


@pytest.mark.parametrize("fn, config", CASES, ids=lambda x: getattr(x, "learner", getattr(x, "__name__", "")))
def test_killed_run_resumes_to_the_same_bits(tmp_path, fn, config):
    whole = fn(config, Work())
    for _ in range(2):
        with pytest.raises(Killed): fn(config, DyingWork(tmp_path, 1))
    resumed = fn(config, Work(tmp_path))
    assert whole.metrics.equals(resumed.metrics) and whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(x, resumed.tensors[k]) for k, x in whole.tensors.items())


def test_killed_at_the_very_end_still_has_its_test_tasks(tmp_path):
    with pytest.raises(Killed): train_mazes(MAZES, DyingWork(tmp_path, 3))
    resumed, whole = train_mazes(MAZES, Work(tmp_path)), train_mazes(MAZES, Work())
    assert whole.metrics.equals(resumed.metrics) and torch.equal(whole.tensors["task_accuracy/unseen"], resumed.tensors["task_accuracy/unseen"])


def test_a_run_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_mazes(replace(MAZES, updates=3), Work())
    assert torch.equal(torch.rand(3), expected)


def test_metrics_agree_with_the_tasks_behind_them():
    out = train_mazes(MAZES, Work())
    last = out.metrics[out.metrics["update"] == 9].set_index("split")
    for split in ("unseen", "protocol"):
        assert last.tasks[split] == 3
        assert abs(last.accuracy[split] - out.tensors[f"task_accuracy/{split}"].mean().item()) < 1e-6
        assert last.ratio[split] > 0
    assert math.isnan(train_mazes(replace(MAZES, learner="GRU"), Work()).metrics.ratio.iloc[-1])
