"Data and environments of DIAMOND: segments and files of the replay, the pixel games, Atari wrappers, collecting, dreams."
import json, os, sys, warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings, strategies as st

from rlpapers.core.checkpoint import decode, encode
from rlpapers.diamond import replay as replay_module
from rlpapers.diamond.atari import (GAMES_100K, OWN, SCRIPTS, AtariConfig, BadAtari, MissingEmulator, MissingROM, UnknownGame, atari_objects, experts,
                                    load_game, make_atari, make_vector)
from rlpapers.diamond.collecting import Collector, Mixed, collect, collect_first, play_games, uniform
from rlpapers.diamond.dream import BadDream, DreamEnv, start_from
from rlpapers.diamond.games import GAMES, BadAction, PixelCatch, PixelDrift, catch_expert, catch_objects, drift_intensity, futures
from rlpapers.diamond.recordings import from_frames
from rlpapers.diamond.replay import (GREY, GROUPS, KINDS, BadEpisode, BadSegments, Replay, TornReplay, check_episode, episode_probabilities, repair,
                                     segment_start)

SHAPE = (3, 4, 4)

def life(steps, seed=0, end=True, shape=SHAPE):
    rng = np.random.default_rng(seed)
    frames = rng.integers(256, size=(steps + 1, *shape), dtype=np.uint8)
    return check_episode(frames[:-1], rng.integers(4, size=steps), rng.integers(-3, 4, size=steps), end, frames[-1], shape)

def filled(folder=None, lengths=(5, 9, 1, 30, 7)):
    replay = Replay(folder, SHAPE)
    for k, n in enumerate(lengths): replay.add(*life(n, k))
    return replay

def same(a, b): return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
def same_replay(a, b): return a.episodes == b.episodes and all(same(x, y) for x, y in zip(a, b))


# ---- segments (U15)

def test_segment_arithmetic_of_the_toy_episode():
    start = segment_start(np.array([0]), np.array([0]), 5, 6)
    replay = Replay(shape=SHAPE).add(*life(5))
    segment = replay.gather(np.array([0]), start, 6)
    assert start == [-5] and segment.mask.tolist() == [[False] * 5 + [True]]
    assert np.array_equal(segment.frames[0, 5], life(5).frames[0]) and (segment.frames[0, :5] == GREY).all()
    assert not (segment.act[0, :5].any() or segment.rew[0, :5].any() or segment.end[0].any())

def test_episode_probabilities():
    p = episode_probabilities(np.full(10, 3))
    assert np.allclose(p, [.05] * 6 + [.175] * 4) and np.isclose(p.sum(), 1)
    assert np.allclose(episode_probabilities([1, 2, 7]), [.1, .2, .7])
    assert np.allclose(episode_probabilities([1, 2, 3, 4], None), [.1, .2, .3, .4])
    for n in range(1, 40): assert np.isclose(episode_probabilities(np.arange(1, n + 1)).sum(), 1)

@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), length=st.integers(1, 20), kind=st.sampled_from(KINDS),
       weights=st.sampled_from([None, GROUPS]), seed=st.integers(0, 99), events=st.sampled_from([0., .5, 1.]))
def test_segments_are_pieces_of_episodes(lengths, length, kind, weights, seed, events):
    replay = Replay(shape=(1, 1, 2))
    for k, n in enumerate(lengths):                          # frame j of episode k is the pair (k, j)
        frames = np.stack([np.full(n, k), np.arange(n)], -1).astype(np.uint8).reshape(n, 1, 1, 2)
        replay.add(frames, np.full(n, k), np.arange(n) + 1., k % 2 == 0, np.full((1, 1, 2), k, np.uint8))
    s = replay.segments(7, length, np.random.default_rng(seed), kind, weights, events)
    for frames, act, rew, end, mask, final in zip(*s):
        inside = np.flatnonzero(mask)
        assert len(inside) and np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))       # one run of frames
        k, j = int(final[0, 0, 0]), rew[inside] - 1
        assert (frames[inside, 0, 0, 0] == k).all() and (act[inside] == k).all() and np.array_equal(frames[inside, 0, 0, 1], j)
        assert np.array_equal(end[inside], (j == lengths[k] - 1) & (k % 2 == 0))
        assert (frames[~mask] == GREY).all() and not (act[~mask].any() or rew[~mask].any() or end[~mask].any())
        if kind != "reward": assert mask[-1]                  # never beyond the end
        if mask[0] and inside[-1] < length - 1: assert j[-1] == lengths[k] - 1
        if len(inside) > 1: assert (np.diff(j) == 1).all()

