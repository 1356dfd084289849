"The first-person world, its recordings, the two-stage model on them, and the distances that judge its dreams."
from dataclasses import replace
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

from rlpapers.core.record import Work
from rlpapers.diamond.edm import EDM, from_bytes
from rlpapers.diamond.feature_distance import BadFeatures, clips, frechet, random_frechet, random_layers, random_paired
from rlpapers.diamond.first_person import (ACTIONS, BACK, CRATE, CRATES, FORWARD, LEFT, MARGIN, PLAN, RIGHT, SHOOT, TURN, BadStep, FirstPersonEnv,
                                           Walkers, WalkConfig, World, cast, rays, record, replay_from, walks)
from rlpapers.diamond.two_stages import UnknownStage, StageRun, enlarge, held_out, shrink, stage_run, train_stage, trained_stage, upsample, upsampler_loss

torch.set_num_threads(1)

def world_at(x, y, angle, crates=((1, 1), (2, 1), (3, 1), (4, 1), (1, 9))):
    return World(Walkers(np.array([[x, y]], float), np.array([float(angle)]), np.array([crates]), np.zeros(1, bool)))

# ---- the world

def test_depth_of_known_walls():
    "Facing the four winds from the middle of a cell: distances to the walls of the map can be counted."
    eye, angles = np.array([[3.5, 3.5]]), np.array([0, np.pi / 2, np.pi, 3 * np.pi / 2])
    row, column = PLAN[3], PLAN[:, 3]
    expected = [np.flatnonzero(row[4:])[0] + .5, np.flatnonzero(column[4:])[0] + .5, 3 - np.flatnonzero(row[:3])[-1] - .5, 3 - np.flatnonzero(column[:3])[-1] - .5]
    hit = cast(np.repeat(PLAN[None], 4, 0), np.repeat(eye, 4, 0), rays(angles, 1))
    assert hit.depth[:, 0] == pytest.approx(expected) and hit.side[:, 0].tolist() == [False, True, False, True]

def test_a_flat_wall_has_one_depth():
    "Depth is along the line of sight, so a wall seen head on is straight, not curved."
    hit = cast(PLAN[None], np.array([[9.5, 3.5]]), rays(np.zeros(1)))
    facing = hit.where[0, :, 0] == 11
    assert facing.sum() > 10 and np.ptp(hit.depth[0, facing]) < 1e-9

def test_left_is_left():
    "What is at the right of the picture comes to the middle by turning right."
    world = world_at(3.5, 2.5, 0, ((5, 4), (1, 1), (1, 2), (1, 9), (9, 9)))
    seen = cast(world.plans(), world.state.position, rays(world.state.angle)).cell[0] == CRATE
    assert seen[16:].any() and not seen[:16].any()
    for _ in range(3): world.step(np.array([RIGHT]), np.random.default_rng(0))
    assert world.sight().cell[0, 0] == CRATE

def test_turns_undo_each_other_and_walking_back():
    world, rng = world_at(7.5, 7.5, .3), np.random.default_rng(0)
    before, image = world.state, world.images()
    for a in (LEFT, LEFT, RIGHT, RIGHT, FORWARD, BACK): world.step(np.array([a]), rng)
    assert world.state.angle == pytest.approx(before.angle) and world.state.position == pytest.approx(before.position)
    assert np.abs(world.images().astype(int) - image).max() <= 1

def test_nobody_walks_through_walls():
    rng = np.random.default_rng(3)
    world = World.new(300, rng)
    for _ in range(200):
        world.step(rng.choice([FORWARD, FORWARD, BACK, LEFT, RIGHT, SHOOT], 300), rng)
        x, y = np.floor(world.state.position).astype(int).T
        assert not world.plans()[np.arange(300), y, x].any()
        cells = {tuple(c) for c in world.state.crates[0]}
        assert len(cells) == CRATES and all(PLAN[y, x] == 0 for x, y in cells)
    ahead = cast(world.plans(), world.state.position, rays(world.state.angle, 1))
    assert ahead.depth.min() > 0 and MARGIN > 0

