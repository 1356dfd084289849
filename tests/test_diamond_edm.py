"Specification of DIAMOND, section 8, U1-U5, U13, U14 and U21: preconditioners, schedule, sampler, quantiser, objectives, and diffusers where both must agree."
import math
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpapers.core.paths import RLPapersError
from rlpapers.diamond import theory
from rlpapers.diamond.ddpm import DDPM, PREDICTIONS, Regression, alphas_bar, ddpm_sigmas, timesteps
from rlpapers.diamond.edm import (EDM, BadFrames, BadSettings, NoiseConfig, SamplerConfig, draw_sigma, from_bytes, karras_sigmas, masked_mean, normal,
                                  offset_noise, preconditioners, quantise, sample, segment_loss, to_bytes)

def check(**strategies):
    "Over 40 examples, the same in every run."
    return lambda test: settings(max_examples=40, deadline=None, derandomize=True)(given(**strategies)(test))

seeds = st.integers(0, 2**32 - 1)
levels = st.floats(1e-3, 50)
LEVELS = torch.arange(256, dtype=torch.uint8)
def generator(seed=0): return torch.Generator().manual_seed(seed)
def close(a, b, atol=1e-6, rtol=0.):
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64), atol=atol, rtol=rtol)

def batch(n=8, size=8, seed=0, length=4):
    "Frames on the grid, past frames, actions."
    g = generator(seed)
    frames = from_bytes(torch.randint(256, (n, length + 1, 3, size, size), generator=g, dtype=torch.uint8))
    return frames[:, -1].clone(), frames[:, :-1].clone(), torch.randint(4, (n, length), generator=g)

class Net(torch.nn.Module):
    "A small network in which every input matters."
    def __init__(self, seed=0, gain=.3):
        super().__init__()
        g = generator(seed)
        self.w = torch.nn.Parameter(gain * torch.randn(3, 15, 3, 3, generator=g) / math.sqrt(135))
        self.register_buffer("a", .1 * torch.randn(4, generator=g))
    def forward(self, x, c_noise, past, act):
        y = torch.nn.functional.conv2d(torch.cat([past.flatten(1, 2), x], 1).to(self.w), self.w, padding=1)
        return y + .2 * torch.tanh(c_noise).to(y).view(-1, 1, 1, 1) + (act.to(y) @ self.a[:act.shape[1]].to(y)).view(-1, 1, 1, 1)


# U1: preconditioners

TABLE = {0.: (.3, 1.714986, .735294, .257248, -.300993), .002: (.300007, 1.714976, .735285, .257252, -.300988),
         1.: (1.044031, .863868, .186567, .450953, .010772), 5.: (5.008992, .198654, .009866, .497527, .402809),
         20.: (20.002250, .049979, .000624, .499844, .748961)}

@pytest.mark.parametrize("sigma", TABLE)
def test_U1_table(sigma): close(preconditioners(torch.tensor(sigma), NoiseConfig()), TABLE[sigma][1:], 1.1e-6)

def test_U1_without_offset():
    none = NoiseConfig(offset=0.)
    close(preconditioners(torch.tensor(1.), none), (.894427, .2, .447214, 0.), 1e-6)
    close(preconditioners(torch.tensor(5.), none), (.199007, .009901, .497519, .402359), 1e-6)

@check(sigma=levels, offset=st.floats(0, 1), data=st.floats(.1, 2))
def test_U1_identities(sigma, offset, data):
    k, total = preconditioners(torch.tensor(sigma), NoiseConfig(offset=offset, data=data)), math.hypot(sigma, offset)
    close(k.c_out ** 2, total ** 2 * k.c_skip, rtol=1e-4)
    close(k.c_skip, data ** 2 * k.c_in ** 2, rtol=1e-4)
    close(k.c_out, total * data * k.c_in, rtol=1e-4)
    close(k.c_noise, .25 * math.log(total), 1e-5)


# U2: unit variance and limits

@pytest.mark.parametrize("sigma", [.002, .3, 1., 5., 20.])
def test_U2_unit_variance(sigma):
    c, g = NoiseConfig(), generator(1)
    frames = .5 * normal((200_000, 1, 1, 1), g)
    noisy = frames + offset_noise(frames, c.offset, sigma, g)
    k = preconditioners(torch.tensor(sigma), c)
    close((k.c_in * noisy).var(), 1., .01)
    close(((frames - k.c_skip * noisy) / k.c_out).var(), 1., .01)