def test_segments_cover_what_the_rules_say():
    replay, rng = Replay(shape=(1, 1, 1)), np.random.default_rng(0)
    for k, n in enumerate([10, 20] * 4): replay.add(np.full((n, 1, 1, 1), k, np.uint8), np.full(n, k), np.arange(n), False, np.zeros((1, 1, 1), np.uint8))
    s = replay.segments(80_000, 1, rng)
    share = np.bincount(s.act[:, 0], minlength=8) / 80_000
    assert np.abs(share - np.array([.05] * 6 + [.35] * 2)).max() < .01
    steps = np.bincount(s.rew[s.act[:, 0] == 7, 0].astype(int), minlength=20)
    assert np.abs(steps / steps.sum() - .05).max() < .01        # the step is uniform in the episode

def test_images_are_exact():
    replay = filled()
    s = replay.segments(64, 9, np.random.default_rng(0), "reward")
    x, mask = s.images(), torch.from_numpy(s.mask)
    assert x.dtype == torch.float32 and (x[~mask] == 0).all() and (~mask).any()
    assert torch.equal(((x[mask] + 1) * 127.5).round().byte(), torch.from_numpy(s.frames)[mask])
    assert all(isinstance(t, torch.Tensor) for t in s.to()) and torch.equal(s.to().images(), x)

@pytest.mark.parametrize("kwargs, message", [(dict(batch=0), "none may be 0"), (dict(length=0), "none may be 0"), (dict(kind="denoizer"), "Did you mean 'denoiser'")])
def test_impossible_segments(kwargs, message):
    with pytest.raises(BadSegments, match=message): filled().segments(**{**dict(batch=2, length=3, rng=np.random.default_rng(0)), **kwargs})
    with pytest.raises(BadSegments, match="none may be 0"): Replay(shape=SHAPE).segments(2, 3, np.random.default_rng(0))


# ---- what comes in

@pytest.mark.parametrize("field, value, message", [
    ("frames", np.zeros((5, *SHAPE)), "frames: dtype float64"), ("frames", np.zeros((5, *SHAPE), np.int64), "frames: dtype int64"),
    ("frames", np.zeros((5, 4, 4, 3), np.uint8), "channels come last"), ("frames", np.zeros((5, 3, 5, 4), np.uint8), "frames: shape"),
    ("frames", np.zeros((0, *SHAPE), np.uint8), "at least one step"), ("frames", np.zeros((5, 1, 4, 4), np.uint8), "frames: shape"),
    ("final", np.zeros((5, *SHAPE), np.uint8), "final: shape"), ("final", np.zeros(SHAPE, np.float32), "final: dtype"),
    ("act", np.zeros(4, int), "act: shape"), ("act", np.zeros(5), "whole numbers"), ("act", np.full(5, -1), "smallest -1"),
    ("rew", np.full(5, np.nan), "rew: entry 0 is not finite"), ("end", np.array([0, 1, 0, 0, 1], bool), "end: true at step 1"), ("end", np.zeros(3, bool), "end: shape")])
def test_bad_episodes_are_named(field, value, message):
    fields = life(5)._asdict()
    with pytest.raises(BadEpisode, match=message): Replay(shape=SHAPE).add(**{**fields, field: value})

def test_lives_that_go_on():
    whole, pieces = life(9), Replay(shape=SHAPE)
    cut = lambda a, b: (whole.frames[a:b], whole.act[a:b], whole.rew[a:b], b == 9, whole.frames[b] if b < 9 else whole.final)
    pieces.add(*cut(0, 3), goes_on=True).add(*cut(3, 4), extend=True, goes_on=True).add(*cut(4, 9), extend=True)
    assert pieces.episodes == 1 and same(pieces.episode(0), whole)
    with pytest.raises(BadEpisode, match="does not go on"): pieces.add(*cut(3, 4), extend=True)
    pieces.add(*cut(0, 3), goes_on=True)
    with pytest.raises(BadEpisode, match="not the `final`"): pieces.add(*cut(4, 9), extend=True)
    with pytest.raises(BadEpisode, match="cannot go on"): pieces.add(*cut(4, 9), goes_on=True)
    with pytest.raises(BadSegments, match="episode 7 of 2"): pieces.episode(7)