@pytest.mark.parametrize("crate, hits", [((5, 3), True), ((9, 3), True), ((10, 3), False)])
def test_shots_reach_six_cells(crate, hits):
    world = world_at(3.5, 3.5, 0, (crate, (1, 1), (1, 2), (1, 9), (9, 9)))
    assert world.step(np.array([SHOOT]), np.random.default_rng(0))[0] == hits
    assert (world.state.crates[0, 0].tolist() != list(crate)) == hits

def test_actions_are_checked():
    world = world_at(3.5, 3.5, 0)
    for bad in (np.array([6]), np.array([-1]), np.array([0, 1]), np.array([.5])):
        with pytest.raises(BadStep, match="one integer from 0 to 5"): world.step(bad, np.random.default_rng(0))
    with pytest.raises(BadStep, match="call reset"): FirstPersonEnv().step(0)

def test_environment_is_seeded_and_registered():
    a, b = (gym.make("rlpapers/FirstPerson-v0") for _ in range(2))
    assert np.array_equal(a.reset(seed=5)[0], b.reset(seed=5)[0]) and not np.array_equal(a.reset(seed=5)[0], b.reset(seed=6)[0])
    a.reset(seed=1), b.reset(seed=1)
    for act in np.random.default_rng(0).integers(len(ACTIONS), size=100):
        (x, r, *_), (y, q, *_) = a.step(act), b.step(act)
        assert np.array_equal(x, y) and r == q
    vector = gym.make_vec("rlpapers/FirstPerson-v0", num_envs=3, vectorization_mode="sync")
    assert vector.reset(seed=0)[0].shape == (3, 3, 32, 32)

def test_recordings_can_be_lived_again():
    seen = record(6, 20, np.random.default_rng(0))
    for start in (0, 7):
        calm = np.flatnonzero(seen.rew[:, start:].sum(1) == 0)
        state = Walkers(*(x[calm] for x in seen.states[start]))
        assert len(calm) and np.array_equal(replay_from(state, seen.act[calm, start:], np.random.default_rng(1)), seen.frames[calm, start + 1:])
    other = seen.act[calm, 7:].copy()
    other[:, 0] = np.where(other[:, 0] == LEFT, RIGHT, LEFT)
    assert not np.array_equal(replay_from(state, other, np.random.default_rng(1)), seen.frames[calm, 8:])
    assert np.array_equal(seen.states[7].position[calm], state.position), "acting out leaves the recording alone"

def test_parts_of_a_recording_differ():
    c = WalkConfig(4, 10)
    assert not np.array_equal(walks(c, "train").frames, walks(c, "test").frames)
    assert walks(c) is walks(WalkConfig(4, 10)) and walks(replace(c, seed=1)).act.tolist() != walks(c).act.tolist()
    assert TURN * 24 == pytest.approx(2 * np.pi)

# ---- two stages

def test_shrinking_a_constant_image():
    x = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert (shrink(x) == 77).all() and shrink(x).shape == (2, 3, 4, 4)
    assert torch.allclose(enlarge(from_bytes(shrink(x))), from_bytes(x), atol=1e-6)

def test_upsampler_uses_every_image():
    "Its loss sees the small frame of now, and the large frame of before."
    calls = []
    def watch(noisy, c_noise, past, act, extra): return calls.append((past, act, extra)) or torch.zeros_like(noisy)
    frames = torch.from_numpy(record(3, 4, np.random.default_rng(0)).frames)
    upsampler_loss(EDM(), watch, frames[:, :3], torch.Generator().manual_seed(0))
    (past, act, extra), (past2, _, extra2) = calls
    assert act is None and torch.equal(past[:, 0], from_bytes(frames[:, 0]) / .5)
    for e, k in ((extra, 1), (extra2, 2)): assert torch.allclose(e, enlarge(from_bytes(shrink(frames[:, k]))) / .5)
    assert not torch.allclose(past2[:, 0] * .5, from_bytes(frames[:, 1])), "its own output is context in the second step"