def test_U2_limits():
    g = generator(2)
    frames, noise = (normal((100, 1, 2, 2), g).double() for _ in range(2))
    far, near = preconditioners(torch.tensor(1e4), NoiseConfig()), preconditioners(torch.tensor(1e-4), NoiseConfig(offset=0.))
    close((frames - far.c_skip.double() * (frames + 1e4 * noise)) / far.c_out.double(), frames / .5, 2e-3)
    close((frames - near.c_skip.double() * (frames + 1e-4 * noise)) / near.c_out.double(), -noise, 2e-3)


# U3: schedule

@pytest.mark.parametrize("n,expected", [(1, [5, 0]), (2, [5, .002, 0]), (3, [5, .283082, .002, 0]), (5, [5, 1.377025, .283082, .036547, .002, 0])])
def test_U3_schedule(n, expected): close(karras_sigmas(SamplerConfig(n)), expected, 1e-6)

def test_U3_ten_steps():
    close(karras_sigmas(SamplerConfig(10))[:5], [5, 2.902026, 1.608833, .844749, .415490], 1e-6)
    close(karras_sigmas(SamplerConfig(10))[-3:], [.008453, .002, 0], 1e-6)

@check(n=st.integers(1, 60), low=st.floats(1e-3, .5), ratio=st.floats(1.5, 1e4), rho=st.floats(.5, 15))
def test_U3_falls_between_its_ends(n, low, ratio, rho):
    s = karras_sigmas(SamplerConfig(n, sigma_min=low, sigma_max=low * ratio, rho=rho))
    assert len(s) == n + 1 and (s.diff() < 0).all() and s[-1] == 0
    close(s[0], low * ratio, rtol=1e-5)
    if n > 1: close(s[-2], low, rtol=1e-4)


# U4: sampler

@check(seed=seeds, n=st.integers(1, 12), order=st.sampled_from([1, 2]), churn=st.sampled_from([0., 5.]), init=st.floats(.1, 10))
def test_U4_oracle(seed, n, order, churn, init):
    g, calls = generator(seed), []
    picture = from_bytes(torch.randint(256, (2, 3, 4, 4), generator=g, dtype=torch.uint8))
    c = SamplerConfig(n, order=order, churn=churn, init_std=init)
    out = sample(lambda x, sigma: calls.append(sigma) or picture, normal(picture.shape, g), c, g)
    assert torch.equal(out, picture) and len(calls) == (n if order == 1 else 2 * n - 1)

@pytest.mark.parametrize("n,textbook,unit,mean", [(3, .252, .050, .285), (50, .484, .096, .271), (400, .498, .099, .270)])
def test_U4_gaussian(n, textbook, unit, mean):
    exact = lambda x, sigma: .3 + (x - .3) * .25 / (.25 + sigma ** 2)
    start = normal((200_000, 1, 1, 1), generator(3)).double()
    full = sample(exact, start + .3 / math.sqrt(25.25), SamplerConfig(n, init_std=math.sqrt(25.25)))     # around the mean
    cold = sample(exact, start, SamplerConfig(n))
    close([full.mean(), full.std(), cold.mean(), cold.std()], [.3, textbook, mean, unit], 2.5e-3)
    close(cold.std(), start.std() * theory.euler_gain(karras_sigmas(SamplerConfig(n)), .5), 1e-6)

def test_U4_churn_keeps_the_distribution():
    exact = lambda x, sigma: .3 + (x - .3) * .25 / (.25 + sigma ** 2)
    g = generator(4)
    out = sample(exact, normal((100_000, 1, 1, 1), g) + .3 / math.sqrt(25.25), SamplerConfig(300, order=2, churn=60., churn_exact=True, init_std=math.sqrt(25.25)), g)
    close([out.mean(), out.std()], [.3, .5], .02)

def test_churn_acts_between_its_levels():
    def run(**fields): return sample(lambda x, sigma: .5 * x, normal((1, 1, 4, 4), generator(0)), SamplerConfig(3, **fields), generator(5))
    assert torch.equal(run(), run(churn=10., churn_low=6.)) and torch.equal(run(), run(churn=10., churn_high=1e-3))
    assert not torch.equal(run(), run(churn=10., churn_low=.1))

def test_trace_holds_every_state():
    trace, start = [], normal((1, 3, 4, 4), generator(6))
    out = sample(lambda x, sigma: .5 * x, start, SamplerConfig(5, init_std=2.), trace=trace)
    assert len(trace) == 6 and torch.equal(trace[0], 2 * start) and torch.equal(trace[-1], out)