def test_own_recordings(tmp_path):
    rng = np.random.default_rng(0)
    film, act = rng.integers(256, size=(21, 8, 8, 3), dtype=np.uint8), rng.integers(3, size=20)
    ends = np.isin(np.arange(20), [4, 19])
    replay = from_frames(film, act, ends=ends, folder=tmp_path/"own")
    assert replay.lengths.tolist() == [5, 15] and np.array_equal(replay.episode(0).final, film[5].transpose(2, 0, 1))
    assert same_replay(from_frames(np.moveaxis(film, -1, 1), act, ends=ends), replay) and same_replay(Replay(tmp_path/"own"), replay)
    assert len(from_frames(film[:20], act)) == 19             # without the last frame the last action has no outcome
    for bad, message in ((dict(frames=film[:15]), "One action lies between"), (dict(frames=film / 255), "dtype float64"), (dict(frames=film[..., :1]), "frames: shape")):
        with pytest.raises(BadEpisode, match=message): from_frames(**{**dict(frames=film, actions=act), **bad})


# ---- files

def test_saved_and_mapped(tmp_path):
    replay, plain = filled(tmp_path), filled()
    replay.save()
    assert isinstance(replay._disk, np.memmap) and not replay._disk.flags.writeable and not replay._frames.used
    for k in range(5, 8): [r.add(*life(4, k)) for r in (replay, plain)]
    draws = [r.segments(50, 6, np.random.default_rng(1), "reward") for r in (replay, plain)]         # half from disk, half from memory
    assert same(*draws) and same_replay(replay, plain)
    assert same_replay(Replay(tmp_path), filled()) and same_replay(Replay(tmp_path, SHAPE), filled())
    replay.save().save().check()
    assert same_replay(Replay(tmp_path).check(), plain)
    with pytest.raises(BadEpisode, match="holds frames of shape"): Replay(tmp_path, (3, 64, 64))
    with pytest.raises(BadSegments, match="no folder"): plain.save()

def test_an_unfinished_life_is_not_saved(tmp_path):
    replay = filled(tmp_path)
    replay.add(*life(6, 9, end=False), goes_on=True).save()
    assert Replay(tmp_path).episodes == 5 and replay.episodes == 6
    more = life(3, 10)
    replay.add(np.concatenate([life(6, 9).final[None], more.frames]), np.zeros(4, int), np.zeros(4), True, more.final, extend=True).save().check()
    assert Replay(tmp_path).check().lengths.tolist()[-1] == 10 and same_replay(Replay(tmp_path), replay)

def test_truncate(tmp_path):
    for saved in (0, 2, 5):
        replay = Replay(tmp_path/str(saved), SHAPE)
        for k, n in enumerate((5, 9, 1, 30, 7)):
            if k == saved: replay.save()
            replay.add(*life(n, k))
        if saved == 5: replay.save()
        for k in (4, 3, 1, 0):
            replay.truncate(k)
            assert same_replay(replay, filled(lengths=(5, 9, 1, 30, 7)[:k])) and len(replay) == sum((5, 9, 1, 30, 7)[:k])
        for k, n in enumerate((5, 9, 1, 30, 7)): replay.add(*life(n, k))
        assert same_replay(Replay(replay.save().check().folder).check(), filled())
    with pytest.raises(BadSegments, match="episodes=9"): replay.truncate(9)

@pytest.mark.parametrize("name", ["frames.u8", "steps.bin", "finals.u8"])
def test_torn_and_damaged_files(tmp_path, name):
    filled(tmp_path).save()
    file, data = tmp_path/name, (tmp_path/name).read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(TornReplay, match=name): Replay(tmp_path)
    assert same_replay(repair(tmp_path), filled(lengths=(5, 9, 1, 30)))
    (tmp_path/"index.json").unlink()
    for f in ("frames.u8", "steps.bin", "finals.u8"): (tmp_path/f).unlink()
    filled(tmp_path).save()
    file.unlink()
    with pytest.raises(TornReplay, match=f"{name}: 0 bytes"): Replay(tmp_path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(TornReplay, match="episode . is not what was saved"): Replay(tmp_path).check()
    bad = Replay(tmp_path).damaged()
    assert same_replay(repair(tmp_path).check(), filled(lengths=(5, 9, 1, 30, 7)[:bad]))

@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shape": [3, 4, 4], "lengths": [5], "sums": []}', '{"shape": [3, 4, 4], "lengths": [-5], "sums": [1]}',
                                  '{"shape": [4, 4], "lengths": [5], "sums": [1]}', '{"shape": [3, 4, 4], "lengths": ["x"], "sums": [1]}', '{"shape": [3, 4, 4], "len'])
