"Properties and failures of rlpapers.core.stats; exact numbers and the coverage table are in its notebook."
import subprocess, sys
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from rlpapers.core import stats

matrices = arrays(float, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-1e3, 1e3))
quick = settings(max_examples=60, deadline=None, derandomize=True)

@quick
@given(matrices)
def test_iqm_is_the_trimmed_mean_along_any_axis(x):
    for axis in (0, 1, None): np.testing.assert_allclose(stats.iqm(x, axis), scipy_stats.trim_mean(x, .25, axis), atol=1e-9)
    assert x.min() - 1e-9 <= stats.iqm(x, None) <= x.max() + 1e-9

@quick
@given(matrices, st.floats(.1, 10), st.floats(-50, 50))
def test_intervals_move_with_the_data(x, scale, shift):
    x = np.concatenate([x, x + 1])                                                # at least two runs
    for f in (np.mean, stats.iqm, stats.median_of_means):
        expected = np.array(stats.bootstrap_interval(x, f, reps=100)) * scale + shift
        np.testing.assert_allclose(stats.bootstrap_interval(scale * x + shift, f, reps=100), expected, rtol=1e-6, atol=1e-6)

@quick
@given(matrices)
def test_expanded_contains_percentile_and_stays_in_range(x):
    x = np.concatenate([x, x + 1])
    low, high = stats.bootstrap_interval(x, reps=200)
    inner = stats.bootstrap_interval(x, reps=200, expand=False)
    assert low <= inner[0] + 1e-9 and inner[1] <= high + 1e-9
    assert x.min(0).mean() - 1e-6 <= low <= high <= x.max(0).mean() + 1e-6

def test_runs_are_never_exchanged_between_tasks():
    tasks = np.tile([0., 100., 1000.], (5, 1))                                    # no spread within a task
    assert stats.bootstrap_interval(tasks) == (pytest.approx(1100 / 3), pytest.approx(1100 / 3))

def test_median_of_means_is_over_tasks():
    x = np.array([[0, 0, 9], [2, 4, 9], [4, 2, 9.]])
    assert stats.median_of_means(x) == 2
    assert stats.median_of_means(np.stack([x, 2 * x])).tolist() == [2, 4]

def test_coverage_at_five_runs():
    rng, hits = np.random.default_rng(1), {True: 0, False: 0}
    for i in range(600):
        x = rng.normal(size=5)
        for expand in hits:
            low, high = stats.bootstrap_interval(x, reps=1000, seed=i, expand=expand)
            hits[expand] += low <= 0 <= high
    assert hits[False] / 600 < .88 and hits[True] / 600 > .88                     # 83 % and 91 % in the long run

BAD = {"is empty": [], "not finite": [1, np.nan], "are not finite": [[np.inf, 1]], "has shape": np.zeros((2, 2, 2))}
@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("call", [stats.bootstrap_interval, lambda x: stats.performance_profile(x, [0]),
                                  lambda x: stats.probability_of_improvement(x, [1, 2]), lambda x: stats.probability_of_improvement([1, 2], x)])
def test_bad_scores_are_refused(call, message):
    with pytest.raises(stats.StatsError, match=message): call(BAD[message])

@quick
@given(arrays(float, (5, 3), elements=st.integers(0, 4)), arrays(float, (7, 3), elements=st.integers(0, 4)))
def test_probability_of_improvement(x, y):
    p, low, high = stats.probability_of_improvement(x, y, reps=200)
    q, low2, high2 = stats.probability_of_improvement(y, x, reps=200)
    assert p + q == pytest.approx(1)
    u = [scipy_stats.mannwhitneyu(x[:, t], y[:, t]).statistic / 35 for t in range(3)]
    assert p == pytest.approx(np.mean(u))
    assert 0 <= low <= high <= 1

def test_probability_interval_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(.5, 1, 20), rng.normal(size=25)
    share = lambda x, y, axis=-1: (x[..., :, None] > y[..., None, :]).mean((-1, -2))
    theirs = scipy_stats.bootstrap((x, y), share, method="percentile", n_resamples=4000, rng=0, vectorized=True).confidence_interval
    _, low, high = stats.probability_of_improvement(x, y, reps=4000)
    assert .99 < (high - low) / (theirs.high - theirs.low) < 1.2                  # ours is expanded, by 8 % at n = 20

def test_curve_band_redraws_whole_curves():
    frame = pd.DataFrame([dict(seed=s, t=t, y=s + 10. * t) for s in range(5) for t in range(6)]).sample(frac=1, random_state=0)
    band = stats.curve_band(frame, "t", "y")
    assert band.t.tolist() == list(range(6)) and (band.n == 5).all()
    np.testing.assert_allclose(band.high - band.low, band.high[0] - band.low[0])   # parallel curves: a band of constant width
    assert stats.curve_band(frame[frame.seed == 1], "t", "y").low.isna().all()     # one run: no band

def test_curve_band_refuses_mixed_and_ragged_curves():
    frame = pd.DataFrame([dict(seed=s, t=t, y=1.) for s in range(3) for t in range(3)])
    with pytest.raises(stats.StatsError, match="select one variant"): stats.curve_band(pd.concat([frame, frame]), "t", "y")
    with pytest.raises(stats.StatsError, match="run 2, column 2"): stats.curve_band(frame.iloc[:-1], "t", "y")

def test_intervals_do_not_depend_on_the_process():
    code = "import numpy as np; from rlpapers.core.stats import *; print(bootstrap_interval(np.arange(12.).reshape(4, 3), iqm))"
    printed = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h, "PATH": ""}).stdout
               for h in ("1", "2")}
    assert printed == {f"{stats.bootstrap_interval(np.arange(12.).reshape(4, 3), stats.iqm)}\n"}


def test_crossed_interval_covers_seeds_and_episodes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 1)) + .1 * rng.normal(size=(3, 50))                 # seeds differ, episodes hardly
    low, high = stats.crossed_interval(x)
    assert high - low > 5 * (np.subtract(*stats.bootstrap_interval(x.mean(0))[::-1]))
    assert low < x.mean(1).min() and high > x.mean(1).max()
    low, high = stats.crossed_interval(x[:1])                                   # one seed: over episodes only
    assert np.isfinite([low, high]).all() and low < x[0].mean() < high
    np.testing.assert_allclose(stats.crossed_interval(2 * x + 1), 2 * np.array(stats.crossed_interval(x)) + 1)
    with pytest.raises(stats.StatsError): stats.crossed_interval(np.zeros((0, 3)))