# U5: quantiser

def test_U5_truncation():
    assert to_bytes(torch.tensor([0., .5, .999, 1.7, -3.]), "truncate").tolist() == [127, 191, 254, 255, 0]
    close(quantise(torch.tensor([0., .5]), "truncate"), [-.003922, .498039])
    back = to_bytes(from_bytes(LEVELS), "truncate")
    assert (back == LEVELS).sum() == 193 and torch.equal((LEVELS.int() - back.int()).nonzero()[:, 0], torch.arange(1, 64))
    assert torch.equal(back[1:64], LEVELS[:63])

def test_U5_rounding_keeps_all(): assert torch.equal(to_bytes(from_bytes(LEVELS)), LEVELS)

@check(seed=seeds, how=st.sampled_from(["round", "truncate"]), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_U5_on_the_grid(seed, how, dtype):
    x = (1.5 * torch.randn(500, generator=generator(seed))).to(dtype)
    kept = x.clone()
    y = quantise(x, how)
    assert y.dtype == torch.float32 and torch.equal(y, from_bytes(to_bytes(x, how))) and torch.equal(x, kept)
    assert torch.isin(y, from_bytes(LEVELS)).all()
    error = y - x.float().clamp(-1, 1)
    assert error.abs().max() <= 1.01 / 255 if how == "round" else (-2.02 / 255 <= error.min() and error.max() < 1e-6)
    if how == "round": assert torch.equal(quantise(y), y)


# U13: training levels

def test_U13_log_normal():
    s = draw_sigma(2_000_000, NoiseConfig(high=1e9, low=1e-9), generator(7)).double()
    close([s.median(), (s > 5).double().mean(), (s > 20).double().mean(), s.mean()], [math.exp(-.4), .0470, .00233, 1.377], 5e-3)
    clipped = draw_sigma(2_000_000, NoiseConfig(), generator(7))
    assert clipped.min() >= .002 and clipped.max() == 20. and abs((clipped == 20).double().mean() - .00233) < 2e-4


# U14: DDPM

def test_U14_constants():
    close(alphas_bar()[[0, 100, 333, 500, 666]], [.9999, .895142, .318625, .0777967, .0109842], 1e-6)
    close(alphas_bar()[[900, 999]], [2.7024e-4, 4.0358e-5], 1e-8)
    close(ddpm_sigmas()[[500, 666, 999]], [3.443, 9.489, 157.4], .05)
    assert timesteps(3) == [666, 333, 0] and timesteps(10) == list(range(900, -1, -100)) and timesteps(3, "trailing")[0] == 999

@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("fields", [{}, dict(spacing="trailing"), dict(context_scale=.5)])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_U14_oracle(predict, fields, n):
    picture, past, act = batch()
    def oracle(x, c_noise, *_):
        abar = alphas_bar()[(c_noise * 1000).round().long() - 1].view(-1, 1, 1, 1)
        a, b = abar.sqrt(), (1 - abar).sqrt()
        noise = (x - a * picture) / b
        return {"noise": noise, "image": picture, "velocity": a * noise - b * picture}[predict]
    objective = DDPM(predict=predict, **fields)
    assert torch.equal(objective.sample(oracle, past, act, generator(8), steps=n), picture)
    loss, denoised = objective.loss(oracle, picture, past, act, generator(9))
    assert torch.equal(denoised, picture)
    for sigma in (.05, 2., torch.linspace(.1, 60, len(picture))):
        noisy = picture + torch.as_tensor(sigma).view(-1, 1, 1, 1) * normal(picture.shape, generator(10))
        assert torch.equal(objective.denoise(oracle, noisy, sigma, past, act), picture)

def test_U14_perfect_noise_has_no_loss():
    picture, past, act = batch()
    def oracle(x, c_noise, *_):
        abar = alphas_bar()[(c_noise * 1000).round().long() - 1].view(-1, 1, 1, 1)
        return (x - abar.sqrt() * picture) / (1 - abar).sqrt()
    assert DDPM().loss(oracle, picture, past, act, generator(11))[0] < 1e-8


# What all objectives promise

ALL = [EDM(), EDM(sampler=SamplerConfig(2, order=2)), DDPM(), DDPM.matched(), DDPM(predict="velocity"), DDPM(predict="image"), Regression()]

@pytest.mark.parametrize("objective", ALL, ids=str)
def test_objectives_keep_their_promises(objective):
    net, (target, past, act) = Net(), batch()
    kept = [x.clone() for x in (target, past, act)]
    loss, denoised = objective.loss(net, target, past, act, generator(1))
    again, same = objective.loss(net, target, past, act, generator(1))
    assert loss.ndim == 0 and loss.requires_grad and not denoised.requires_grad and torch.equal(loss, again) and torch.equal(denoised, same)
    trace = []
    frame = objective.sample(net, past, act, generator(2), trace=trace)
    assert torch.equal(frame, objective.sample(net, past, act, generator(2))) and not frame.requires_grad and torch.equal(trace[-1], frame)
    for image in (denoised, frame, objective.denoise(net, target, .5, past, act), objective.denoise(net, target, torch.full((8,), .5), past, act)):
        assert image.shape == target.shape and image.dtype == torch.float32 and torch.isin(image, from_bytes(LEVELS)).all()
    assert all(torch.equal(a, b) for a, b in zip(kept, (target, past, act))), "inputs are not written to"

@pytest.mark.parametrize("objective", ALL, ids=str)
def test_masks(objective):
    net, (target, past, act) = Net(), batch()
    none = torch.zeros(8, dtype=torch.bool)
    loss, _ = objective.loss(net, target, past, act, generator(1), none)
    assert loss.item() == 0.
    loss.backward()
    assert torch.equal(net.w.grad, torch.zeros_like(net.w))
    close(objective.loss(net, target, past, act, generator(1), ~none)[0].detach(), objective.loss(net, target, past, act, generator(1))[0].detach())
    some = none.clone()
    some[[1, 4]] = True
    changed = torch.where(some.view(-1, 1, 1, 1), target, -target)                         # what is masked has no part in the loss
    a, b = (objective.loss(net, t, past, act, generator(1), some)[0].detach() for t in (target, changed))
    close(a, b)

def test_masked_mean():
    error = torch.arange(12.).view(3, 2, 2)
    close(masked_mean(error, torch.tensor([True, False, True])), (1.5 + 9.5) / 2)

def test_edm_loss_is_the_formula():
    net, (target, past, act), c = Net(), batch(), NoiseConfig(quantise="none")
    sigma = draw_sigma(8, c, g := generator(3))
    noisy = target + offset_noise(target, c.offset, sigma, g)
    k = [x.view(-1, 1, 1, 1) for x in preconditioners(sigma, c)]
    out = net(k[0] * noisy, k[3].flatten(), past / .5, act)
    loss, denoised = EDM(c).loss(net, target, past, act, generator(3))
    close(loss.detach(), ((out - (target - k[1] * noisy) / k[2]) ** 2).mean().detach())
    close(denoised, (k[1] * noisy + k[2] * out).detach())
    close(EDM(c).denoise(net, noisy, sigma, past, act), denoised)

@pytest.mark.parametrize("objective", ALL, ids=str)
def test_arithmetic_stays_in_float32(objective):
    net, (target, past, act) = Net().bfloat16(), batch()
    loss, denoised = objective.loss(net, target, past, act, generator(1))
    full, _ = objective.loss(Net(), target, past, act, generator(1))
    assert loss.dtype == denoised.dtype == torch.float32
    close(loss.detach(), full.detach(), rtol=.02)
    loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16): mixed, denoised = objective.loss(Net(), target, past, act, generator(1))
    assert mixed.dtype == denoised.dtype == torch.float32
    close(mixed.detach(), full.detach(), rtol=.02)

