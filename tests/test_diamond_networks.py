"DIAMOND's networks: parameter counts, what they may depend on, λ-returns, losses, optimisers, released checkpoints (spec section 8: U6-U12, U19, U20)."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from rlpapers.core.figures import published
from rlpapers.diamond.agent import (ActorCritic, AgentConfig, BadReturns, actor_critic_loss, lambda_returns, optimiser_of, parameter_groups,
                                    sample_actions, warmup)
from rlpapers.diamond.atari import UnknownGame
from rlpapers.diamond.csgo import (BETTER, CSGO, DYNAMICS, FAST, UPSAMPLER, BadAction, BadRecording, Scene, csgo_models, decode_action, doubting,
                                   draw_clips, encode_action, play_step, read_drive, read_recording, read_spawn, split_recordings)
from rlpapers.diamond.edm import EDM, NoiseConfig
from rlpapers.diamond.pretrained import (ACTIONS, PREFIXES, MissingCheckpoint, WrongCheckpoint, check_layout, from_pretrained, layout, load_released,
                                         new_agent, released_state, save_released)
from rlpapers.diamond.replay import Segment
from rlpapers.diamond.reward import BadSegment, RewardConfig, RewardModel, init_lstm, reward_loss
from rlpapers.diamond.unet import (AdaGroupNorm, BadInput, BadNetwork, FourierFeatures, InnerModel, ResBlock, SelfAttention, UNetConfig, attention, cost_of,
                                   group_count)

SMALL = UNetConfig(channels=(8, 16, 16), depths=(1, 2, 1), attention=(0, 1), cond=32)
REWARD = RewardConfig(channels=(8, 8), depths=(1, 1), cond=16, lstm=16, image=16)
AGENT = AgentConfig(channels=(8, 16), lstm=16, image=16)


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def inputs(c, actions=3, batch=2, size=(16, 16), seed=0):
    g = torch.Generator().manual_seed(seed)
    frames = torch.rand(batch, c.context + 1, c.image_channels, *size, generator=g) * 2 - 1
    return frames[:, -1], torch.rand(batch, generator=g) - .3, frames[:, :-1], torch.randint(actions, (batch, c.context), generator=g)


def woken(net):
    "Zero weights replaced, so that the output says something."
    for p in net.parameters():
        if not p.any(): nn.init.normal_(p, std=.1)
    return net.eval()


def count(net): return sum(p.numel() for p in net.parameters())


# ---- sizes

@pytest.mark.parametrize("actions, counts", [(4, (4_405_955, 5_900_864, 3_229_637)), (18, (4_406_851, 5_902_656, 3_236_819))])
def test_parameter_counts_are_the_papers(actions, counts):
    agent = new_agent(actions, "meta")
    assert tuple(map(count, agent)) == counts
    assert [len(net.state_dict()) for net in agent] == [236, 108, 28]


def test_csgo_counts_are_the_released_ones():
    models = csgo_models()
    assert [count(m) for m in models] == [330_489_219, 51_149_187]
    assert [len(m.state_dict()) for m in models] == [303, 270]


def test_cost_is_that_of_the_built_network():
    cost = cost_of(SMALL, 3, 16)
    assert cost.parameters == count(InnerModel(SMALL, 3))
    assert cost_of(UNetConfig(), 4, 64).multiply_adds == pytest.approx(3.04e9, rel=.01)
    quarter = cost_of(replace(SMALL, patch=2), 3, 32)
    assert quarter.multiply_adds == pytest.approx(cost.multiply_adds, rel=.2)          # a patch of 2 at twice the size


# ---- U6: at the start

def test_fresh_network_is_a_constant_and_the_denoiser_a_scaling():
    net = InnerModel(SMALL, 3)
    noisy, c_noise, past, act = inputs(SMALL)
    with torch.no_grad():
        assert torch.equal(net(noisy, c_noise, past, act), net.conv_out.bias[:, None, None].expand_as(noisy))
        nn.init.zeros_(net.conv_out.bias)
        denoised = EDM(NoiseConfig(quantise="none")).denoise(net, noisy, 1., past, act)
    assert torch.allclose(denoised, .186567 * noisy, atol=1e-6)


@pytest.mark.parametrize("attends", [False, True])
def test_fresh_blocks_are_identities(attends):
    block, x = ResBlock(16, 16, 8, attends), torch.randn(2, 16, 5, 4)
    assert torch.allclose(block(x, torch.randn(2, 8)), x + block.conv2.bias[:, None, None], atol=1e-6)
    assert torch.equal(SelfAttention(16)(x), x)


