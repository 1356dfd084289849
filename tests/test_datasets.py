"""Data sets: the hub's loading path on a small copy, bad content, altered files, changed checksums."""
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from rlpapers.core import datasets
from rlpapers.core.datasets import DatasetError, DatasetSpec, DatasetWarning, content_checksum, dataset_spec, load_dataset, register_dataset
from rlpapers.core.paths import Paths


def episodes(spec, scale=1., steps=6):
    env, rng, made = gym.make(spec.env_id), np.random.default_rng(0), []
    for i in range(3):
        obs, actions, rewards = [env.reset(seed=i)[0]], [], []
        for _ in range(steps):
            actions.append((scale*env.action_space.high*rng.uniform(-1, 1, env.action_space.shape)).astype(np.float32))
            ob, reward, *_ = env.step(actions[-1])
            obs.append(ob); rewards.append(float(reward))
        made.append(EpisodeBuffer(id=i, observations=np.array(obs), actions=np.array(actions), rewards=rewards, terminations=[False]*steps, truncations=[False]*(steps - 1) + [True]))
    return made


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A project of its own, without the network, and a registry that is restored afterwards."
    monkeypatch.setattr(datasets, "project_paths", lambda: Paths(tmp_path))
    monkeypatch.setattr(datasets, "_REGISTRY", dict(datasets.known_datasets()))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path/"theirs"))
    return tmp_path


def toy(**changes): return register_dataset(replace(DatasetSpec("core/toy/random-v0", "Pendulum-v1", "A toy.", "CC0-1.0", rows=18, build=episodes), **changes))


def test_hub_data_set_in_the_readers_own_folder(here):
    "The paper-scale Hopper entry reads what `minari download` leaves, through the same code as the real one: here a small stand-in under its name."
    import minari
    spec = dataset_spec("mujoco/hopper/medium-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(spec.name, episodes(spec), env=gym.spec(spec.env_id))
    from rlpapers.offline.data import load_transitions
    data, env_id = load_transitions(spec.name)
    assert env_id == spec.env_id and data.obs.shape == (18, 11) and data.timeout.sum() == 3 and not data.terminal.any()


def test_unreachable_hub_says_what_to_do(here, monkeypatch):
    import minari
    def offline(name): raise ConnectionError("no route to host")
    monkeypatch.setattr(minari, "download_dataset", offline)
    with pytest.raises(DatasetError, match="minari download mujoco/hopper/medium-v0.*laptop"): load_dataset("mujoco/hopper/medium-v0")
    assert not (here/"runs"/"datasets"/"mujoco"/"hopper"/"medium-v0").exists()


def test_downloads_go_into_the_project(here, monkeypatch):
    "A hub data set is fetched into a temporary folder, checked, sealed and moved."
    import minari
    spec = register_dataset(DatasetSpec("mujoco/toy/medium-v0", "Pendulum-v1", "Fetched.", "?", rows=18))
    def fetch(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(name, episodes(spec), env=gym.spec(spec.env_id))
    monkeypatch.setattr(minari, "download_dataset", fetch)
    assert load_dataset(spec.name).total_steps == 18
    monkeypatch.setattr(minari, "download_dataset", None)              # the second time nothing is fetched
    assert load_dataset(spec.name).total_steps == 18
    assert {p.name for p in (here/"runs"/"datasets").iterdir() if not p.name.startswith(".")} == {"mujoco"}


@pytest.mark.parametrize("change, message", [
    (dict(rewards=[0., float("inf")]), "rewards holds NaN or infinity at step 1"), (dict(actions=np.full((2, 1), 1.5)), "leave the action space"),
    (dict(observations=np.full((3, 1), np.nan)), "observations holds NaN"), (dict(truncations=[False, False]), "neither terminated nor truncated"),
    (dict(terminations=[True, False]), "flagged as ended at step 0 of 2"), (dict(actions=np.zeros((1, 1))), "2 actions, got 3 and 1"), (dict(rewards=[], actions=np.zeros((0, 1)), observations=np.zeros((1, 1)), terminations=[], truncations=[]), "neither"),
])
def test_bad_episodes_are_named(change, message):
    good = dict(observations=np.zeros((3, 1)), actions=np.zeros((2, 1)), rewards=[0., 1.], terminations=[False, False], truncations=[False, True])
    space = gym.spaces.Box(-1, 1, (1,))
    datasets.check_episodes([SimpleNamespace(**good)]*2, space, "demo")
    with pytest.raises(DatasetError, match=f"demo, episode 1: .*{message}"): datasets.check_episodes([SimpleNamespace(**good), SimpleNamespace(**good | change)], space, "demo")


def test_a_builder_with_bad_actions_leaves_nothing(here):
    toy(build=lambda spec: episodes(spec, scale=3.))
    with pytest.raises(DatasetError, match="leave the action space"): load_dataset("core/toy/random-v0")
    assert not (here/"runs"/"datasets"/"core"/"toy"/"random-v0").exists()


def test_altered_and_half_written_folders(here):
    toy()
    load_dataset("core/toy/random-v0")
    folder = here/"runs"/"datasets"/"core"/"toy"/"random-v0"
    file = next(folder.rglob("*.hdf5"))
    data = bytearray(file.read_bytes()); data[len(data)//2] ^= 1; file.write_bytes(data)
    with pytest.raises(DatasetError, match="changed since it was written. Delete the folder"): load_dataset("core/toy/random-v0")
    (folder/"rlpapers.json").write_text('{"name": ')
    with pytest.raises(DatasetError, match="half-written"): load_dataset("core/toy/random-v0")


def test_a_new_registered_checksum_means_a_new_build(here):
    toy()
    old = content_checksum(load_dataset("core/toy/random-v0").iterate_episodes())
    longer = lambda spec: episodes(spec, steps=9)
    new = content_checksum(longer(SimpleNamespace(env_id="Pendulum-v1")))
    toy(build=longer, checksum=new)
    assert content_checksum(load_dataset("core/toy/random-v0").iterate_episodes()) == new != old
    toy(checksum="0"*16)
    with pytest.warns(DatasetWarning, match="the registry says 0000"): load_dataset("core/toy/random-v0")


def test_unknown_name_gets_a_suggestion(here):
    with pytest.raises(DatasetError, match="Did you mean 'offline/pendulum/medium-v0'"): load_dataset("offline/pendulum/medum-v0")