def test_regression_is_edm_at_infinite_noise():
    target, past, act = batch()
    k = preconditioners(torch.tensor(1e6), NoiseConfig())
    seen = []
    def net(x, c_noise, past, act): return seen.append((x, c_noise, past)) or torch.zeros_like(x)
    loss, _ = Regression().loss(net, target, past, act)
    close(loss, ((target / k.c_out) ** 2).mean(), rtol=1e-4)
    assert not seen[0][0].any() and not seen[0][1].any() and torch.equal(seen[0][2], past / .5)

@pytest.mark.parametrize("objective", [EDM(), DDPM.matched(), Regression()], ids=str)
def test_segments(objective):
    "Contexts, actions and masks of the second target; bytes and floats give the same; no gradient through the re-injected frame."
    g, seen = generator(4), []
    frames, act = torch.randint(256, (4, 6, 3, 8, 8), generator=g, dtype=torch.uint8), torch.randint(4, (4, 6), generator=g)
    mask = torch.ones(4, 6, dtype=torch.bool)
    class Watch(Net):
        def forward(self, x, c_noise, past, act): return seen.append((past * .5, act)) or super().forward(x, c_noise, past, act)
    net = Watch()
    loss = segment_loss(objective, net, frames, act, mask, generator(5))
    assert torch.equal(loss, segment_loss(objective, Net(), from_bytes(frames), act, mask, generator(5)))
    (first, a), (second, b) = seen[:2]
    assert torch.equal(a, act[:, :4]) and torch.equal(b, act[:, 1:5]) and torch.equal(second[:, :3], first[:, 1:]) and not second.requires_grad
    assert not torch.allclose(second[:, 3], from_bytes(frames[:, 4]))
    mask[:, 5] = False
    g1, floats = generator(5), from_bytes(frames)
    one, _ = objective.loss(Net(), floats[:, 4], floats[:, :4], act[:, :4], g1)
    close(segment_loss(objective, Net(), frames, act, mask, generator(5)).detach(), one.detach() / 2)
    close(segment_loss(objective, Net(), frames[:, :5], act[:, :5], mask[:, :5], generator(5)).detach(), one.detach())

