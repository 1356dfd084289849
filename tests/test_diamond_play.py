"Playing: sessions, GIF and window, the command, torch against onnxruntime, and the page in headless Chromium."
import contextlib, json, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from rlpapers.core.cli import app
from rlpapers.core.rng import counter_generator, torch_generator
from rlpapers.diamond import play
from rlpapers.diamond.agent import ActorCritic, AgentConfig
from rlpapers.diamond.browser import CannotExport, export_judge, export_onnx, frame_noise, level_differences, onnx_denoiser, page_facts, replay_dream, torch_denoiser, write_files
from rlpapers.diamond.ddpm import DDPM
from rlpapers.diamond.edm import EDM, NoiseConfig, SamplerConfig, segment_loss
from rlpapers.diamond.gameplay import DataConfig, gather
from rlpapers.diamond.play import BadSession, NothingToPlay, NoWindow, Session, World, action_of, play_window, press, recorded_world, released_world, write_gif
from rlpapers.diamond.reward import RewardConfig, RewardModel
from rlpapers.diamond.unet import InnerModel, UNetConfig
from browser import served

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"docs"))
CATCH, LAPTOP = DataConfig("PixelCatch", 16), UNetConfig(channels=(32, 32), depths=(1, 1), attention=(0, 0), cond=64)

def random_world(unet: UNetConfig = LAPTOP, steps: int = 1, judged: bool = True, seed: int = 0) -> World:
    "Untrained networks without the zeros of their initialisation, so that outputs depend on inputs."
    torch.manual_seed(seed)
    inner = InnerModel(unet, 3)
    for module in inner.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any(): module.reset_parameters()
    reward = RewardModel(RewardConfig(channels=(8, 8), depths=(1, 1), cond=8, lstm=8, image=16), 3) if judged else None
    agent = ActorCritic(AgentConfig(channels=(4, 4), lstm=8, image=16), 3) if judged else None
    return World(CATCH, EDM(NoiseConfig(), SamplerConfig(steps=steps)), inner, reward, agent, about="random weights")

@pytest.fixture(scope="module")
def world(): return random_world()

# ---- keys, sessions