def test_torn_index(tmp_path, text):
    filled(tmp_path).save()
    (tmp_path/"index.json").write_text(text)
    for attempt in (Replay, repair):
        with pytest.raises(TornReplay, match="index.json"): attempt(tmp_path)

@pytest.mark.parametrize("dies_at", range(5))
def test_killed_while_saving(tmp_path, monkeypatch, dies_at):
    "Whatever write the process dies at, the old episodes or all of the new are there, and the next save completes."
    filled(tmp_path).save()
    replay = Replay(tmp_path).add(*life(8, 20))
    calls, sync = [], os.fsync
    def dying(handle):
        calls.append(handle)
        if len(calls) > dies_at: raise KeyboardInterrupt
        sync(handle)
    monkeypatch.setattr(os, "fsync", dying)
    with pytest.raises(KeyboardInterrupt): replay.save()
    monkeypatch.setattr(os, "fsync", sync)
    again = Replay(tmp_path).check()
    assert again.episodes in (5, 6) and all(same(a, b) for a, b in zip(again, filled()))
    if again.episodes == 5: again.add(*life(8, 20)).save()
    assert same_replay(Replay(tmp_path).check(), filled().add(*life(8, 20)))

def test_another_process_cut_the_files(tmp_path):
    replay = filled(tmp_path).save()
    (tmp_path/"steps.bin").write_bytes(b"")
    with pytest.raises(TornReplay, match="Another process"): replay.add(*life(3)).save()

def test_the_index_is_plain_json(tmp_path):
    filled(tmp_path).save()
    index = json.loads((tmp_path/"index.json").read_text())
    assert index["lengths"] == [5, 9, 1, 30, 7] and index["shape"] == [3, 4, 4] and (tmp_path/"frames.u8").stat().st_size == 52 * 48
    assert replay_module.STEP.itemsize * 52 == (tmp_path/"steps.bin").stat().st_size


# ---- pixel games

@pytest.mark.parametrize("name", GAMES)
def test_registered_games_pass_check_env(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"rlpapers/{name}-v0", render_mode="rgb_array").unwrapped)
    env = gym.make(f"rlpapers/{name}-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3) and type(gym.make_vec(f"rlpapers/{name}-v0", num_envs=2)) is GAMES[name]

@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(sorted(GAMES)), seed=st.integers(0, 2**31))
def test_vector_games_are_gymnasiums(name, seed):
    ours, theirs = GAMES[name](3), SyncVectorEnv([lambda: gym.make(f"rlpapers/{name}-v0")] * 3, autoreset_mode="SameStep")
    a, b = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
    for act in np.random.default_rng(seed).integers(3, size=(80, 3)):
        assert np.array_equal(a, b)
        (a, *now, info), (b, *then, other) = ours.step(act), theirs.step(act)
        assert same(now, then) and ("final_obs" in info) == ("final_obs" in other)
        if "final_obs" in info:
            assert np.array_equal(info["_final_obs"], other["_final_obs"])
            for i in np.flatnonzero(info["_final_obs"]): assert np.array_equal(info["final_obs"][i], other["final_obs"][i])

def test_rows_do_not_depend_on_their_neighbours():
    rng = np.random.default_rng(0)
    few, many = PixelCatch(2), PixelCatch(9)
    a, b = few.reset(seed=4)[0], many.reset(seed=4)[0]
    for act in rng.integers(3, size=(200, 9)):
        assert np.array_equal(a, b[:2])
        a, b = few.step(act[:2])[0], many.step(act)[0]

def test_wrong_actions():
    env = PixelCatch(2)
    with pytest.raises(gym.error.ResetNeeded): env.step(np.zeros(2, int))
    env.reset(seed=0)
    for bad in (np.array([0, 3]), np.array([-1, 0]), np.zeros(3, int), np.zeros(2), 1):
        with pytest.raises(BadAction, match="2 whole numbers"): env.step(bad)

def test_catch_is_what_the_specification_says():
    scores = play_games(PixelCatch(64), uniform(3), 640, np.random.default_rng(0))
    assert -.63 - .15 < scores.mean() < -.63 + .15              # spec 9.2 f: -0.63 +- 0.06
    assert (play_games(PixelCatch(16), catch_expert, 32, np.random.default_rng(0)) == 20).all()
    env = PixelCatch(1)
    env.reset(seed=0)
    ends = [env.step(np.array([1]))[2:4] for _ in range(7)]
    assert not any(e[0] or c[0] for e, c in ends[:6])           # seven steps a ball

