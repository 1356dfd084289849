"DIAMOND's published scores: what follows from them, what does not, and whether the files of cited numbers agree with each other."
import numpy as np
import pandas as pd
import pytest

from rlpapers.core.figures import published
from rlpapers.core.stats import StatsError, bootstrap_interval, iqm, median_of_means, optimality_gap, performance_profile, probability_of_improvement
from rlpapers.diamond.scores import (METHODS, UnknownScores, disagreements, games, normalise, printed_column, references, score_matrix,
                                     superhuman)

STATISTICS = dict(mean=np.mean, median=median_of_means, iqm=iqm, optimality_gap=optimality_gap, superhuman=superhuman)
VARIANTS = {"DIAMOND": ("DIAMOND", {}), "IRIS": ("IRIS", {}), "SimPLe": ("SimPLe", {}), "TWM": ("TWM", {}), "STORM (repo file)": ("STORM", {}),
            "STORM (Freeway set to 33.5 x5)": ("STORM", {"Freeway": 33.5}), "DreamerV3 (derived window)": ("DreamerV3", {})}

def hns(method, replace={}): return normalise(score_matrix(method, replace))
def column(name): return published("diamond", "table1_atari100k").query("column == @name").set_index("row").value

# ---- U18

def test_headline():
    x = hns("DIAMOND")
    found = {n: float(f(x, axis=(0, 1))) for n, f in STATISTICS.items()}
    assert found == pytest.approx(dict(mean=1.4590, median=.3734, iqm=.6408, optimality_gap=.4802, superhuman=11), abs=5e-5)

def test_intervals_of_the_headline():
    x = hns("DIAMOND")
    for statistic, expected in ((np.mean, (1.354, 1.568)), (iqm, (.578, .707))):
        plain = bootstrap_interval(x, statistic, reps=4000, expand=False)
        assert plain == pytest.approx(expected, abs=.008)                       # 4000 replications leave an error of about .003
        low, high = bootstrap_interval(x, statistic, reps=4000)
        assert low < plain[0] and high > plain[1], "five seeds need the wider interval"

def test_interval_keeps_games_apart():
    "Redrawing over games as well would widen the interval several times over."
    x = hns("DIAMOND")
    low, high = bootstrap_interval(x, expand=False)
    assert high - low < .5 * (np.subtract(*bootstrap_interval(x.reshape(-1, 1), expand=False)[::-1]))

@pytest.mark.parametrize("method", METHODS)
def test_anchors(method):
    anchors = references()
    assert not normalise(anchors.Random).any() and (normalise(anchors.Human) == 1).all()
    x = hns(method)
    assert x.shape == (5, 26) and np.allclose(x * (anchors.Human - anchors.Random).to_numpy() + anchors.Random.to_numpy(), score_matrix(method))

def test_iqm_cuts_32_at_each_end():
    x = hns("DIAMOND")
    ordered = np.sort(x.ravel())
    assert iqm(x, None) == pytest.approx(ordered[32:-32].mean()) and len(ordered[32:-32]) == 66
    spoilt = x.copy()
    spoilt[x >= ordered[-32]] *= 1e6
    assert iqm(spoilt, None) == pytest.approx(iqm(x, None))
    spoilt[x >= ordered[-33]] *= 1e6
    assert iqm(spoilt, None) > 10

def test_profile():
    share = performance_profile(hns("DIAMOND"), [0, .5, 1, 2, 4, 8], reps=2)[0]
    assert share == pytest.approx([.969, .462, .423, .246, .115, .015], abs=6e-4)
    assert (np.diff(share) < 0).all()

def test_superhuman_counts_ties():
    x = hns("IRIS")
    pong = games().index("Pong")
    assert x[:, pong].mean() == pytest.approx(1, abs=1e-12) and superhuman(x) == 10
    x[0, pong] -= 1e-6
    assert superhuman(x) == 9
    assert superhuman(np.stack([x, x + 10])).tolist() == [9, 26]

# ---- the file of recomputed aggregates

AGGREGATES = published("diamond", "recomputed_aggregates")

@pytest.mark.parametrize("name", VARIANTS)
def test_recomputed_aggregates(name):
    rows, x = AGGREGATES.query("column == @name and row in @STATISTICS").set_index("row").value, hns(*VARIANTS[name])
    assert set(rows.index) == set(STATISTICS)
    for statistic, f in STATISTICS.items(): assert float(f(x, axis=(0, 1))) == pytest.approx(rows[statistic], abs=6e-5)

@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "DIAMOND"])
def test_probability_of_improvement(name):
    expected = AGGREGATES.query("row == 'P(DIAMOND > X)' and column == @name").value.item()
    p, low, high = probability_of_improvement(hns("DIAMOND"), hns(*VARIANTS[name]), reps=500)
    assert p == pytest.approx(expected, abs=6e-5) and low <= p <= high
    assert (p < .5) == name.startswith("STORM"), "the nuance: better mean, but fewer than half of the comparisons against STORM"

# ---- Table 1 as printed, and its two discrepancies