def test_fresh_policy_is_uniform_and_values_are_zero():
    logits, value, _ = ActorCritic(AGENT, 5)(torch.rand(3, 3, 16, 16))
    assert not logits.any() and not value.any()
    _, metrics = actor_critic_loss(logits[None], value[None], torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3))
    assert metrics["entropy"].item() == pytest.approx(math.log(5))


# ---- U8-U10: the U-Net

@pytest.mark.parametrize("size", [(30, 56), (65, 61), (8, 8), (5, 3)])
def test_any_size_comes_back(size):
    with torch.no_grad(): assert woken(InnerModel(SMALL, 3))(*inputs(SMALL, size=size)).shape == (2, 3, *size)


def test_batch_elements_are_independent_and_slots_distinct():
    net = woken(InnerModel(SMALL, 3))
    noisy, c_noise, past, act = inputs(SMALL, batch=3)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        out = net(noisy, c_noise, past, act)
        assert torch.allclose(net(*(x[order] for x in (noisy, c_noise, past, act))), out[order], atol=1e-5)
        one, two = (net(noisy, c_noise, past, torch.tensor([a] * 3)) for a in ([0, 1, 2, 2], [1, 0, 2, 2]))
        assert not torch.allclose(one, two, atol=1e-4)
        assert not torch.allclose(net(noisy, c_noise, past.flip(1), act), out, atol=1e-4)
        assert not torch.allclose(net(noisy, c_noise + .5, past, act), out, atol=1e-4)
        hot = F.one_hot(act, 3).float()
        assert torch.allclose(net(noisy, c_noise, past, hot), out, atol=1e-5)
        for m in net.modules():
            if isinstance(m, AdaGroupNorm): nn.init.zeros_(m.linear.weight), nn.init.zeros_(m.linear.bias)
        assert torch.allclose(net(noisy, c_noise, past, act), net(noisy, c_noise + .5, past, 2 - act), atol=1e-6)


@given(channels=st.sampled_from([8, 32, 64, 96]), shift=st.floats(-5, 5), spread=st.floats(.5, 5))
@settings(deadline=None, max_examples=15)
def test_adaptive_norm_without_condition_is_group_norm(channels, shift, spread):
    norm = AdaGroupNorm(channels, 4)
    for p in norm.linear.parameters(): nn.init.zeros_(p)
    h = norm(shift + spread * torch.randn(2, channels, 8, 8), torch.randn(2, 4)).detach().reshape(2, group_count(channels), -1)
    assert torch.allclose(h.mean(-1), torch.zeros(()), atol=1e-4) and torch.allclose(h.var(-1, correction=0), torch.ones(()), atol=1e-3)


def test_attention_is_pytorchs():
    q, k, v = torch.randn(3, 2, 4, 30, 8)
    assert torch.allclose(attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)


def test_fourier_features_start_with_cosines_and_are_saved_not_trained():
    waves = FourierFeatures(16)
    assert torch.equal(waves(torch.zeros(1)), torch.tensor([[1.] * 8 + [0.] * 8]))
    assert list(waves.state_dict()) == ["weight"] and not list(waves.parameters())


@pytest.mark.parametrize("patch", [1, 2])
def test_memory_format_and_autocast_do_not_change_what_is_computed(patch):
    c = replace(SMALL, patch=patch)
    net, x = woken(InnerModel(c, 3)), inputs(c)
    with torch.no_grad():
        out = net(*x)
        last = net.to(memory_format=torch.channels_last)(*x)
        with torch.autocast("cpu", torch.bfloat16): half = net(*x)
    assert torch.allclose(last, out, atol=1e-4)
    assert half.dtype == torch.float32 and (half - out).norm() < .05 * out.norm()


def test_every_parameter_gets_a_gradient():
    c = replace(SMALL, extra_image_channels=3, noise_past=True)
    nets = woken(InnerModel(c, 3)).train(), woken(RewardModel(REWARD, 3)).train(), woken(ActorCritic(AGENT, 3)).train()
    noisy, c_noise, past, act = inputs(c)
    nets[0](noisy, c_noise, past, act, extra=noisy, past_noise=c_noise).square().sum().backward()
    sum(x.square().sum() for x in nets[1](past[:, :-1], act[:, :-1], past[:, 1:])[:2]).backward()
    sum(x.square().sum() for x in nets[2](noisy)[:2]).backward()
    for net in nets: assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] or net is nets[2]
    assert all(p.grad is not None for p in nets[2].parameters())