def test_catch_objects_on_noise_and_dreams():
    noise = np.random.default_rng(0).integers(256, size=(200, 3, 16, 16), dtype=np.uint8)
    assert not catch_objects(noise).visible.any() and not catch_objects(noise).whole.any()
    empty = np.tile(np.array([0, 0, 60], np.uint8)[:, None, None], (1, 16, 16))
    seen = catch_objects(empty)
    assert not seen.visible and not seen.whole and np.isnan(seen.ball).all()
    one = PixelCatch(1)
    frame = one.reset(seed=1)[0][0].copy()
    assert catch_objects(frame).visible and catch_objects(torch.from_numpy(frame).float().numpy() / 127.5 - 1).visible
    frame[:, 8:10, (one.column[0] + 5) % 16] = np.array([255, 255, 0])[:, None]
    assert not catch_objects(frame).visible                     # two balls

def test_drift_has_two_equal_futures():
    env = PixelDrift(4000)
    obs, _ = env.reset(seed=0)
    before, own = env.other.copy(), env.own.copy()
    after = env.step(np.full(4000, 2))[0]
    mine, other = drift_intensity(after)
    seen = futures(before, other)
    assert np.allclose(seen.commitment, .5) and abs(seen.right.mean() - .5) < 4 * .5 / 4000**.5
    assert np.array_equal(mine.argmax(-1), np.minimum(own + 1, 7)) and np.allclose(seen.left_right.sum(-1), 1)


# ---- collecting

@pytest.mark.parametrize("envs", [1, 3])
def test_collecting_in_parts_is_collecting_at_once(envs, tmp_path):
    def run(*parts, folder=None):
        collector = Collector(PixelCatch(envs), Replay(folder, (3, 16, 16)), np.random.default_rng(0), seed=7)
        for n in parts: collector.run(Mixed(catch_expert, 3, (.6,)), n, epsilon=.05)
        return collector
    once, often = run(600), run(60, 300, 240)
    assert same_replay(once.replay, often.replay) and once.steps == often.steps == 600
    first = run(300, folder=tmp_path)
    first.replay.save()
    state = decode(encode(first.state()))
    rest = Collector(PixelCatch(envs), Replay(tmp_path), np.random.default_rng(5)).restore(state)
    policy = Mixed(catch_expert, 3, (.6,))
    for c in (first, rest): c.run(policy, 300, epsilon=.05)
    assert same_replay(first.replay, rest.replay) and len(first.flush()) == 600

def test_initial_collection():
    collector = Collector(PixelCatch(1), Replay(shape=(3, 16, 16)), np.random.default_rng(0))
    assert collect_first(collector, uniform(3), first=50, more=10, most=60) == 60                     # not enough rewards, but the limit
    assert collect_first(collector, uniform(3), first=500, most=400) == 400
    drift = Collector(PixelDrift(1), Replay(shape=(3, 16, 16)), np.random.default_rng(0))
    assert collect_first(drift, uniform(3), first=100, more=100, most=300) == 300                     # no rewards at all

def test_scores_count_every_row_alike():
    class Rows(PixelDrift):                                     # row i lasts i + 1 steps and scores i
        def advance(self, act):
            rew, end, _ = super().advance(act)
            over = self.age > np.arange(self.num_envs)
            return rew + over * np.arange(self.num_envs), end, over
    scores = play_games(Rows(4), uniform(3), 8, np.random.default_rng(0))
    assert sorted(scores) == [0, 0, 1, 1, 2, 2, 3, 3]


# ---- Atari

ale_py = pytest.importorskip("ale_py")

def test_unknown_game_and_missing_files(tmp_path, monkeypatch):
    with pytest.raises(UnknownGame, match="Did you mean 'Breakout'"): make_atari(AtariConfig("Brekout"))
    with pytest.raises(UnknownGame, match="Known: "): make_vector(AtariConfig("NoSuchThing"))
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(MissingROM, match="breakout.bin.*Reinstall ale-py"): make_atari(AtariConfig("Breakout"))
    (tmp_path/"breakout.bin").write_bytes(b"not a game")
    with pytest.raises(MissingROM, match="hash"): make_atari(AtariConfig("Breakout"))
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path/"nowhere"))
    with pytest.raises(MissingROM, match="nowhere"): make_atari(AtariConfig("Breakout"))
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(MissingEmulator, match="Install ale-py"): make_atari()