def test_training_prefers_the_image_at_high_noise():
    "C6 with an exact minimiser: one weight on the input, fitted by least squares, is 0 for EDM at every level and 1 for noise at high ones."
    g = generator(6)
    frames = .5 * normal((100_000, 1), g).double()
    for sigma in (.5, 5., 50.):
        noisy = frames + sigma * normal(frames.shape, g)
        for kind, expected in (("EDM", 0.), ("noise", sigma / math.sqrt(sigma ** 2 + .25))):
            x = noisy / noisy.std()
            close((x * theory.wrap(kind, sigma).target(frames, noisy)).mean(), expected, .01)


# Bad input

@pytest.mark.parametrize("make", [lambda: NoiseConfig(quantise="floor"), lambda: NoiseConfig(low=3., high=2.), lambda: NoiseConfig(offset=-1.),
                                  lambda: SamplerConfig(0), lambda: SamplerConfig(order=3), lambda: SamplerConfig(sigma_min=0.), lambda: DDPM(steps=0),
                                  lambda: DDPM(predict="eps"), lambda: DDPM(spacing="linspace"), lambda: DDPM(quantise="nearest"), lambda: DDPM(single=1000),
                                  lambda: Regression(data=0.), lambda: quantise(torch.zeros(1), "up"),
                                  lambda: to_bytes(torch.zeros(1), "none"), lambda: DDPM().sample(Net(), *batch()[1:], generator(), steps=2000),
                                  lambda: EDM().sample(Net(), *batch()[1:], generator(), steps=0)])
def test_bad_settings(make):
    with pytest.raises(BadSettings): make()

@pytest.mark.parametrize("objective", [EDM(), DDPM(), Regression()], ids=str)
def test_bad_frames(objective):
    net, (target, past, act), g = Net(), batch(), generator()
    cases = [((target * 100).to(torch.uint8), past, act), (target, (past * 100).to(torch.uint8), act), (target[:, :2], past, act), (target, past[:, 0], act),
             (target, past, act[:, 1:]), (target[:3], past, act), (target[..., :4], past, act)]
    for wrong in cases:
        with pytest.raises(BadFrames, match="target|past|act"): objective.loss(net, *wrong, g)
    with pytest.raises(BadFrames): objective.sample(net, past[0], act, g)
    with pytest.raises(BadFrames): objective.denoise(net, target[:, :1], 1., past, act)

def test_errors_are_ours():
    assert issubclass(BadFrames, RLPapersError) and issubclass(BadSettings, RLPapersError)
    with pytest.raises(BadFrames, match="uint8"): from_bytes(torch.zeros(3))
    with pytest.raises(BadFrames, match="at least 5"): segment_loss(EDM(), Net(), torch.zeros(2, 4, 3, 8, 8), torch.zeros(2, 4), None, generator())


# U21: diffusers, in the settings where both must agree

@pytest.mark.parametrize("n", [1, 2, 3, 10, 40])
def test_U21_edm_euler(n):
    "No offset noise, no quantiser, EDM's start."
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler(sigma_min=.002, sigma_max=5., sigma_data=.5, rho=7.)
    theirs.set_timesteps(n)
    close(theirs.sigmas, karras_sigmas(SamplerConfig(n)), 1e-5)
    net, (_, past, act) = Net(gain=1.), batch()
    ours = EDM(NoiseConfig(offset=0., quantise="none"), SamplerConfig(n, init_std=math.sqrt(26)))
    assert float(theirs.init_noise_sigma) == pytest.approx(math.sqrt(26))
    with torch.no_grad():
        x = normal(past[:, 0].shape, generator(1)) * theirs.init_noise_sigma
        for t in theirs.timesteps:
            out = net(theirs.scale_model_input(x, t), t.expand(len(x)), past / .5, act)
            x = theirs.step(out, t, x).prev_sample
    close(ours.sample(net, past, act, generator(1)), x, 1e-5)

