"Offline data: environments and lanes, returns against sums by hand, scores, recordings, and what happens to bad data."
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env

from rlpapers.core import datasets
from rlpapers.core.datasets import DatasetError, content_checksum, dataset_spec, load_dataset
from rlpapers.core.paths import Paths, project_paths
from rlpapers.offline.data import (D4RL_SCORES, BadTransitions, EmptyDataset, MissingPolicy, Transitions, check_transitions, load_transitions, normalized_score,
                                   policy_cards, returns_to_go, score_range, to_transitions)
from rlpapers.offline.environments import CARTPOLE, Lanes, lanes
from rlpapers.offline.recordings import RECORDINGS, TASKS, build_recording, load_snapshots, record_episodes, record_human, record_replay


def built(name): return build_recording(SimpleNamespace(name=name))


# ---- environments

def test_cartpole_passes_gymnasiums_checker_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(CARTPOLE).unwrapped)


def test_cartpole_at_full_force_is_gymnasiums_cartpole():
    "Actions -1 and 1 push with the forces of CartPole-v1: the same states, step for step."
    ours, theirs = gym.make(CARTPOLE).unwrapped, gym.make("CartPole-v1").unwrapped
    rng = np.random.default_rng(0)
    for seed in range(5):
        ours.reset(seed=seed)
        theirs.reset(seed=seed)
        theirs.state, terminated = tuple(ours.state[:, 0]), False
        while not terminated:
            push = int(rng.integers(2))
            theirs.step(push)
            terminated = ours.step(np.array([2 * push - 1], np.float32))[2]
            np.testing.assert_allclose(ours.state[:, 0], theirs.state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("env_id, steps", [("Pendulum-v1", 210), (CARTPOLE, 130)])
def test_numpy_lanes_equal_gymnasium(env_id, steps):
    fast, plain, rng = lanes(env_id, 5), Lanes(env_id, 5), np.random.default_rng(1)
    assert type(fast) is not Lanes
    for start in (0, 50):
        seeds, live = range(start, start + 5), np.ones(5, bool)
        np.testing.assert_array_equal(fast.reset(seeds), plain.reset(seeds))
        for _ in range(steps):
            actions = (fast.action_space.high * rng.uniform(-1.1, 1.1, (5, 1))).astype(np.float32)
            a, b = fast.step(actions, live), plain.step(actions, live)
            for x, y in zip((a[0], a[2], a[3]), (b[0], b[2], b[3])): np.testing.assert_array_equal(x, y)
            np.testing.assert_allclose(a[1], b[1], rtol=0, atol=1e-9)
            live &= ~(a[2] | a[3])
        assert not live.all()


def test_lanes_that_ended_are_left_alone():
    for env in (lanes("Hopper-v5", 3), lanes(CARTPOLE, 3)):
        first = env.reset([1, 2, 3])
        obs, reward, *ends = env.step(np.zeros((3, *env.action_space.shape), np.float32), np.array([True, False, True]))
        np.testing.assert_array_equal(obs[1], first[1])
        assert reward[1] == 0 and not any(e[1] for e in ends) and not np.array_equal(obs[0], first[0])


def test_loading_a_data_set_registers_its_environment():
    code = "from rlpapers.offline.data import load_transitions; import gymnasium; gymnasium.make(load_transitions('offline/cartpole/tiny-v0')[1])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project_paths().root)


# ---- returns and scores

def hand_made():  # two ends of each kind, lengths 1 to 40
    rng, parts = np.random.default_rng(0), []
    for k, (steps, dies) in enumerate(((40, True), (1, False), (1, True), (25, False), (7, True))):
        end = np.eye(steps, dtype=bool)[-1]
        parts.append((rng.normal(size=steps), end & dies, end & (not dies), np.full(steps, k)))
    rew, terminal, timeout, episode = map(np.concatenate, zip(*parts))
    x = np.zeros((len(rew), 1), np.float32)
    return Transitions(x, x, rew, x, terminal, timeout, episode)


@pytest.mark.parametrize("tail, gamma", [(t, g) for t in ("finite", "repeat_last", "bootstrap", "drop") for g in (0., .5, .99) if g or t != "drop"])
def test_returns_equal_a_sum_by_hand(tail, gamma):
    data, values = hand_made(), np.array([9., -4, 2, 3, 1])
    got, horizon = returns_to_go(data, gamma, tail, values), np.log(.05) / np.log(gamma) if gamma else 0
    for t in range(len(data)):
        last = data.ends[data.episode[t]]
        want = sum(gamma ** (k - t) * data.rew[k] for k in range(t, last + 1))
        if not data.terminal[last]:
            if tail == "repeat_last": want += sum(gamma ** (k - t) * data.rew[last] for k in range(last + 1, last + 4000))
            if tail == "bootstrap": want += gamma ** (last + 1 - t) * values[data.episode[t]]
            if tail == "drop" and last - t < horizon: want = np.nan
        np.testing.assert_allclose(got[t], want, rtol=1e-5, atol=1e-5)


def test_reordering_episodes_reorders_returns():
    data = hand_made()
    order = np.concatenate([np.flatnonzero(data.episode == k) for k in (3, 0, 4, 1, 2)])
    moved = Transitions(*(getattr(data, f)[order] for f in data.__dataclass_fields__))
    np.testing.assert_array_equal(returns_to_go(moved), returns_to_go(data)[order])


def test_integer_rewards_are_not_truncated():
    data = replace(hand_made(), rew=np.ones(74, int))
    assert returns_to_go(data, .5, "finite")[0] == pytest.approx(2)


def test_score_constants_are_the_published_ones():
    published = pd.read_csv(project_paths().published / "offline_refscores.csv").set_index("env")
    assert set(published.index) == set(D4RL_SCORES)
    for env, (low, high) in D4RL_SCORES.items(): assert (low, high) == tuple(published.loc[env, ["ref_min", "ref_max"]])
    assert normalized_score(5000, *score_range("HalfCheetah-v5")) == pytest.approx(42.53, abs=1e-4)
    assert score_range("rlpapers/AdroitPen-v0") == D4RL_SCORES["pen"]


def test_classic_tasks_have_scores_of_their_own():
    for task in ("pendulum", "cartpole"):
        low, high = score_range(TASKS[task])
        assert low == policy_cards()[f"{task}-random"]["return_mean"] < policy_cards()[f"{task}-medium"]["return_mean"] < high
    with pytest.raises(MissingPolicy, match="Ant-v5"): score_range("Ant-v5")


# ---- recordings

@pytest.mark.parametrize("name", RECORDINGS)
def test_registered_data_sets_have_checksums_and_references(name):
    spec = dataset_spec(name)
    assert len(spec.checksum) == 16 and spec.rows > 0 and spec.ref_min_score < spec.ref_max_score and spec.licence == "Apache-2.0"


@pytest.mark.parametrize("name", [n for n, r in RECORDINGS.items() if r.rows < 7_000])
def test_small_data_sets_are_the_registered_ones(name):
    episodes, spec = built(name), dataset_spec(name)
    assert content_checksum(episodes) == spec.checksum and sum(len(e.rewards) for e in episodes) == spec.rows


def test_recorded_episodes_are_the_same_every_time():
    once, again, other = (record_episodes("Pendulum-v1", "pendulum-medium", 2, seed=s) for s in (0, 0, 1))
    for a, b in zip(once, again):
        for field in a: np.testing.assert_array_equal(a[field], b[field])
    np.testing.assert_array_equal(once[1]["actions"], other[0]["actions"])            # episode i has the seed + i
    grid = np.stack([e["actions"] for e in once]) / 2 / 1e-4
    assert np.abs(grid - np.round(grid)).max() < 1e-2                                 # actions lie on the grid


def test_replay_goes_through_the_training_in_order():
    steps, medium, policies = load_snapshots("cartpole")
    assert list(steps) == sorted(steps) and len(policies) == len(steps) <= 12
    full, early = (record_replay("cartpole", 3_000, full) for full in (True, False))
    mean = lambda episodes: np.mean([len(e["rewards"]) for e in episodes])
    assert mean(full[-5:]) > 3 * mean(full[:20]) and mean(early[:20]) < 40
    assert np.abs(full[0]["actions"]).mean() == pytest.approx(.5, abs=.15)            # uniformly random to begin with


def test_demonstrations_outlast_the_clock_and_never_fail():
    demos = record_human("pendulum", 8)
    lengths = [len(e["rewards"]) for e in demos]
    assert max(lengths) > gym.spec("Pendulum-v1").max_episode_steps and len(set(lengths)) > 4
    assert all(e["truncations"][-1] and not e["terminations"].any() for e in demos)
    assert any((e["actions"][5:] == 0).any() for e in demos)                          # the hand rests


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A project of its own, without the network, and a registry that is restored afterwards."
    monkeypatch.setattr(datasets, "project_paths", lambda: Paths(tmp_path))
    monkeypatch.setattr(datasets, "_REGISTRY", dict(datasets.known_datasets()))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
    return tmp_path


def download(name, episodes):
    "What `minari download` would leave in the reader's own folder."
    import minari
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return minari.create_dataset_from_buffers(name, episodes, env=gym.spec(dataset_spec(name).env_id))


def test_the_hubs_medium_expert_is_its_two_halves(here):
    half = built("offline/hopper/tiny-v0")
    for kind in ("medium", "expert"): download(f"mujoco/hopper/{kind}-v0", half if kind == "medium" else half[:2])
    data, env_id = load_transitions("mujoco/hopper/medium-expert-v0")
    assert env_id == "Hopper-v5" and data.episode[-1] == 6 and len(data) == sum(len(e.rewards) for e in half + half[:2])
    np.testing.assert_array_equal(data.obs[-1], half[1].observations[-2])


@pytest.mark.parametrize("task", ["pen", "door", "hammer", "relocate"])
def test_hub_data_sets_of_the_hand_know_their_environment(task):
    for kind in ("human", "cloned"): assert dataset_spec(f"D4RL/{task}/{kind}-v2").env_id == f"rlpapers/Adroit{task.title()}-v0"
    assert score_range(f"rlpapers/Adroit{task.title()}-v0") == D4RL_SCORES[task]


# ---- bad data

def episode(**changes):
    good = dict(observations=np.zeros((4, 2)), actions=np.zeros((3, 1)), rewards=np.ones(3), terminations=[False] * 3, truncations=[False, False, True])
    return SimpleNamespace(**good | changes)


@pytest.mark.parametrize("change, message", [
    (dict(rewards=[1., np.nan, np.inf]), r"rew holds NaN or infinity, first in row 4 \(episode 1, step 1\)"),
    (dict(observations=np.array([[0, 0], [0, 0], [0, np.inf], [0, 0]])), r"obs holds NaN or infinity, first in row 5 \(episode 1, step 2\)"),
    (dict(observations=np.array([[0, 0]] * 3 + [[np.nan, 0]])), r"next_obs holds NaN or infinity, first in row 5"),
    (dict(actions=np.array([[0], [np.nan], [0]])), r"act holds NaN or infinity, first in row 4"),
    (dict(actions=np.array([[0], [3], [-7.5]])), r"\[-1, 1\].*2 rows, worst value -3.75, first in row 4 .*units"),
    (dict(truncations=[False] * 3), r"ends without terminal or timeout, first in row 5 .*flag its last row as a timeout"),
])
def test_bad_rows_are_named(change, message):
    assert len(to_transitions([episode(), episode()], [2.], source="demo")) == 6
    with pytest.raises(BadTransitions, match="demo: .*" + message): to_transitions([episode(), episode(**change)], [2.], source="demo")


def test_data_without_any_end_or_any_step_is_refused():
    with pytest.raises(BadTransitions, match="no row is a terminal or a timeout"): to_transitions([episode(truncations=[False] * 3)] * 2, [1.])
    nothing = episode(observations=np.zeros((1, 2)), actions=np.zeros((0, 1)), rewards=[], terminations=[], truncations=[])
    for episodes in ([], [nothing]):
        with pytest.raises(EmptyDataset, match="no step"): to_transitions(episodes, [1.])


def test_a_million_rows_are_checked():
    n = 1_000_000
    x, end = np.zeros((n, 11), np.float32), np.arange(1, n + 1) % 1000 == 0
    data = Transitions(x, x[:, :3], x[:, 0], x, ~end & False, end, np.arange(n) // 1000)
    assert check_transitions(data) is data           # a quadratic check would never come back


def test_unknown_names_get_suggestions():
    with pytest.raises(DatasetError, match="Did you mean 'offline/cartpole/medium-replay-v0'"): load_transitions("offline/cartpole/medium-reply-v0")
    with pytest.raises(DatasetError, match="Did you mean 'D4RL/pen/human-v2'"): load_transitions("D4RL/pen/human-v1")
    with pytest.raises(MissingPolicy, match="replay.safetensors is missing"): load_snapshots("ant")


@pytest.mark.parametrize("damage", ["truncated", "without metadata", "without seal"])
def test_a_half_written_folder_of_ours_is_named(here, damage):
    name = "offline/cartpole/tiny-v0"
    load_dataset(name)
    folder = here / "runs" / "datasets" / name
    file = next(folder.rglob("*.hdf5"))
    if damage == "truncated": file.write_bytes(file.read_bytes()[:1000])
    if damage == "without metadata": (folder / "data" / "metadata.json").unlink()
    if damage == "without seal": (folder / "rlpapers.json").unlink()
    with pytest.raises(DatasetError, match=r"(changed since it was written|half-written).*Delete the folder; offline/cartpole/tiny-v0 is then made again"): load_transitions(name)
    shutil.rmtree(folder)
    assert len(load_transitions(name)[0]) == RECORDINGS[name].rows


@pytest.mark.parametrize("damage", ["truncated", "without metadata"])
def test_a_half_downloaded_hub_data_set_is_named(here, damage):
    name = "mujoco/hopper/medium-v0"
    download(name, built("offline/hopper/tiny-v0")[:2])
    folder = here / "theirs" / name
    file = next(folder.rglob("*.hdf5"))
    if damage == "truncated": file.write_bytes(file.read_bytes()[:1000])
    else: (folder / "data" / "metadata.json").unlink()
    with pytest.raises(DatasetError, match="cannot be read.*minari download mujoco/hopper/medium-v0"): load_transitions(name)


def test_bad_actions_in_a_hub_data_set_name_bound_and_value(here):
    wild = SimpleNamespace(**{f: np.array(getattr(built("offline/hopper/tiny-v0")[0], f)) for f in ("observations", "actions", "rewards", "terminations", "truncations")})
    wild.actions[7, 1] = -1.5
    with pytest.raises(DatasetError, match=r"demo, episode 0: actions leave the action space \[-1.0, 1.0\], worst value -1.5"):
        datasets.check_episodes([wild], gym.make("Hopper-v5").action_space, "demo")


def test_what_the_code_hash_cannot_see_is_pinned():
    "Scores of recorded runs also hang on these; whoever changes one trains the runs of its tasks again."
    from rlpapers.core.record import code_hash
    assert code_hash("rlpapers.offline.adroit:make_adroit") == "9c7b2d15286c81d6", "imported by name at run time: train every run on offline/pen again, then pin the new hash"
    assert (score_range("Pendulum-v1"), score_range(CARTPOLE)) == ((-1207.626, -144.119), (2.834, 49.63)), "read from data/assets/offline/policies.json: train Pendulum's and CartPole's runs again"