@pytest.mark.parametrize("options, message", [(dict(actions=("NOOP", "UPP")), "Did you mean"), (dict(actions=(0, 99)), "no action 99"), (dict(actions=(0, 0)), "twice"),
                                              (dict(size=4), "size >= 8"), (dict(repeat=1), "repeat >= 2")])
def test_bad_settings(options, message):
    with pytest.raises(BadAtari, match=message): make_atari(AtariConfig("Freeway", **options))

def test_all_games_of_the_benchmark_are_there():
    for game in GAMES_100K: assert load_game(AtariConfig(game)).getScreenDims()[1] == 160

@pytest.mark.parametrize("game, size", [("Pong", 64), ("Breakout", 64), ("MsPacman", 32), ("Seaquest", 84)])
def test_wrappers_are_gymnasiums_preprocessing(game, size):
    gym.register_envs(ale_py)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = gym.wrappers.AtariPreprocessing(gym.make(f"{game}NoFrameskip-v4"), noop_max=0, frame_skip=4, screen_size=size, grayscale_obs=False)
    ours, rng = make_atari(AtariConfig(game, size=size, noop_max=0)), np.random.default_rng(0)
    assert ours.action_space.n == theirs.action_space.n
    a, b = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    for act in rng.integers(ours.action_space.n, size=500):
        assert np.array_equal(a, b.transpose(2, 0, 1))
        (a, *now, info), (b, *then, _) = ours.step(act), theirs.step(act)
        assert now == then and info["game_over"] == (now[1] or now[2])
        if info["game_over"]: a, b = ours.reset()[0], theirs.reset()[0]

def test_no_ops_change_the_start_and_seeds_repeat_it():
    env = make_atari(AtariConfig("Seaquest"))
    starts = [env.reset(seed=s)[0] for s in (0, 1, 2, 0)]
    assert np.array_equal(starts[0], starts[3]) and len({x.tobytes() for x in starts}) > 1

def test_games_are_cut_after_their_frames():
    env = make_atari(AtariConfig("Freeway", max_frames=400, noop_max=0))
    env.reset(seed=0)
    for k in range(100):
        _, _, end, cut, info = env.step(0)
        if end or cut: break
    assert (k, end, cut, info["game_over"]) == (99, False, True, True)

def test_lives_only_go_down():
    "P27: after a bonus life the next loss goes unnoticed, as in the paper's code."
    env = make_atari(AtariConfig("Breakout"), train=True)
    env.reset(seed=0)
    class Console:
        lives_left = iter([5, 6, 6, 5, 4, 4])
        def act(self, _): return 0
        def getScreenRGB(self, out): out[:] = 0
        def game_over(self, with_truncation=True): return False
        def game_truncated(self): return False
        def getRAM(self): return np.zeros(128, np.uint8)
        def lives(self): return self.now
    env.ale, ends = Console(), []
    for env.ale.now in Console.lives_left: ends.append(env.step(0)[2])
    assert ends == [False, False, False, False, True, False]

@pytest.mark.parametrize("game", ["Breakout", "Seaquest"])
def test_lives_make_up_the_game(game):
    "U17: the emulator runs on; concatenated lives are the game, and rewards sum to its score."
    n = make_atari(AtariConfig(game)).action_space.n
    runs = [Collector(make_vector(AtariConfig(game, size=16), 1, train=t), Replay(shape=(3, 16, 16)), np.random.default_rng(0), seed=1) for t in (False, True)]
    scores = [c.run(uniform(n), 900) for c in runs]
    game, lives = runs[0].replay.episode(0), list(runs[1].replay)
    assert game.end[-1] and scores[0] == scores[1] and scores[0][0] == game.rew.sum()
    count = int(np.searchsorted(np.cumsum([len(e.act) for e in lives]), len(game.act))) + 1
    assert count > 2 and np.array_equal(np.concatenate([e.frames for e in lives[:count]]), game.frames)
    assert all(e.end[-1] for e in lives[:count]) and sum(e.rew.sum() for e in lives[:count]) == scores[0][0]
    for a, b in zip(lives[:count - 1], lives[1:count]): assert np.array_equal(a.final, b.frames[0])

def test_atari_states_go_on_in_another_emulator():
    first = Collector(make_vector(AtariConfig("Boxing", size=16), 2, train=True), Replay(shape=(3, 16, 16)), np.random.default_rng(0))
    first.run(uniform(18), 200)
    state = decode(encode(first.state()))
    second = Collector(make_vector(AtariConfig("Boxing", size=16), 2, train=True), Replay(shape=(3, 16, 16)), np.random.default_rng(1), seed=77).restore(state)
    for c in (first, second): c.run(uniform(18), 200)
    assert same_replay(first.flush(), second.flush())