@pytest.mark.parametrize("sigma", [.002, .3, 5.])
def test_U21_edm_preconditioners_take_sigma_prime(sigma):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler(sigma_min=.002, sigma_max=5., sigma_data=.5)
    x, out = normal((2, 2, 3, 4, 4), generator(2))
    k, prime = preconditioners(torch.tensor(sigma), NoiseConfig()), torch.tensor(math.hypot(sigma, .3))
    close(k.c_in * x, theirs.precondition_inputs(x, prime), 1e-6)
    close(k.c_skip * x + k.c_out * out, theirs.precondition_outputs(x, out, prime), 1e-5)
    close(k.c_noise, theirs.precondition_noise(prime), 1e-6)

@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("predict,their_name", [("noise", "epsilon"), ("image", "sample"), ("velocity", "v_prediction")])
@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_U21_ddpm(n, predict, their_name, spacing):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(prediction_type=their_name, timestep_spacing=spacing)
    theirs.set_timesteps(n)
    assert theirs.timesteps.tolist() == timesteps(n, spacing)
    close(theirs.alphas_cumprod, alphas_bar(), 1e-6)
    net, (_, past, act) = Net(gain=1.), batch()
    g = generator(3)
    with torch.no_grad():
        x = normal(past[:, 0].shape, g)
        for t in theirs.timesteps: x = theirs.step(net(x, (t + 1).expand(len(x)) / 1000, past, act), t, x, generator=g).prev_sample
    ours = DDPM(n, predict=predict, spacing=spacing, quantise="none")
    close(ours.sample(net, past, act, generator(3)), x, 2e-5)

def test_U21_noising():
    diffusers = pytest.importorskip("diffusers")
    theirs, t = diffusers.DDPMScheduler(), torch.tensor([0, 500, 999])
    x, noise = normal((2, 3, 3, 4, 4), generator(4))
    abar = alphas_bar()[t].view(-1, 1, 1, 1)
    close(abar.sqrt() * x + (1 - abar).sqrt() * noise, theirs.add_noise(x, noise, t), 1e-6)


# Theory

def test_published_defaults():
    assert (NoiseConfig().log_mean, NoiseConfig().log_std, NoiseConfig().data) == (-.4, 1.2, .5)
    assert (SamplerConfig().steps, SamplerConfig().sigma_min, SamplerConfig().sigma_max, SamplerConfig().rho) == (3, .002, 5., 7.)

@check(half=st.floats(.2, 3), width=st.floats(.05, .5), right=st.floats(.05, .95), sigma=st.floats(.1, 5))
def test_minimal_error_is_less_than_a_guess(half, width, right, sigma):
    m = theory.two_modes(half, width, right)
    variance = width ** 2 + half ** 2 * 4 * right * (1 - right)
    linear = variance * sigma ** 2 / (variance + sigma ** 2)
    assert 0 < theory.minimal_error(m, sigma) <= linear * (1 + 1e-3) + 1e-6                # the best straight line does no better
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    tanh = torch.tanh(x * half / (width ** 2 + sigma ** 2) + .5 * math.log(right / (1 - right)))
    keep = width ** 2 / (width ** 2 + sigma ** 2)
    close(m.denoise(x, sigma), half * tanh + keep * (x - half * tanh), 1e-9)

def test_one_number_decides_between_two_frames():
    "The flow between two frames stays on their line: the images of the two-frame mixture and its one-number form agree."
    m, start = theory.two_frames(.3), torch.randn(300, 3, 16, 16, generator=generator(5), dtype=torch.float64)
    c = SamplerConfig(3, init_std=5.)
    images = sample(m.denoise, start, c)
    axis = (m.centers[1] - m.centers[0]) / (m.centers[1] - m.centers[0]).norm()
    close((m.centers.mean(0) * axis).sum(), 0., 1e-9)                                       # the line's origin is the middle of the frames
    share = ((images * axis).sum((1, 2, 3)) > 0).double().mean()
    close(share, theory.sampled_share(.3, c, (start * axis).sum((1, 2, 3))))
