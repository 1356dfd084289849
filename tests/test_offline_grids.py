"Grids: what the experiments train is what the paper and the scales say, and a dry run counts it without training."
import json

import pytest
from typer.testing import CliRunner

from rlpapers.core.cli import app
from rlpapers.core.scale import UnknownField
from rlpapers.offline import grids
from rlpapers.offline.bc import BCConfig
from rlpapers.offline.capture import captured_td3bc
from rlpapers.offline.grids import EXPERIMENTS, MUJOCO, UnknownSetting, medium, plan, settings
from rlpapers.offline.trainer import VARIANTS


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_can_be_looked_up(name, scale):
    from rlpapers.core.record import run_key
    grid = EXPERIMENTS[name](scale)
    for fn, c in grid.values():
        assert len(run_key(fn, c)) == 16 and set(c.variants) <= set(VARIANTS)
        assert len(c.seeds) >= (2 if scale == "smoke" else 5)
        assert 0 < c.pretrain < c.updates or isinstance(c, BCConfig)      # cloning has one phase


def test_paper_scale_is_the_papers():
    published = {"HalfCheetah": (20., 300_000, .1), "Hopper": (10., 500_000, 0.), "Walker2d": (5., 500_000, 0.)}
    for task, (alpha, updates, lam) in published.items():
        fn, c = medium("paper")[task]
        assert fn is captured_td3bc
        assert (c.alpha, c.updates, c.lam, c.width, c.batch, c.lr, c.tau, c.gamma) == (alpha, updates, lam, 256, 256, 3e-4, .005, .99)
        assert c.dataset == f"mujoco/{task.lower()}/medium-v0" and c.device == "cuda"
    walker = medium("paper", 0, "EDAC")["Walker2d"][1]
    assert (walker.critics, walker.lam, walker.pretrain, walker.clone_updates) == (10, .5, 101_000, 50_000)


@pytest.mark.parametrize("name", ["11_medium_curves", "12_medium_edac", "13_other_data", "15_limited_demos"])
def test_runs_at_paper_scale_use_the_released_settings(name):
    "Whatever the released files say of a data set is what its run is given."
    algorithm = {make: a for a, (make, _) in grids.ALGORITHMS.items()}
    for _, c in EXPERIMENTS[name]("paper").values():
        if c.device == "cpu": continue                                  # classic control has no counterpart in the paper
        _, task, kind = c.dataset.rsplit("-v", 1)[0].split("/")
        task = next(t for t in MUJOCO + grids.ADROIT if t.lower() == task)
        released = grids.paper_settings(algorithm[type(c)], task, kind)
        assert {k: getattr(c, k) for k in released} == released


def test_released_settings_of_single_data_sets():
    pick = lambda a, t, k, *fields: tuple(grids.paper_settings(a, t, k)[f] for f in fields)
    assert pick("TD3+BC", "Walker2d", "medium-expert", "alpha", "updates", "pretrain") == (2.5, 1_000_000, 20_000)
    assert pick("EDAC", "HalfCheetah", "medium-expert", "eta", "updates") == (5., 3_000_000)
    assert pick("EDAC", "Pen", "human", "critics", "eta") == (20, 1000.) and pick("EDAC+BC", "Door", "cloned", "critics", "eta", "bc") == (50, 200., 1.)
    assert pick("TD3+BC+CQL", "Hammer", "human", "alpha", "updates", "pretrain", "cql", "pretrain_cql") == (1., 300_000, 200_000, 1., 1.)
    assert grids.paper_settings("IQL", "Pen", "human") == {}             # not the paper's


def test_seeds_can_be_chosen_and_unknown_fields_are_named():
    assert medium("laptop", 3)["Hopper"][1].seeds == (10, 11, 12)
    with pytest.raises(UnknownField, match="alpha"): settings("TD3+BC", "Hopper", "medium", "laptop", alhpa=3.)


@pytest.mark.parametrize("call, wrong, right", [
    (lambda: medium("laptop", 0, "TD3BC"), "algorithm='TD3BC'", "TD3+BC"),
    (lambda: settings("TD3+BC", "Ant", "medium", "laptop"), "task='Ant'", "Hopper"),
    (lambda: settings("TD3+BC", "hoper", "medium", "paper"), "task='hoper'", "Hopper"),
    (lambda: settings("BC", "Door", "human", "laptop"), "laptop scale task='Door'", "Pen")])     # Adroit data that laptop lacks
def test_names_without_settings_are_refused(call, wrong, right):
    with pytest.raises(UnknownSetting) as e: call()
    assert wrong in str(e.value) and right in str(e.value)


def test_dry_run_counts_and_trains_nothing(monkeypatch):
    monkeypatch.setattr(grids, "run_grid", None)
    rows = plan("paper")
    result = CliRunner().invoke(app, ["reproduce", "offline", "--scale", "paper", "--dry-run"])
    assert result.exit_code == 0, result.output
    todo = sum(r["state"] != "recorded" for r in rows)          # classic control has one size at both scales
    assert todo > 100 and f"{todo} of {len(rows)} runs to train" in result.output and "GPU-hours" in result.output
    assert "rlpapers reproduce offline --scale paper --engine ray" in result.output
    assert {r["notebook"] for r in rows} == set(EXPERIMENTS) and all(r["hours"] > 0 and r["updates"] > 0 for r in rows)
    assert json.dumps(rows)


def test_a_run_that_experiments_share_is_planned_once():
    names = [(r["notebook"], r["run"]) for r in plan("laptop")]
    shared = sum(len(EXPERIMENTS[n]("laptop")) for n in EXPERIMENTS)
    assert len(names) < shared