def test_keys_ask_for_the_best_action_there_is():
    names = ("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "UPRIGHT", "RIGHTFIRE", "UPRIGHTFIRE")
    for held, wanted in (("", "NOOP"), ("UP RIGHT FIRE", "UPRIGHTFIRE"), ("LEFT FIRE", "FIRE"), ("UP LEFT", "LEFT"), ("DOWN", "NOOP"), ("UP FIRE", "FIRE"), ("RIGHT LEFT", "RIGHT")):
        assert names[action_of(set(held.split()), names)] == wanted, held

def frames_of(session, actions): return np.stack([session.step(a) * 0 + session.shown["dream"] for a in actions])

def test_a_session_is_deterministic_and_depends_on_seed_and_actions(world):
    left = frames_of(Session(world, 1), [0] * 6)
    assert np.array_equal(left, frames_of(Session(world, 1, view="dream"), [0] * 6))
    assert not np.array_equal(left, frames_of(Session(world, 2), [0] * 6)) and not np.array_equal(left, frames_of(Session(world, 1), [2] * 6))
    assert left.shape == (6, 3, 16, 16) and left.dtype == np.uint8

def test_dream_and_game_begin_alike_and_hear_the_same_actions(world):
    session = Session(random_world(judged=False), 3)
    assert np.array_equal(session.shown["dream"], session.shown["real"])
    paddle = lambda frame: int(np.flatnonzero(frame[:, -1].min(0) == 255)[0])
    places = [session.step(a) * 0 + paddle(session.shown["real"]) for a in (0, 0, 2)]
    assert places == [4, 2, 4]

def test_without_a_reward_model_the_game_decides_when_to_begin_again():
    session = Session(random_world(judged=False), 0)
    for _ in range(30): session.step(0)
    assert session.games > 2 and session.score["dream"] == 0 and "dream" not in session.status()

def test_agent_and_human_can_swap_at_any_time(world):
    session = Session(world, 0, pilot="agent")
    taken = {session.step() for _ in range(20)}
    assert taken > {0} or len(taken) > 1
    press(session, "tab")
    assert session.pilot == "human" and [session.step(2), session.step()] == [2, 1]
    for view in ("dream", "real", "both"):
        press(session, "v")
        assert session.view == view and list(session.visible()) == (["dream", "real"] if view == "both" else [view])
    before = session.games
    assert press(session, "r") and session.games == before + 1 and not press(session, "escape")

def test_the_real_view_keeps_its_game_when_the_dream_ends():
    class Doom(nn.Module):
        def forward(self, obs, act, next_obs, state=None): return *(60. * nn.functional.one_hot(act * 0 + k, n) for k, n in ((2, 3), (1, 2))), ()
    session = Session(replace(random_world(), reward=Doom(), agent=None), 0, view="real")
    before = session.games
    session.step()
    assert session.games == before and session.score["dream"] == 1
    assert np.array_equal(session.seen[0], torch.from_numpy(session.frames[-1]) / 255 * 2 - 1) or torch.allclose(session.seen[0], torch.from_numpy(session.frames[-1]) / 127.5 - 1, atol=1e-6)

@pytest.mark.parametrize("wrong, word", [(dict(pilot="robot"), "agent, human"), (dict(view="sideways"), "both"), (dict(steps=0), "steps=0")])
def test_wrong_sessions_are_named(world, wrong, word):
    with pytest.raises(BadSession, match=word): Session(world, **wrong)
    with pytest.raises(BadSession, match="has 3"): Session(world).step(7)
    with pytest.raises(BadSession, match="ends in .gif"): write_gif(Session(world), "dream.mp4")

# ---- GIF, window, command

def test_gif(world, tmp_path):
    path = write_gif(Session(world, pilot="agent"), tmp_path/"new"/"dream.gif", frames=6, fps=10)
    with Image.open(path) as gif: assert (gif.n_frames, gif.size, gif.info["duration"]) == (6, (520, 276), 100)

def test_window(world, monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    session, taken = Session(random_world(judged=False), 0), []
    monkeypatch.setattr(session, "step", lambda action: taken.append(action) or Session.step(session, action))
    pygame.display.init()
    def post(kind, key): pygame.event.post(pygame.event.Event(kind, key=key))
    post(pygame.KEYDOWN, pygame.K_LEFT)
    assert play_window(session, fps=1000, most=3) == 3 and taken == [0, 0, 0]
    pygame.display.init()
    for key in (pygame.K_RIGHT, pygame.K_v, pygame.K_2): post(pygame.KEYDOWN, key)
    post(pygame.KEYUP, pygame.K_RIGHT)
    assert play_window(session, fps=1000, most=2) == 2 and taken[3:] == [1, 1] and session.view == "dream" and session.dream.steps == 2
    pygame.display.init()
    post(pygame.KEYDOWN, pygame.K_p)
    post(pygame.KEYDOWN, pygame.K_ESCAPE)
    assert play_window(session, fps=1000, most=9) == 1 and len(taken) == 5                          # paused, left

def call(*args): return CliRunner().invoke(app, ["play", *args])

def test_command_writes_a_gif(world, monkeypatch, tmp_path):
    monkeypatch.setattr(play, "world_of", lambda game, weights="": world)
    result = call("diamond", "--gif", str(tmp_path/"a.gif"), "--frames", "3", "--steps", "2", "--seed", "4")
    assert result.exit_code == 0 and "random weights" in result.output and (tmp_path/"a.gif").exists()

def test_command_without_a_display_writes_a_gif_too(world, monkeypatch, tmp_path):
    pytest.importorskip("pygame")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setattr(play, "world_of", lambda game, weights="": world)
    monkeypatch.chdir(tmp_path)
    result = call("diamond", "--frames", "2")
    assert result.exit_code == 0 and "No window can be opened here" in result.output and (tmp_path/"dream.gif").exists()
    with pytest.raises(NoWindow): play_window(Session(world))

def test_command_knows_what_can_be_played(tmp_path):
    assert call("diamond", "--help").exit_code == 0 and "--pilot" in call("diamond", "--help").output and "rlpapers play diamond" in call("--help").output
    assert call("dimaond").exit_code == 2 and "diamond" in call("dimaond").output
    assert call("offline").exit_code == 2 and "nothing to play in 'offline'" in call("offline").output
    assert call("diamond", "--veiw", "dream").exit_code == 2
    for wrong in (["--frames", "0"], ["--fps", "-5"], ["--steps", "1000"], ["--gif", str(tmp_path)], ["--gif", "dream.mp4"], ["--weights", "nofile.pt"], ["--weights", __file__]):
        assert call("diamond", *wrong).exit_code == 2, wrong
    assert "Did you mean 'PixelCatch'" in str(call("diamond", "--game", "Pixelcatch").exception)
    with pytest.raises(NothingToPlay, match="rlpapers reproduce diamond"): recorded_world("PixelCatch", (tmp_path,))

# ---- where worlds come from

def test_a_recorded_run_can_be_played(tmp_path):
    import pandas as pd
    from rlpapers.core.record import RunOutput, write_run
    from rlpapers.diamond.grids import catch_loop
    from rlpapers.diamond.training import Loop, train_loop, trained_weights
    c = replace(catch_loop("smoke"), weights=True, first=(500, 10, 3))
    loop = Loop(c)
    def tested(seed, *means): return pd.DataFrame({"seed": seed, "kind": ["test"] * len(means) + ["agent"], "mean": [*means, np.nan]})
    write_run(tmp_path, train_loop, c, RunOutput(tested(0, 0., 2.), trained_weights(loop)), 5.)
    for seed, other in enumerate((c, replace(c, weights=False), replace(c, first=(20, 10, 3))), 1):      # worse in the end; no weights; of smoke scale
        write_run(tmp_path, train_loop, replace(other, seed=seed), RunOutput(tested(seed, 9., 1. if other is c else 9.), trained_weights(loop)), 9.)
    world = recorded_world("PixelCatch", (tmp_path,))
    assert "seed 0" in world.about and world.data.game == "PixelCatch" and world.reward and world.agent
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(loop.world.module.state_dict().values(), world.inner.state_dict().values()))
    session = Session(world, pilot="agent")
    for _ in range(3): session.step()
    with pytest.raises(NothingToPlay): recorded_world("Breakout", (tmp_path,))

def test_a_released_agent_can_be_played(tmp_path):
    pytest.importorskip("ale_py")
    from rlpapers.diamond.pretrained import new_agent, save_released
    world = released_world("Breakout", str(save_released(new_agent(4), tmp_path/"Breakout.pt")))
    assert world.names == ("NOOP", "FIRE", "RIGHT", "LEFT") and world.objective.noise.quantise == "truncate"
    session = Session(world, pilot="agent", steps=1)
    session.step()
    assert session.shown["dream"].shape == session.shown["real"].shape == (3, 64, 64)

# ---- torch and onnxruntime

@pytest.fixture(scope="module")
def trained() -> World:
    "A world model after a moment of training. (A dream of random weights is chaotic: it blows a difference of one level up.)"
    data = DataConfig("PixelCatch", 16, steps=600, shares=(.1, 1.))
    world = random_world(replace(LAPTOP, channels=(16, 32)), judged=False)
    net = world.inner.requires_grad_(True)
    optimiser, generator = torch.optim.AdamW(net.parameters(), 3e-3), torch_generator(0, "test")
    for update in range(120):
        segment = gather(data).segments(16, 5, counter_generator(0, update), "denoiser", None).to()
        loss = segment_loss(world.objective, net, segment.frames, segment.act, segment.mask, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.requires_grad_(False)
    return world

def differences(world: World, steps: int | None = None, seed: int = 0) -> np.ndarray:
    "Levels between torch and onnxruntime in each of 100 frames dreamed on their own output."
    facts, actions = page_facts(world, starts=1), np.random.default_rng(seed).integers(3, size=100).tolist()
    ours, theirs = (replay_dream(d, world, facts, actions, seed, steps=steps) for d in (torch_denoiser(world), onnx_denoiser(export_onnx(world))))
    assert ours.std() > 2 and len(ours) == 100
    worst = level_differences(ours, theirs)
    print(f"largest difference {worst.max()} levels, {(worst > 0).sum()} of 100 frames differ anywhere")
    return worst

@pytest.mark.parametrize("steps", [1, 3])
def test_a_hundred_frames_are_the_same(trained, steps):
    pytest.importorskip("onnxruntime")
    assert differences(trained, steps).max() <= 1

def test_a_hundred_frames_of_the_recorded_model_are_the_same():
    pytest.importorskip("onnxruntime")
    try: world = recorded_world("PixelCatch")
    except NothingToPlay as e: pytest.skip(str(e))
    assert differences(world).max() <= 1

@pytest.mark.parametrize("quantise", ["round", "truncate"])
def test_one_frame_of_any_network_is_the_same(world, quantise):
    "Forty contexts of random pixels, at noise levels from the sampler's range."
    pytest.importorskip("onnxruntime")
    world = replace(world, objective=replace(world.objective, noise=NoiseConfig(quantise=quantise)))
    ours, theirs, generator = torch_denoiser(world), onnx_denoiser(export_onnx(world)), torch_generator(0, "contexts")
    for k in range(40):
        past, sigma = torch.rand(1, 4, 3, 16, 16, generator=generator) * 2 - 1, torch.tensor([5. * 10 ** (-k / 10)])
        x, act = past[:, -1] + sigma * torch.randn(1, 3, 16, 16, generator=generator), torch.randint(3, (1, 4), generator=generator)
        assert (ours(x, sigma, past, act) - theirs(x, sigma, past, act)).abs().max() < 1.001 * 2 / 255

def test_the_judge_says_the_same_and_remembers_the_same(world):
    onnxruntime = pytest.importorskip("onnxruntime")
    session, generator = onnxruntime.InferenceSession(export_judge(world), providers=["CPUExecutionProvider"]), torch_generator(0, "judge")
    frames, act, state = torch.rand(1, 21, 3, 16, 16, generator=generator) * 2 - 1, torch.randint(3, (1, 20), generator=generator), None
    h = c = np.zeros((1, 1, 8), np.float32)
    for k in range(20):
        reward, end, state = world.reward(frames[:, k:k + 1], act[:, k:k + 1], frames[:, k + 1:k + 2], state)
        theirs = session.run(None, dict(obs=frames[:, k:k + 1].numpy(), act=act[:, k:k + 1].numpy(), next=frames[:, k + 1:k + 2].numpy(), h=h, c=c))
        h, c = theirs[2:]
        for a, b in zip((reward, end, *state), theirs): np.testing.assert_allclose(a, b, atol=1e-5)

def test_other_architectures_export_too():
    pytest.importorskip("onnxruntime")
    unet = UNetConfig(channels=(8, 8, 16), depths=(2, 1, 1), attention=(0, 1, 0), cond=16, context=2, patch=2)
    world = random_world(unet, judged=False)
    facts = page_facts(world, starts=1)
    ours, theirs = (replay_dream(d, world, facts, [0, 1, 2] * 4) for d in (torch_denoiser(world), onnx_denoiser(export_onnx(world))))
    assert facts["context"] == 2 and level_differences(ours, theirs).max() <= 1

def test_what_the_page_cannot_play_is_refused(world, tmp_path):
    for objective, word in ((DDPM(), "DDPM"), (EDM(sampler=SamplerConfig(order=2)), "order=2"), (EDM(sampler=SamplerConfig(churn=2.)), "churn=2")):
        with pytest.raises(CannotExport, match=word): write_files(replace(world, objective=objective), tmp_path)
    assert not list(tmp_path.iterdir())

# ---- the page

def test_the_page_says_why_there_is_no_player(monkeypatch, tmp_path):
    import dream
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(play, "recorded_world", lambda game: random_world())
    reason = dream.recorded_player(tmp_path/"out", tmp_path/"cache")
    assert "npm is not installed" in reason and reason in dream.page(reason) and "<canvas" not in dream.page(reason) and "<canvas" in dream.page("")
    (tmp_path/"fake.tgz").write_bytes(b"something else")
    with pytest.raises(dream.Missing, match="not the package"): dream.unpack(tmp_path/"fake.tgz", tmp_path)

def test_two_builds_at_once_fetch_the_runtime_once(monkeypatch, tmp_path):
    import dream
    fetched = []
    def slow(folder):
        fetched.append(folder)
        time.sleep(.3)
        folder.mkdir(parents=True)
        for name in dream.FILES: (folder/name).touch()
    monkeypatch.setattr(dream, "fetch", slow)
    with ThreadPoolExecutor(2) as pool: assert len(set(pool.map(dream.runtime, [tmp_path] * 2))) == 1
    assert len(fetched) == 1

def player(folder: Path, world: World) -> Path:
    "A folder with a page that has the player on it; skips where npm cannot bring the runtime."
    import dream
    try: dream.write_player(folder/"files", world, ROOT/"runs"/"npm")
    except dream.Missing as e: pytest.skip(str(e))
    shutil.copy(ROOT/"docs"/"static"/"dream.js", folder)
    html = dream.PLAYER.format(assets="files/", script="dream.js")
    (folder/"index.html").write_text(f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><main>{html}</main>')
    return folder

STATUS = "document.querySelector('[data-part=status]').textContent"
FRAME = "window.dream.count"

@contextlib.contextmanager
def playing(page, folder: Path, dreamed: int = 3):  # noqa: F811
    "The player, started; nothing may go wrong in the browser."
    with served(folder) as address:
        page.faults.clear()
        page.goto(address + "index.html")
        page.click("[data-part=run]")
        page.wait_for_function(f"window.dream && {FRAME} > {dreamed}", timeout=120_000)
        yield
        assert not page.faults
        page.goto("about:blank")

def test_the_browser_dreams_what_torch_dreams(page, trained, tmp_path):  # noqa: F811
    "The same noise, the same frames, to one level of 255."
    with playing(page, player(tmp_path, trained)):
        page.click("[data-part=run]")                                                            # pause
        page.wait_for_function("document.querySelector('[data-part=run]').textContent === 'Go on'", timeout=120_000)
        facts, actions = json.loads((tmp_path/"files"/"dream.json").read_text()), np.random.default_rng(1).integers(3, size=100).tolist()
        for steps, seed, acts in ((1, 0, actions), (3, 7, actions[:30])):
            frames = page.evaluate("([a, o]) => window.dream.replay(a, o)", [acts, dict(seed=seed, start=2, steps=steps)])
            theirs, ours = np.array(frames, np.uint8).reshape(-1, 3, 16, 16), replay_dream(torch_denoiser(trained), trained, facts, acts, seed, 2, steps)
            worst = level_differences(ours, theirs)
            print(f"{steps} step(s): largest difference {worst.max()} levels, {(worst > 0).sum()} of {len(acts)} frames differ anywhere")
            assert worst.max() <= 1

class Steady(RewardModel):
    "A reward model that pays a point at every step, or ends the dream there."
    def __init__(self, end: int):
        super().__init__(RewardConfig(channels=(8, 8), depths=(1, 1), cond=8, lstm=8, image=16), 3)
        self.sure = torch.tensor([0., 0., 9., 9. * (1 - end), 9. * end])
    def forward(self, obs, act, next_obs, state=None):
        reward, end, state = super().forward(obs, act, next_obs, state)
        return self.sure[:3] + 0 * reward, self.sure[3:] + 0 * end, state

def test_points_are_counted_and_an_end_begins_again(page, world, tmp_path):  # noqa: F811
    with playing(page, player(tmp_path/"end", replace(world, reward=Steady(1))), dreamed=0):
        page.wait_for_function("window.dream.start >= 3 && window.dream.points >= 3", timeout=120_000)
    with playing(page, player(tmp_path/"go", replace(world, reward=Steady(0)))):
        page.wait_for_function("window.dream.points >= 9", timeout=120_000)
        assert page.evaluate("window.dream.start") == 0 and "points" in page.evaluate(STATUS)

def test_keys_change_the_frames_and_the_rate_is_printed(page, world, tmp_path):  # noqa: F811
    world = replace(world, reward=Steady(0))
    pixels = "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 16, 16).data]"
    def film(key):
        "The sixth frame of a dream in which a key is held down."
        page.keyboard.down(key)
        page.evaluate("window.dream.start = -1")                                                 # so that Reset leads to beginning 0
        page.click("[data-part=reset]")
        page.wait_for_function(f"{FRAME} < 4", timeout=120_000, polling=5)                        # the reset waits for the frame that is being made
        page.wait_for_function(f"{FRAME} === 6", timeout=120_000, polling=5)
        shown = page.evaluate(pixels)
        page.keyboard.up(key)
        return shown
    def speed(fps): page.evaluate(f"document.querySelector('[data-part=speed]').value = {fps}")
    with playing(page, player(tmp_path, world)):
        speed(4)
        left, right, again = film("ArrowLeft"), film("ArrowRight"), film("ArrowLeft")
        assert left != right and left == again                                                   # the same noise, other keys
        speed(60)
        page.wait_for_function(f"{FRAME} > 60", timeout=120_000)
        status = page.evaluate(STATUS)
        print(status)
        assert float(status.split(" frames/s")[0].split(" ")[-1]) > 2 and "noise seed 0" in status and "points" in status

def test_seed_and_steps_can_be_set(page, trained, tmp_path):  # noqa: F811
    with playing(page, player(tmp_path, trained)):
        page.fill("[data-part=seed]", "12")
        page.select_option("[data-part=steps]", "3")
        page.wait_for_function(f"{STATUS}.includes('noise seed 12') && {STATUS}.includes('3 × network')", timeout=120_000)

def test_noise_is_normal_and_any_frame_can_be_drawn():
    assert np.array_equal(frame_noise(3, 5, 9), frame_noise(3, 5, 768)[:9]) and not np.array_equal(frame_noise(3, 5, 9), frame_noise(3, 6, 9))
    noise = np.concatenate([frame_noise(2**32 - 1, k, 768) for k in range(100)])
    assert abs(noise.mean()) < .02 and abs(noise.std() - 1) < .02

def test_the_page_and_python_draw_the_same_noise():
    "To the rounding of a logarithm and a cosine, by node."
    if not (node := shutil.which("node")): pytest.skip("needs node")
    drawn = [(0, 0, 2), (0, 7, 9), (12, 99, 768), (2**32 - 1, 3, 8)]
    source = (ROOT/"docs"/"static"/"dream.js").read_text().split("class Dream")[0]
    script = f"{source}\nconsole.log(JSON.stringify({json.dumps(drawn)}.map(a => [...frameNoise(...a)])))"
    out = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True, timeout=60)
    theirs = json.loads(out.stdout)
    for args, noise in zip(drawn, theirs): np.testing.assert_allclose(noise, frame_noise(*args), rtol=0, atol=1e-6)
    np.testing.assert_allclose(theirs[0], [-1.2171245, 0.31612396], rtol=0, atol=1e-6)