def test_upsampling_starts_from_the_large_frame():
    seen = []
    class Watch(EDM):
        def sample(self, inner, past, act, generator, steps=None, trace=None): return seen.append(past) or past[:, -1]
    first = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    out = upsample(Watch(), None, torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8), first, torch.Generator())
    assert out.shape == (2, 3, 3, 32, 32) and (out == first[:, None]).all() and len(seen) == 3

class Stopped(Exception): pass

@pytest.mark.parametrize("stage, network", [("dynamics", "stack"), ("dynamics", "attention"), ("dynamics", "regression"), ("upsampler", "stack")])
def test_stages_resume_to_the_bit(stage, network, tmp_path):
    c = stage_run("smoke", stage, network, save_every=5)
    whole = train_stage(c, Work())
    class Halting(Work):
        def save(self, step, state):
            super().save(step, state)
            if step == 5: raise Stopped
    with pytest.raises(Stopped): train_stage(c, Halting(tmp_path))
    resumed = train_stage(c, Work(tmp_path))
    pd.testing.assert_frame_equal(whole.metrics, resumed.metrics)
    assert whole.tensors.keys() == resumed.tensors.keys() and all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)

def test_held_out_walkers_are_not_training_walkers():
    c = stage_run("smoke")
    frames, act = held_out(c)
    assert frames.shape == (c.trajectories, 4 + c.horizon, 3, 32, 32) and act.shape == (c.trajectories, 3 + c.horizon)
    train = {x.tobytes() for x in walks(c.walks).frames[:, 0]}
    assert not train & {x.tobytes() for x in frames[:, 0].numpy()}

def test_weights_come_back(tmp_path):
    c = stage_run("smoke")
    _, inner = trained_stage(c)
    names = {k.removeprefix("weights/"): v for k, v in train_stage(c, Work()).tensors.items()}
    with patch("rlpapers.diamond.two_stages.find_run", return_value=None): _, again = trained_stage(c)
    assert all(torch.equal(again.state_dict()[k], v.float()) for k, v in names.items()) and inner.config == c.unet

def test_unknown_stages():
    with pytest.raises(UnknownStage, match="Did you mean 'dynamics'"): StageRun(stage="dynamic")
    with pytest.raises(UnknownStage, match="Did you mean 'attention'"): stage_run("smoke", network="atention")

# ---- distances

def test_frechet_of_known_gaussians():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 2, generator=g) * torch.tensor([1., 2.])
    y = torch.randn(50_000, 2, generator=g) * torch.tensor([3., .5]) + torch.tensor([4., 0.])
    assert frechet(x, y) == pytest.approx(16 + (3 - 1) ** 2 + (2 - .5) ** 2, rel=.02)
    assert frechet(x, x) == pytest.approx(0, abs=1e-8)

def test_feature_distances_grow_with_damage():
    real = torch.from_numpy(record(24, 8, np.random.default_rng(0)).frames).flatten(0, 1)
    g = torch.Generator().manual_seed(0)
    noisy = [(real.float() + s * torch.randn(real.shape, generator=g)).clamp(0, 255).to(torch.uint8) for s in (0, 6, 20, 60)]
    for distance in (random_frechet, random_paired):
        found = [distance(x, real) for x in noisy]
        assert found[0] == pytest.approx(0, abs=1e-6) and all(a < b for a, b in zip(found, found[1:]))

def test_features_are_the_same_for_everybody():
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    a = random_layers(x)
    torch.manual_seed(2)
    assert all(torch.equal(u, v) for u, v in zip(a, random_layers(x)))
    assert not torch.equal(a[0], random_layers(x, seed=1)[0])
    assert clips(x[None].expand(3, 2, 3, 32, 32), 2).shape == (3, 6, 32, 32)
    with pytest.raises(BadFeatures, match="bytes"): random_layers(x.float())