def test_same_seed_same_network():
    one, two = (torch.manual_seed(3) and InnerModel(SMALL, 3).state_dict() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values()))


@pytest.mark.parametrize("change, words", [
    (dict(channels=(48, 64), depths=(1, 1), attention=()), "3 groups do not divide"), (dict(depths=(1, 1)), "each of the 3 levels"),
    (dict(depths=(1, 0, 1)), "1 or more"), (dict(attention=(0, 0, 0, 1)), "more levels"), (dict(cond=30), "multiple of context=4")])
def test_sizes_that_do_not_fit_say_which(change, words):
    with pytest.raises(BadNetwork, match=words): replace(SMALL, **change)


@pytest.mark.parametrize("name, change", [
    ("past", lambda n, s, p, a: (n, s, p[:, :3], a)), ("past", lambda n, s, p, a: (n, s, p[..., :8], a)), ("act", lambda n, s, p, a: (n, s, p, a[:, :3])),
    ("act", lambda n, s, p, a: (n, s, p, torch.zeros(2, 4, 5))), ("act", lambda n, s, p, a: (n, s, p)), ("noisy", lambda n, s, p, a: (n[:, :2], s, p, a)),
    ("extra", lambda n, s, p, a: (n, s, p, a, n))])
def test_inputs_of_another_shape_are_named(name, change):
    with pytest.raises(BadInput, match=f"^{name} has shape"): InnerModel(SMALL, 3)(*change(*inputs(SMALL)))


# ---- reward model

def segment(batch=2, steps=6, size=16, seed=0, **changes):
    rng = np.random.default_rng(seed)
    made = Segment(rng.integers(0, 256, (batch, steps, 3, size, size), dtype=np.uint8), rng.integers(0, 3, (batch, steps)), rng.integers(-2, 3, (batch, steps)).astype(np.float32),
                   np.zeros((batch, steps), bool), np.ones((batch, steps), bool), rng.integers(0, 256, (batch, 3, size, size), dtype=np.uint8))
    return made._replace(**changes).to()


def test_reward_state_carries_on():
    net, frames, act = woken(RewardModel(REWARD, 3)), torch.rand(2, 7, 3, 16, 16), torch.randint(3, (2, 6))
    with torch.no_grad():
        whole, state = net(frames[:, :-1], act, frames[:, 1:])[:2], None
        parts = []
        for k in range(6):
            reward, end, state = net(frames[:, k:k + 1], act[:, k:k + 1], frames[:, k + 1:k + 2], state)
            parts.append((reward, end))
    for one, many in zip(whole, zip(*parts)): assert torch.allclose(one, torch.cat(many, 1), atol=1e-5)


def test_reward_loss_sees_the_final_frame_and_ignores_padding():
    end, mask = np.zeros((2, 6), bool), np.ones((2, 6), bool)
    end[0, 3], mask[0, 4:] = True, False
    net, base = woken(RewardModel(REWARD, 3)), segment(end=end, mask=mask)
    loss, metrics = reward_loss(net, base)
    noise = torch.zeros_like(base.frames)
    noise[0, 4:] = 77
    assert reward_loss(net, base._replace(frames=base.frames + noise))[0].item() == pytest.approx(loss.item(), rel=1e-6)      # padding is never looked at
    final = base.final.clone()
    final[1] = 0                                                                        # nothing ends there
    assert reward_loss(net, base._replace(final=final))[0].item() == pytest.approx(loss.item(), rel=1e-6)
    final[0] = 0
    assert abs(reward_loss(net, base._replace(final=final))[0].item() - loss.item()) > 1e-5
    assert int(metrics["end_events"]) == 1
    assert reward_loss(net, base._replace(rew=base.rew * 5))[0].item() == pytest.approx(loss.item(), rel=1e-6)


def test_reward_loss_of_nothing_is_zero_and_one_frame_is_refused():
    net = RewardModel(REWARD, 3)
    assert reward_loss(net, segment(mask=np.zeros((2, 6), bool)))[0].item() == 0
    with pytest.raises(BadSegment, match="needs 2"): reward_loss(net, segment(steps=1))
    with pytest.raises(BadInput, match="this network wants"): reward_loss(net, segment(size=8))


