"The Adroit hand: episodes as long as said, rewards against a computation by hand, lengths of demonstrations."
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rlpapers.offline.adroit import TASKS, MinSteps, UnknownReward, UnknownTask, demonstration_lengths, env_id_of, make_adroit
from rlpapers.offline.demonstrator import load_demonstrations, replay

LIMITS = dict(pen=100, door=300, hammer=624, relocate=527)
needs_hand = pytest.mark.skipif(not __import__("importlib.util").util.find_spec("gymnasium_robotics"), reason="needs the extra adroit")


def stub(ends_at=10**9, limit=200):
    "An environment that says `terminated` at a given step, under a time limit."
    import gymnasium as gym

    class Stub(gym.Env):
        observation_space = action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, **kwargs):
            self.t = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.zeros(1, np.float32), 0., self.t == ends_at, False, {}
    return gym.wrappers.TimeLimit(Stub(), limit)


def play(env, seed=0):
    "Steps until the end, and both flags of the last."
    env.reset(seed=seed)
    for n in range(1, 2000):
        _, _, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        if terminated or truncated: return n, terminated, truncated


@pytest.mark.parametrize("limit, min_steps, steps", [(200, 300, 300), (100, 100, 100), (200, 624, 624), (200, 50, 200)])
def test_min_steps(limit, min_steps, steps):
    env = MinSteps(stub(limit=limit), min_steps)
    assert play(env) == (steps, False, True)
    assert play(env) == (steps, False, True), "the counter starts again"


def test_early_termination_is_ignored():
    assert play(stub(5)) == (5, True, False)
    assert play(MinSteps(stub(5), 300)) == (300, False, True)
    assert play(MinSteps(stub(300), 300)) == (300, True, True), "from min_steps on the environment is listened to"


@needs_hand
@pytest.mark.parametrize("task", LIMITS)
def test_horizons(task):
    import gymnasium as gym
    env = gym.make(env_id_of(task))
    assert env.spec.max_episode_steps == LIMITS[task]
    assert play(env) == (LIMITS[task], False, True)


@needs_hand
def test_d4rl_protocol():
    import gymnasium as gym
    assert play(gym.make(env_id_of("hammer"), protocol="d4rl")) == (200, False, True)
    pen = gym.make(env_id_of("pen"), protocol="d4rl")
    rng = np.random.default_rng(0)
    pen.reset(seed=0)
    for n in range(1, 101):
        terminated, truncated = pen.step(rng.uniform(-1, 1, 24).astype(np.float32))[2:4]
        if terminated or truncated: break
    hand = pen.unwrapped
    assert terminated and n < 100 and hand.data.xpos[hand.obj_body_id][2] < .075


def by_hand(task, env):
    "D4RL's dense reward, term by term, from the simulation."
    h = env.unwrapped
    site = lambda name: h.data.site_xpos[getattr(h, name)]
    apart = lambda a, b: float(np.sqrt(((a - b) ** 2).sum()))
    if task == "door":
        angle, bonus = float(h.data.qpos[h.door_hinge_addrs]), 0
        for level, more in ((.2, 2), (1., 8), (1.35, 10)): bonus += more if angle > level else 0
        reach = -.1 * apart(site("grasp_site_id"), site("handle_site_id"))
        return reach - .1 * (angle - 1.57) ** 2 - 1e-5 * (h.data.qvel ** 2).sum() + bonus
    palm, thing = site("S_grasp_site_id"), h.data.xpos[h.obj_body_id]
    reach = -.1 * apart(palm, thing)
    if task == "hammer":
        head, depth = site("tool_site_id"), apart(site("target_obj_site_id"), site("goal_site_id"))
        bonus = (2 if thing[2] > .04 and head[2] > .04 else 0) + (25 if depth < .02 else 0) + (75 if depth < .01 else 0)
        return reach - apart(head, site("target_obj_site_id")) - 10 * depth - .01 * np.sqrt((h.data.qvel ** 2).sum()) + bonus
    target, ball = site("target_obj_site_id"), thing
    carry = 1 - .5 * apart(palm, target) - .5 * apart(ball, target) if ball[2] > .04 else 0
    return reach + carry + (10 if apart(ball, target) < .1 else 0) + (20 if apart(ball, target) < .05 else 0)