@pytest.mark.parametrize("game, steps, better", [("Breakout", 500, 8), ("Freeway", 300, 3), ("Pong", 400, 2)])
def test_scripted_players_play(game, steps, better):
    c = AtariConfig(game, size=8)
    random, script = (play_games(make_vector(c), p, 1, np.random.default_rng(0), 0, steps)[0] for p in (uniform(len(OWN[game])), experts(c)[game]))
    assert script >= random + better

@pytest.mark.parametrize("game", SCRIPTS)
def test_scripted_players_know_the_action_sets(game):
    assert tuple(make_atari(AtariConfig(game)).meanings) == OWN[game]
    memory = np.random.default_rng(0).integers(256, size=(300, 128), dtype=np.uint8)
    for actions in (None, (0, 1), ("NOOP", OWN[game][-1])):
        act = experts(AtariConfig(game, actions=actions))[game](None, {"ram": memory}, np.random.default_rng(0))
        assert act.shape == (300,) and 0 <= act.min() <= act.max() < len(actions or OWN[game])

def test_objects_are_where_the_memory_says():
    "Breakout's ball is drawn where the memory puts it."
    env = make_vector(AtariConfig("Breakout"), 1)
    obs, info = env.reset(seed=0)
    policy, rng, found = experts(AtariConfig("Breakout"))["Breakout"], np.random.default_rng(0), 0
    for _ in range(300):
        obs, _, _, _, info = env.step(policy(obs, info, rng))
        x, y = atari_objects("Breakout", info["ram"][0])["ball"]
        if not np.isnan(x) and 95 < y < 180:                     # between bricks and paddle
            patch = env.render()[0][int(round(y)) - 1:int(round(y)) + 2, max(int(round(x)) - 1, 0):int(round(x)) + 2]
            assert (patch == [200, 72, 72]).all(-1).any()
            found += 1
    assert found > 30


# ---- dreams (U16)

class CountUp:
    "A world model of one number: the level goes up by the action."
    def __init__(self): self.seen = []
    def sample(self, inner, past, act, generator, steps=None):
        self.seen.append((past.clone(), act.clone()))
        return past[:, -1] + 2 / 255 * act[:, -1, None, None, None]

def counting(obs, act, next_obs, state):
    "Reward 1 for action 2, the end at level 40; the state counts transitions and sums the levels of the next frames."
    b, t = act.shape
    level = ((next_obs[..., 0, 0, 0] + 1) * 127.5).round()
    state = (torch.zeros(1, b, 1), torch.zeros(1, b, 1)) if state is None else state
    sure = lambda k, n: 50. * torch.nn.functional.one_hot(k.long(), n)
    return sure((act == 2) + 1, 3), sure(level >= 40, 2), (state[0] + t, state[1] + level.sum(1)[None, :, None])

def level(x): return ((x[..., 0, 0, 0] + 1) * 127.5).round().long()

def counted(first=0):
    replay = Replay(shape=SHAPE)
    frames = np.broadcast_to(np.arange(first, first + 11, dtype=np.uint8)[:, None, None, None], (11, *SHAPE))
    for _ in range(5): replay.add(frames[:10], np.ones(10, int), np.zeros(10), False, frames[10])
    return replay

def dream(**kwargs):
    options = dict(batch=8, generator=torch.Generator().manual_seed(0), pool=4, actions=4) | kwargs
    return DreamEnv(CountUp(), None, counting, start_from(counted(options.pop("first", 0))), **options)

def test_all_dreams_are_truncated_at_once():
    env, last = dream(), None
    obs, _ = env.reset()
    for k in range(45):
        before, act = level(obs), torch.randint(3, (8,))
        obs, rew, end, cut, info = env.step(act)
        _, slots = env.objective.seen[-1]
        assert torch.equal(slots[:, 3], act) and (k % 15 == 0 or torch.equal(slots[:, 2], last))       # now, and one step ago
        assert torch.equal(rew, (act == 2).float()) and not end.any()
        assert cut.all() == info["dead"].all() == (k % 15 == 14) and (cut.any() == cut.all())
        if cut.all():
            assert torch.equal(level(info["final_observation"]), before + act) and torch.equal(obs, env.past[:, 3])
            assert torch.equal(info["burnin_obs"], env.past[:, :3]) and not env.age.any()
        else: assert len(info["final_observation"]) == len(info["burnin_obs"]) == 0 and torch.equal(level(obs), before + act)
        last = act