def test_networks_run_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        reward_loss(RewardModel(REWARD, 3), segment())[0].backward()
        logits, value, state = ActorCritic(AGENT, 3)(torch.rand(2, 3, 16, 16))
    assert {x.dtype for x in (logits, value, *state)} == {torch.float32}


@pytest.mark.parametrize("lstm", [nn.LSTM(5, 8), nn.LSTMCell(5, 8)], ids=["LSTM", "cell"])
def test_lstm_starts_open_and_orthogonal(lstm):
    init_lstm(lstm)
    p = {n.removesuffix("_l0"): x for n, x in lstm.named_parameters()}
    assert p["bias_ih"].tolist() == [0.] * 8 + [1.] * 8 + [0.] * 16 and not p["bias_hh"].any()
    assert torch.allclose(p["weight_hh"].T @ p["weight_hh"], torch.eye(8), atol=1e-5)


# ---- U11, U12: returns and the policy gradient

def column(*x): return torch.tensor(x, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("rewards, ends, cuts, values, wanted", [
    ((1, 0, 0), (0, 0, 0), (0, 0, 0), (.5, .5, .5), (1.4789147, .4854819, .4925)),
    ((0, 1, 0), (0, 1, 0), (0, 0, 0), (.5, .7, .9), (.960375, 1., .8865)),
    ((0, 0, 1), (0, 0, 0), (0, 1, 0), (.5, .7, .9), (.6698246, .6895, 1.8865))])
def test_returns_by_hand(rewards, ends, cuts, values, wanted):
    out = lambda_returns(column(*rewards), column(*ends), column(*cuts), column(*values))
    assert torch.allclose(out, column(*wanted), atol=1e-7)
    assert torch.equal(lambda_returns(7 * column(*rewards), column(*ends), column(*cuts), column(*values)), out)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_nothing_leaks_past_an_end_or_a_cut(seed, gamma, lam):
    g = torch.Generator().manual_seed(seed)
    r, v = (torch.randn(8, 3, generator=g, dtype=torch.float64) for _ in range(2))
    d, u = (torch.rand(8, 3, generator=g) < .3 for _ in range(2))
    d[4, 0], u[4, 1] = True, True
    out = lambda_returns(r, d, u, v, gamma, lam)
    later_r, later_v = r.clone(), v.clone()
    later_r[5:], later_v[5:] = 9, -9
    again = lambda_returns(later_r, d, u, later_v, gamma, lam)
    assert torch.equal(again[:5, :2], out[:5, :2])
    later_v[4, 0] += 1
    assert torch.equal(lambda_returns(later_r, d, u, later_v, gamma, lam)[:5, 0], out[:5, 0])   # the value behind an end does not count
    assert torch.allclose(lambda_returns(r, d, u, v, gamma, 0.), r.sign() + gamma * (~d).double() * v)


def test_returns_of_other_shapes_are_named():
    with pytest.raises(BadReturns, match="^ends has shape"): lambda_returns(torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 2), torch.zeros(3, 2))


def test_policy_gradient_of_a_bandit():
    g = torch.Generator().manual_seed(0)
    arms = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    actions, pay = torch.randint(4, (3, 50), generator=g), torch.randn(3, 50, generator=g, dtype=torch.float64)
    values = torch.zeros(3, 50, dtype=torch.float64, requires_grad=True)
    actor_critic_loss(arms.expand(3, 50, 4), values, actions, pay)[0].backward()
    assert torch.allclose(arms.grad, -((F.one_hot(actions, 4).double() - .25) * pay[..., None]).mean((0, 1)), atol=1e-12)
    assert torch.allclose(values.grad, -2 * pay / 150)                                  # the advantage sends no gradient to the critic