@needs_hand
@pytest.mark.parametrize("task", ["door", "hammer", "relocate"])
def test_reward_is_d4rls(task):
    import gymnasium as gym
    env, rng = gym.make(env_id_of(task)), np.random.default_rng(0)
    env.reset(seed=3)
    for _ in range(60):
        reward = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[1]
        assert reward == pytest.approx(by_hand(task, env), abs=1e-8)


def put(task, h):
    "Move the object of a task to where its bonuses are paid."
    import mujoco
    joint = lambda name: h.model.jnt_qposadr[mujoco.mj_name2id(h.model, mujoco.mjtObj.mjOBJ_JOINT, name)]
    if task == "door": h.data.qpos[h.door_hinge_addrs] = 1.4
    if task == "relocate":
        first = joint("OBJTx")
        h.data.qpos[first:first + 3] += h.data.site_xpos[h.target_obj_site_id] - h.data.xpos[h.obj_body_id]
    if task == "hammer": h.data.qpos[joint("nail_dir")] = .09
    h.data.qvel[:] = 0
    mujoco.mj_forward(h.model, h.data)


@needs_hand
@pytest.mark.parametrize("task", ["door", "hammer", "relocate"])
def test_bonuses_are_paid_as_by_hand(task):
    import gymnasium as gym
    env = gym.make(env_id_of(task))
    env.reset(seed=0)
    put(task, env.unwrapped)
    reward = env.step(np.zeros(env.action_space.shape, np.float32))[1]
    assert reward == pytest.approx(by_hand(task, env), abs=1e-8) and reward > 15


@needs_hand
def test_pen_is_untouched():
    import gymnasium as gym
    ours, theirs, rng = gym.make(env_id_of("pen")), gym.make(TASKS["pen"].hand), np.random.default_rng(0)
    a, b = ours.reset(seed=1)[0], theirs.reset(seed=1)[0]
    for _ in range(60):
        np.testing.assert_array_equal(a, b)
        action = rng.uniform(-1, 1, 24).astype(np.float32)
        (a, r1, *_), (b, r2, *_) = ours.step(action), theirs.step(action)
        assert r1 == r2


@needs_hand
def test_a_corrected_release_is_left_alone(monkeypatch):
    "Probe and wrapper follow what the installed reward is, not a version."
    import gymnasium as gym
    import rlpapers.offline.adroit as adroit
    fixed = lambda task, **kwargs: adroit.ReachSign(bare(task, **kwargs))
    bare = adroit.bare_hand
    assert adroit.sign_is_flipped.__wrapped__("door")
    monkeypatch.setattr(adroit, "bare_hand", fixed)
    assert not adroit.sign_is_flipped.__wrapped__("door")
    class Doubled(gym.Wrapper):
        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            return obs, 2 * reward, *rest
    monkeypatch.setattr(adroit, "bare_hand", lambda task: Doubled(bare(task)))
    with pytest.raises(UnknownReward, match="AdroitHandDoor-v1"): adroit.sign_is_flipped.__wrapped__("door")


@needs_hand
@pytest.mark.parametrize("task", LIMITS)
@pytest.mark.filterwarnings("ignore")
def test_gymnasium_checker(task):
    import gymnasium as gym
    from gymnasium.utils.env_checker import check_env
    env = gym.make(env_id_of(task))
    check_env(env, skip_render_check=True)
    assert gym.make(env.spec).spec == env.spec, "rebuilt from its specification"


@needs_hand
def test_import_is_quiet():
    code = "import gymnasium as gym, rlpapers.offline.adroit; gym.make('rlpapers/AdroitPen-v0')"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "reward functions were updated" not in run.stdout + run.stderr