@pytest.mark.parametrize("method", ["SimPLe", "TWM", "IRIS", "DIAMOND"])
def test_columns_are_means_over_seeds(method):
    assert disagreements(method, .0501).empty
    printed, x = column(method), hns(method)
    assert [round(float(x.mean()), 3), round(float(iqm(x, None)), 3), int(superhuman(x))] == pytest.approx(printed[["Mean HNS", "IQM HNS", "#Superhuman"]].astype(float).tolist(), abs=6e-4)

def test_storm_printed_uses_a_demonstration():
    assert disagreements("STORM").game.tolist() == ["Freeway"] and (score_matrix("STORM")[:, games().index("Freeway")] == 0).all()
    printed = column("STORM")[["Mean HNS", "IQM HNS", "#Superhuman"]].astype(float).tolist()
    def line(x): return [float(x.mean()), float(iqm(x, None)), int(superhuman(x))]
    assert printed == [1.266, .636, 10] and line(hns("STORM", {"Freeway": 33.5})) == pytest.approx(printed, abs=6e-4)
    assert line(hns("STORM")) == pytest.approx([1.222, .561, 9], abs=6e-4)

def test_dreamer_printed_mean_is_not_that_of_its_rows():
    assert disagreements("DreamerV3").game.tolist() == ["UpNDown"]
    rows = normalise(printed_column("DreamerV3"))
    assert rows.mean() == pytest.approx(1.130, abs=6e-4) and float(column("DreamerV3")["Mean HNS"]) == 1.097
    assert hns("DreamerV3", {"UpNDown": 9234.}).mean() == pytest.approx(rows.mean(), abs=1e-3), "with that game set right the curves give the printed rows"
    low, high = bootstrap_interval(hns("DreamerV3"), expand=False)
    assert low < 1.097 < high

# ---- other tables

def test_table6_means_follow_from_rows():
    t = published("diamond", "table6_broader").pivot(index="row", columns="column", values="value")
    x = normalise(t.loc[list(games())].to_numpy(dtype=float).T)
    means = dict(zip(t.columns, x.mean(1)))
    for name, value in dict(MuZero=.562, EfficientZero=1.943, CURL=.261, SPR=.616, BBF=2.247, DIAMOND=1.459, Human=1.) .items():
        assert means[name] == pytest.approx(value, abs=6e-4) and float(t.loc["Mean HNS", name]) == pytest.approx(value, abs=6e-4)
    for name, count in t.loc["#Superhuman"].dropna().items(): assert superhuman(x[list(t.columns).index(name)][None]) == float(count)

def test_table7():
    t = published("diamond", "table7_nsteps").pivot(index="row", columns="column", values="value").astype(float)
    ten = [g for g in games() if g in t.index]
    unit, random = t.loc[ten, "Human"] - t.loc[ten, "Random"], t.loc[ten, "Random"]
    assert len(ten) == 10 and (references().loc[ten] == t.loc[ten, ["Random", "Human"]]).all(axis=None)
    for n, value in ((3, 3.052), (1, 1.9622)): assert ((t.loc[ten, f"DIAMOND (n={n})"] - random) / unit).mean() == pytest.approx(value, abs=6e-5)
    seeds = score_matrix("DIAMOND")[:, [games().index(g) for g in ten]]
    assert np.abs(seeds.mean(0) - t.loc[ten, "DIAMOND (n=3)"]).max() < .051
    best = np.argmax([printed_column(m) for m in METHODS], axis=0)
    assert ten == [g for g, b in zip(games(), best) if METHODS[b] == "DIAMOND"], "the ten games are those in which three steps beat every other agent"

def test_tidy_and_wide_table1_agree():
    tidy = published("diamond", "table1_atari100k").pivot(index="row", columns="column", values="value")
    wide = published("diamond", "table1_wide").set_index("game")
    assert list(wide.index) == sorted(wide.index, key=list(games()).index) and len(wide) == 26
    pd.testing.assert_frame_equal(tidy.loc[wide.index, wide.columns].astype(float), wide, check_names=False)

def test_checkpoint_layout_has_the_published_sizes():
    t = published("diamond", "checkpoint_layout")
    assert t.key.is_unique and t.groupby(t.key.str.split(".").str[0]).size().to_dict() == dict(denoiser=236, rew_end_model=108, actor_critic=28)
    def parameters(actions):
        sizes = t["shape"].str.replace("A", str(actions)).str.split("x").map(lambda s: np.prod([int(d) for d in s]))
        return sizes[t.kind == "parameter"].groupby(t.key.str.split(".").str[0]).sum().to_dict()
    assert parameters(4) == dict(denoiser=4_405_955, rew_end_model=5_900_864, actor_critic=3_229_637)
    assert sum(parameters(18).values()) == 13_546_326
    assert (t["shape"].str.startswith("A") == t.first_dim_is_actions.astype(bool)).all()

# ---- errors

def test_errors_name_what_is_known():
    with pytest.raises(UnknownScores, match="Did you mean 'DIAMOND'"): score_matrix("DIAMOND ")
    with pytest.raises(UnknownScores, match="Did you mean 'Freeway'"): score_matrix("STORM", {"FreeWay": 1.})
    with pytest.raises(UnknownScores, match="no column"): printed_column("MuZero")
    with pytest.raises(UnknownScores, match="26 games"): normalise(np.zeros((26, 5)))
    with pytest.raises(StatsError, match="not finite"): bootstrap_interval(normalise(np.full((5, 26), np.nan)))