def test_actions_follow_the_generator_and_the_softmax():
    logits = torch.tensor([0., 2., -1.]).expand(4000, 3)
    one, two = (sample_actions(logits, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(one.bincount() / 4000, logits[0].softmax(0), atol=.03)


def test_watching_is_acting_without_acting():
    net, frames = woken(ActorCritic(AGENT, 3)), torch.rand(2, 3, 3, 16, 16)
    with torch.no_grad():
        state = None
        for frame in frames.unbind(1): _, _, state = net(frame, state)
        for a, b in zip(net.watch(frames), state): assert torch.allclose(a, b, atol=1e-6)
    assert not net.initial_state(2)[0].any() and net.initial_state(2)[0].data_ptr() != net.initial_state(2)[1].data_ptr()


# ---- U20: optimisers

@pytest.mark.parametrize("net", [lambda: InnerModel(SMALL, 3), lambda: RewardModel(REWARD, 3), lambda: ActorCritic(AGENT, 3)], ids=["denoiser", "reward", "agent"])
def test_decay_pulls_on_weights_only(net):
    net = net()
    decayed, kept = parameter_groups(net)
    assert not set(decayed) & set(kept) and set(decayed) | set(kept) == {n for n, _ in net.named_parameters()}
    assert all(p.ndim > 1 for p in decayed.values()) and not [n for n in decayed if "bias" in n or "act_emb" in n or ".norm." in n]
    assert not [n for n, p in kept.items() if p.ndim > 1 and "act_emb" not in n]
    for p in net.parameters(): p.grad = torch.zeros_like(p)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimiser_of(net, lr=.1, decay=.5).step()
    for n, p in net.named_parameters(): assert torch.allclose(p, before[n] * (.95 if n in decayed else 1.), atol=1e-6)


def test_warm_up_starts_at_zero():
    assert [warmup(u, 1e-4) for u in (0, 1, 100, 10**6)] == pytest.approx([0., 1e-6, 1e-4, 1e-4], rel=1e-9)
    assert warmup(0, 1e-3, over=0) == 1e-3


# ---- released checkpoints

@pytest.mark.parametrize("actions", [3, 4, 6, 18])
def test_layout_is_the_published_one(actions):
    listed = published("diamond", "checkpoint_layout")
    shapes = {k: tuple(actions if n == "A" else int(n) for n in str(s).split("x")) for k, s in zip(listed["key"], listed["shape"])}
    assert list(layout(actions).items()) == list(shapes.items()) and len(shapes) == 372


@pytest.fixture(scope="module")
def released():
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) for name, shape in layout(4).items()}


def test_round_trip_over_the_whole_layout(released, tmp_path):
    path = tmp_path/"Breakout.pt"
    torch.save(released, path)
    agent = from_pretrained(path)
    assert agent.actions == 4 and not any(net.training for net in agent)
    assert all(torch.equal(x, released[k]) for k, x in released_state(agent).items())
    save_released(agent, tmp_path/"again.pt")
    again = torch.load(tmp_path/"again.pt", weights_only=True)
    assert list(again) == list(released) and all(torch.equal(again[k], released[k]) for k in released)


FIRST = next(iter(layout(4)))
@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("actor_critic.lstm.weight_ih"), r"missing: actor_critic\.lstm\.weight_ih\."),
    (lambda s: s.update(stowaway=torch.zeros(1)), r"unexpected: stowaway\."),
    (lambda s: s.update({FIRST: torch.zeros(2, 128)}), r"wrong shape: .*noise_emb\.weight \(2, 128\) instead of \(1, 128\)"),
    (lambda s: s.update({FIRST: torch.zeros(1, 128, dtype=torch.long)}), "not floating point"),
    (lambda s: s.update({FIRST: torch.full((1, 128), math.nan)}), "not finite"),
    (lambda s: [s.pop(k) for k in list(s) if k.startswith("rew_end")], "rew_end_model.* and 103 more"),
    (lambda s: s.update({"rew_end_model.act_emb.weight": torch.zeros(6, 128)}), "disagree about the number of actions"),
    (lambda s: s.update({"upsampler.x": torch.zeros(1)}), "CS:GO")])
def test_what_is_wrong_with_a_file_is_named(released, tmp_path, change, words):
    state = dict(released)
    change(state)
    torch.save(state, tmp_path/"x.pt")
    with pytest.raises(WrongCheckpoint, match=words): load_released(tmp_path/"x.pt")


def test_another_game_a_torn_file_and_no_file(released, tmp_path):
    torch.save(released, tmp_path/"Pong.pt")
    with pytest.raises(WrongCheckpoint, match="has 4 actions, Pong has 6"): from_pretrained(tmp_path/"Pong.pt")
    with pytest.raises(UnknownGame, match="Did you mean 'Breakout'"): from_pretrained("Brakeout")
    with pytest.raises(MissingCheckpoint, match="does not exist"): from_pretrained(tmp_path/"Boxing.pt")
    (tmp_path/"torn.pt").write_bytes((tmp_path/"Pong.pt").read_bytes()[:5000])
    with pytest.raises(WrongCheckpoint, match="half download"): load_released(tmp_path/"torn.pt")
    torch.save([1, 2], tmp_path/"list.pt")
    with pytest.raises(WrongCheckpoint, match="holds list"): load_released(tmp_path/"list.pt")
    torch.save(AGENT, tmp_path/"code.pt")                                               # an object, which weights_only refuses
    with pytest.raises(WrongCheckpoint, match="UnpicklingError"): load_released(tmp_path/"code.pt")