def test_without_the_extra():
    code = """if True:
        import sys
        sys.modules["gymnasium_robotics"] = None                  # as if not installed
        import gymnasium as gym
        from rlpapers.offline.adroit import MissingAdroit
        try: gym.make("rlpapers/AdroitDoor-v0")
        except MissingAdroit as e: print(e)
        """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rlpapers[adroit]" in run.stdout


def test_wrong_names():
    with pytest.raises(UnknownTask, match="Did you mean 'door'"): env_id_of("doors")
    with pytest.raises(UnknownTask, match="protocol"): make_adroit("pen", protocol="papers")


def test_demonstrations_exceed_limits():
    t = demonstration_lengths()
    assert (t.longest_human_demo > t.d4rl_limit).all() and not t["demonstrations fit"].any()
    assert t.paper_horizon.to_dict() == LIMITS == {k: x.horizon for k, x in TASKS.items()}


def on_target(obs):
    "Success of the pen task, read off the observations."
    near = np.linalg.norm(obs[:, 39:42], axis=1) < .075
    return near & ((obs[:, 33:36] * obs[:, 36:39]).sum(1) > .95)


@needs_hand
def test_demonstrations_replay_to_success():
    demos = load_demonstrations()
    assert len(demos) >= 15 and all(a.dtype == np.int8 and a.shape[1] == 24 for a in demos.values())
    for seed, actions in list(demos.items())[:5]:
        episode = replay(seed, actions)
        assert on_target(episode["observations"]).sum() >= 10
        assert episode["truncations"].tolist() == [False] * (len(actions) - 1) + [True] and not episode["terminations"].any()
        again = replay(seed, actions)
        assert all((again[k] == episode[k]).all() for k in episode), "the same bits"


@needs_hand
def test_planner_improves_its_plan():
    import gymnasium as gym
    import mujoco
    from rlpapers.offline.demonstrator import Planner, PlannerConfig
    env = gym.make(env_id_of("pen"))
    env.reset(seed=1)
    planner = Planner(env, PlannerConfig(candidates=12, horizon=8), np.random.default_rng(0))
    state = np.empty(mujoco.mj_stateSize(planner.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(planner.model, env.unwrapped.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    before = planner.rehearse(state, np.zeros((8, 24)))
    first = planner()
    assert first.shape == (2, 24) and np.abs(first).max() <= 1
    assert planner.rehearse(state, np.concatenate([first, planner.plan[:6]])) > before
    same = np.empty_like(state)
    mujoco.mj_getState(planner.model, env.unwrapped.data, same, mujoco.mjtState.mjSTATE_INTEGRATION)
    assert (state == same).all(), "planning does not touch the real hand"


WITHOUT_AVX512 = dict(human="9648b26dabfb033f", cloned="3ac5c211eccb1e5c")   # such a CPU rounds differently, and a hand that turns a pen is chaotic


@needs_hand
def test_pen_data_sets():
    from rlpapers.core.datasets import content_checksum, dataset_spec
    info = pathlib.Path("/proc/cpuinfo")
    older = info.exists() and "avx512f" not in info.read_text()
    for kind in ("human", "cloned"):
        spec = dataset_spec(f"offline/pen/{kind}-v0")
        episodes = spec.build(spec)
        assert sum(len(e.rewards) for e in episodes) == spec.rows and content_checksum(episodes) == (WITHOUT_AVX512[kind] if older else spec.checksum)
    assert spec.env_id == env_id_of("pen") and (spec.ref_min_score, spec.ref_max_score) == (96.262799, 3076.8331017826877)


def test_missing_demonstrations(monkeypatch, tmp_path):
    import rlpapers.offline.demonstrator as demonstrator
    from rlpapers.core.paths import Paths
    monkeypatch.setattr(demonstrator, "project_paths", lambda: Paths(tmp_path))
    with pytest.raises(demonstrator.MissingPolicy, match="pen-demonstrations.safetensors is missing"): load_demonstrations()