def test_only_dead_rows_begin_again():
    env = dream(first=24, horizon=9)
    obs, _ = env.reset()
    drew_all = []
    for _ in range(60):
        state, age, before = [s.clone() for s in env.state], env.age.clone(), level(obs)
        act = torch.randint(4, (8,))
        obs, _, end, cut, info = env.step(act)
        reached, dead = before + act, end | cut
        assert torch.equal(end, reached >= 40) and torch.equal(cut, age == 8) and torch.equal(dead, info["dead"])
        assert torch.equal(level(info["final_observation"]), reached[dead]) and torch.equal(level(obs)[~dead], reached[~dead])
        assert torch.equal(env.age, torch.where(dead, 0, age + 1))
        assert torch.equal(env.state[0][0, ~dead, 0], state[0][0, ~dead, 0] + 1)
        assert (env.state[0][0, dead, 0] == 3).all() and torch.equal(env.state[1][0, dead, 0], level(env.past)[dead, 1:].sum(1).float())   # burned in
        drew_all += end.tolist()
    assert 0 < sum(drew_all) < len(drew_all)

def test_pools_are_used_in_order_and_refilled():
    asked = []
    def start(n, rng):
        asked.append(n)
        return counted().segments(n, 4, rng, "start")
    env = DreamEnv(CountUp(), None, counting, start, batch=8, horizon=1, generator=torch.Generator().manual_seed(0), pool=3, actions=3)
    env.reset()
    first = env.pool
    assert asked == [24] and torch.equal(env.past, first.take(slice(0, 8), "cpu")[0])
    env.step(torch.zeros(8, dtype=torch.long))
    assert torch.equal(env.past, first.take(slice(8, 16), "cpu")[0]) and asked == [24]
    for _ in range(2): env.step(torch.zeros(8, dtype=torch.long))
    assert asked == [24, 24] and env.used == 8

def test_dreams_repeat_and_go_on():
    one, two = dream(), dream()
    assert torch.equal(one.reset(seed=3)[0], two.reset(seed=3)[0])
    acts = torch.randint(3, (40, 8), generator=torch.Generator().manual_seed(0))
    for act in acts[:20]: assert all(torch.equal(a, b) for a, b in zip(one.step(act)[:4], two.step(act)[:4]))
    three = dream(generator=torch.Generator().manual_seed(9))
    three.set_state(decode(encode(one.get_state())))
    for act in acts[20:]: assert all(torch.equal(a, b) for a, b in zip(one.step(act)[:4], three.step(act)[:4]))

def test_a_dream_without_horizon_and_with_padding():
    replay = Replay(shape=SHAPE).add(*life(2, end=False))      # shorter than the context: beginnings are padded
    env = DreamEnv(CountUp(), None, counting, start_from(replay), horizon=None, batch=4, generator=torch.Generator().manual_seed(0), pool=2, actions=3)
    obs, info = env.reset()
    assert (env.past[:, 0] == 0).all() and not (env.past[:, 3] == 0).all()
    for _ in range(40): assert not env.step(torch.zeros(4, dtype=torch.long))[3].any()

@pytest.mark.parametrize("make, message", [
    (lambda: dream(generator=None), "torch.Generator"), (lambda: dream(batch=0), "must be positive"), (lambda: dream(horizon=-1), "must be positive"),
    (lambda: dream().step(torch.zeros(8, dtype=torch.long)), "Call reset"), (lambda: _step(torch.zeros(8)), "whole numbers"),
    (lambda: _step(torch.full((8,), 4)), "from 0 to 3"), (lambda: _step(torch.zeros(7, dtype=torch.long)), "need 8")])
def test_bad_dreams(make, message):
    with pytest.raises(BadDream, match=message): make()

def _step(act):
    env = dream()
    env.reset()
    env.step(act)

def test_a_start_that_gives_too_little():
    env = DreamEnv(CountUp(), None, counting, lambda n, rng: counted().segments(n - 1, 4, rng, "start"), generator=torch.Generator().manual_seed(0), pool=1, actions=3)
    with pytest.raises(BadDream, match="asked for 32 segments"): env.reset()

def test_collect_returns_all_steps():
    replay = collect(PixelCatch(4), uniform(3), 400, np.random.default_rng(0))
    assert len(replay) == 400 and sum(len(e.act) for e in replay) == 400