def test_hub_is_asked_for_the_games_file(released, tmp_path, monkeypatch):
    import huggingface_hub
    torch.save(released, tmp_path/"file.pt")
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: asked.append((repo, name)) or str(tmp_path/"file.pt"))
    assert from_pretrained("Breakout").actions == 4 and asked == [("eloialonso/diamond", "atari_100k/models/Breakout.pt")]
    with pytest.raises(WrongCheckpoint, match="Games with 4: Breakout"): from_pretrained("Qbert")
    def offline(repo, name): raise OSError("no network")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(MissingCheckpoint, match="no network.*give its path"): from_pretrained("Breakout")


def test_other_sizes_are_not_saved_as_released(tmp_path):
    agent = new_agent(4)._replace(reward=RewardModel(REWARD, 4))
    with pytest.raises(WrongCheckpoint, match="missing: rew_end_model"): save_released(agent, tmp_path/"x.pt")
    assert len(ACTIONS) == 26 and len(set(PREFIXES)) == 3
    with pytest.raises(WrongCheckpoint): check_layout({}, 4)


# ---- Counter-Strike and driving

TINY = dict(channels=(8, 8, 8), depths=(1, 1, 1), cond=16)


@given(st.sets(st.sampled_from(["w", "ctrl", "r", "left click"])), st.floats(-2000, 2000), st.floats(-400, 400))
def test_actions_survive_a_round_trip(pressed, x, y):
    names, bin_x, bin_y = decode_action(encode_action(tuple(pressed), x, y))
    assert set(names) == pressed
    assert (names, bin_x, bin_y) == decode_action(encode_action(names, bin_x, bin_y))


def test_action_errors():
    with pytest.raises(BadAction, match="no key"): encode_action(("jump",))
    with pytest.raises(BadAction, match=r"not \(51,\)"): decode_action(np.zeros(3))


@pytest.mark.parametrize("config, calls", [(FAST, [1, 1]), (BETTER, [3, 10])], ids=["fast", "better"])
def test_play_counts_evaluations_and_shifts_the_scene(config, calls):
    models = CSGO(woken(InnerModel(replace(DYNAMICS, **TINY, attention=()), 51)), woken(InnerModel(replace(UPSAMPLER, **TINY, attention=()), 0)))
    made = [0, 0]
    for k, net in enumerate(models): net.register_forward_hook(lambda *_, k=k: made.__setitem__(k, made[k] + 1))
    scene = Scene(torch.rand(1, 4, 3, 6, 10) * 2 - 1, torch.rand(1, 3, 12, 20) * 2 - 1, torch.zeros(1, 4, 51))
    act = torch.from_numpy(encode_action(("w",)))[None]
    after = play_step(models, scene, act, torch.Generator().manual_seed(0), config)
    assert made == calls
    assert torch.equal(after.low[:, :3], scene.low[:, 1:]) and torch.equal(after.act[:, 2], act) and after.full.shape == scene.full.shape
    other = play_step(models, scene, act.flip(1), torch.Generator().manual_seed(0), config)
    assert not torch.equal(other.low[:, 3], after.low[:, 3])                            # the action taken now matters now


def test_doubt_is_added_and_told():
    heard = []
    def listening(noisy, c_noise, past, act, past_noise): return heard.append((past, past_noise)) or noisy
    past = torch.zeros(50, 4, 3, 8, 8)
    doubting(listening, torch.full((50,), .1), torch.Generator().manual_seed(0))(past[:, 0], None, past, None)
    assert heard[0][0].std().item() == pytest.approx(.2, rel=.03) and heard[0][1][0].item() == pytest.approx(math.log(.1) / 4)


def write_recording(path, frames, size=(6, 8)):
    import h5py
    with h5py.File(path, "w") as file:
        for i in range(frames):
            file[f"frame_{i}_x"] = np.full((*size, 3), (10 * i, 1, 2), np.uint8)        # blue, green, red
            file[f"frame_{i}_y"] = encode_action(("w",))
            file[f"frame_{i}_helperarr"] = np.array([i == 1, 0])


def test_recordings_and_what_can_be_wrong_with_them(tmp_path):
    for k in (1, 2, 10): write_recording(tmp_path/f"hdf5_dm_july2021_{k}.hdf5", 5)
    (tmp_path/"split.txt").write_text("folder/hdf5_dm_july2021_2.hdf5\n")
    train, test = split_recordings(tmp_path, tmp_path/"split.txt")
    assert [p.stem.split("_")[-1] for p in train + test] == ["1", "10", "2"]
    part = read_recording(train[0], 1, 3)
    assert part.frames[:, :, 0, 0].tolist() == [[2, 1, 10], [2, 1, 20]] and part.events.tolist() == [[True, False], [False, False]]
    one, two = (draw_clips(train, 3, 4, np.random.default_rng(0), low=(3, 4)) for _ in range(2))
    assert torch.equal(one.low, two.low) and one.low.shape == (3, 4, 3, 3, 4) and one.full.dtype == torch.uint8
    with pytest.raises(BadRecording, match="has 5 frames, a piece 6"): draw_clips(train, 1, 6, np.random.default_rng(0))
    with pytest.raises(BadRecording, match="no entry frame_5_x"): read_recording(train[0], 0, 6)
    with pytest.raises(BadRecording, match="holds no .hdf5"): split_recordings(tmp_path/"empty")
    (tmp_path/"split.txt").write_text("other.hdf5\n")
    with pytest.raises(BadRecording, match="other.hdf5"): split_recordings(tmp_path, tmp_path/"split.txt")
    (tmp_path/"torn.hdf5").write_bytes(b"\x89HDF")
    with pytest.raises(BadRecording, match="no HDF5"): read_recording(tmp_path/"torn.hdf5")
    with pytest.raises(BadRecording, match="no HDF5"): read_recording(tmp_path/"absent.hdf5")


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_spawn_folders(tmp_path, last):
    def images(n, h, w): return np.zeros((n, h, w, 3) if last else (n, 3, h, w), np.uint8)
    arrays = dict(low_res=images(4, 6, 10), full_res=images(1, 12, 20), act=np.zeros((4, 51)), next_act=np.zeros((9, 51)))
    for name, x in arrays.items(): np.save(tmp_path/f"{name}.npy", x)
    start = read_spawn(tmp_path)
    assert start.scene.low.shape == (1, 4, 3, 6, 10) and start.scene.full.shape == (1, 3, 12, 20) and start.next_act.shape == (9, 51)
    np.save(tmp_path/"low_res.npy", arrays["low_res"][:2])
    with pytest.raises(BadRecording, match="2 small frames"): read_spawn(tmp_path)
    np.save(tmp_path/"low_res.npy", arrays["low_res"].astype(np.float32))
    with pytest.raises(BadRecording, match="not uint8"): read_spawn(tmp_path)
    np.save(tmp_path/"low_res.npy", arrays["low_res"])
    (tmp_path/"act.npy").unlink()
    with pytest.raises(BadRecording, match="missing or damaged"): read_spawn(tmp_path)


def test_drives_are_aligned_by_the_camera_pointer(tmp_path):
    import h5py
    with h5py.File(tmp_path/"c.h5", "w") as file: file["X"] = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 6), np.uint8)
    pointer = np.array([-1, 0, 0, 2, 2, 3, 4, 6, 99])
    with h5py.File(tmp_path/"l.h5", "w") as file:
        file["cam1_ptr"], file["steering_angle"], file["car_accel"] = pointer, np.array([9., 10, 30, 20, 20, 1, 50, np.nan, 7]), np.arange(9.)
    drive = read_drive(tmp_path/"c.h5", tmp_path/"l.h5")
    assert drive.frames[:, 0, 0, 0].tolist() == [0, 3]                                  # every second one of 0, 2, 3, 4: the rest has no valid entry
    assert np.allclose(drive.act, [[2., 1.5], [.1, 5.]])
    with pytest.raises(BadRecording, match="points at no frame"):
        with h5py.File(tmp_path/"l.h5", "a") as file: file["cam1_ptr"][:] = 99
        read_drive(tmp_path/"c.h5", tmp_path/"l.h5")


def test_the_package_offers_it(released, tmp_path):
    import rlpapers.diamond
    torch.save(released, tmp_path/"Breakout.pt")
    assert rlpapers.diamond.from_pretrained(tmp_path/"Breakout.pt").actions == 4
