"""Record one TD3+BC and one CQL update of d3rlpy 2.8.1, an independent implementation, as `d3rlpy_updates.npz`.

Run once, in an environment of its own, for d3rlpy pins gymnasium 1.0 and rlpapers needs a later one:

    python3.11 -m venv d3rlpy-env && . d3rlpy-env/bin/activate
    pip install torch==2.13.0 gym gymnasium==1.0.0 structlog colorama dataclasses-json click h5py tqdm scikit-learn
    pip install --no-deps d3rlpy==2.8.1
    python tests/golden/make_d3rlpy_updates.py

Sizes: observations 5, actions 2, batch 32, two hidden layers of 16 units, ReLU, no LayerNorm, two critics; gamma .99, tau .005,
Adam at 3e-4 with fresh moments. All arrays are float32 and plain, so `numpy.load(path, allow_pickle=False)` reads them.

Arrays, with `<algo>` = td3bc or cql:

    <algo>/batch/{s (32, 5), a (32, 2), r (32,), s2 (32, 5), d (32,)}            d = 1 where the episode terminated
    <algo>/<when>/<net>/<layer>/{weight (out, in), bias (out,)}                  torch.nn.Linear's layout
        <when>: before, after, and grad (what Adam got)
        <net>: actor, critic0, critic1, and when before and after also target0, target1 (td3bc: also target_actor)
        <layer>: 0, 1, 2 = input, hidden, head; the Gaussian actor of cql has the heads mu and log_std in place of 2
    <algo>/target (32,)                                                          d3rlpy's bootstrap value, without r and gamma
    <algo>/loss/<name> ()                                                        as d3rlpy reports it, see below
    td3bc/noise (32, 2)                                                          standard normal draws behind the target action
    cql/noise_s (10, 32, 2), cql/noise_s2 (10, 32, 2)                            draws behind the policy's actions at s and at s2
    cql/uniform (32, 10, 2)                                                      uniform actions in [-1, 1]
    cql/noise_pi (32, 2)                                                         draws behind the action of the actor's loss
    cql/log_temp/{before, after, grad} ()                                        log of the entropy temperature

What d3rlpy does, where implementations differ:

    TD3+BC  actor and targets are updated after the critics, with the updated critics. alpha = 2.5, noise .2 clipped at .5.
            losses: critic_loss = sum over critics of the mean squared error; actor_loss with bc_loss = mean over batch and action.
    CQL     (settings here: conservative weight 10, 10 actions of each kind, threshold 0, no Lagrange multiplier)
            - y = r + gamma (1 - d) min_j Q'_j(s2, tanh(mu(s2))): the policy's mode, no entropy in the target.
            - conservative term, for each critic: mean_b[logsumexp over 30 of (Q(s, a_i) - log density(a_i)) - Q(s, a)], with actions
              from pi(.|s), pi(.|s2) (both evaluated at s, actions and densities detached) and uniform (density 2^-act);
              temperature 1, no "- log 30".
            - critic_loss = sum_j mean squared error_j + 10 sum_j conservative_j; conservative_loss is the second part.
            - log density of a = tanh(u): normal's minus sum of 2 (log 2 - u - softplus(-2u)), the exact form; the paper's code has
              log(1 - tanh(u)^2 + 1e-6). Actions stay clear of +-1 here so that the two agree to about 1e-6.
            - log_std is the head's output clamped to [-20, 2], no learned scale or offset.
            - order: critics; then one action at s with its log density; temperature, loss -mean(exp(log_temp) (log pi - act));
              actor, loss mean(temp log pi - min_j Q_j(s, a)) with the updated temperature and critics; target critics.
"""
import warnings
from pathlib import Path

import numpy as np

warnings.filterwarnings("ignore")   # of gym, which d3rlpy imports

import d3rlpy  # noqa: E402
import torch  # noqa: E402
from d3rlpy.models.encoders import VectorEncoderFactory  # noqa: E402
from d3rlpy.torch_utility import TorchMiniBatch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

OBS, ACT, BATCH, WIDTH, SAMPLES, LR = 5, 2, 32, 16, 10, 3e-4
OUT = Path(__file__).with_name("d3rlpy_updates.npz")


class Draws(TorchDispatchMode):
    "Collects what random operations return, in order."
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.randn, torch.ops.aten.normal, torch.ops.aten.normal_, torch.ops.aten.uniform_):
            self.found.append(out.detach().clone())
        return out


def make_batch() -> TorchMiniBatch:
    "A fixed batch with a few terminations."
    g = np.random.default_rng(7)
    def normal(*shape): return torch.as_tensor(g.standard_normal(shape, np.float32))
    a, done = normal(BATCH, ACT).tanh() * .9, torch.as_tensor(np.arange(BATCH) % 8 == 3).float()[:, None]
    return TorchMiniBatch(observations=normal(BATCH, OBS), actions=a, rewards=normal(BATCH, 1), next_observations=normal(BATCH, OBS),
                          next_actions=a, returns_to_go=torch.zeros(BATCH, 1), terminals=done, intervals=torch.ones(BATCH, 1), device="cpu:0")


def networks(modules) -> dict:
    "Our names of d3rlpy's networks."
    nets = {"actor": modules.policy}
    for j, (q, t) in enumerate(zip(modules.q_funcs, modules.targ_q_funcs)): nets.update({f"critic{j}": q, f"target{j}": t})
    if hasattr(modules, "targ_policy"): nets["target_actor"] = modules.targ_policy
    return nets


def linears(net) -> dict:
    "The linear layers of a network by our names."
    layers = {str(i): m for i, m in enumerate(m for m in net._encoder._layers if isinstance(m, torch.nn.Linear))}
    if hasattr(net, "_fc"): return {**layers, str(len(layers)): net._fc}
    return {**layers, "mu": net._mu, "log_std": net._logstd}


def snapshot(nets: dict, when: str, grad: bool = False) -> dict:
    "Weights or gradients of some networks as arrays."
    def array(p): return (p.grad if grad else p).detach().numpy().copy()
    return {f"{when}/{n}/{i}/{k}": array(p) for n, net in nets.items() for i, layer in linears(net).items() for k, p in layer.named_parameters()}


def perturb(nets: dict) -> None:
    "Targets apart from the online networks; Gaussian actors of moderate width."
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in (n for n in nets if n.startswith("target")):
            for p in nets[name].parameters(): p.add_(.1 * torch.randn(p.shape, generator=g))
        if hasattr(nets["actor"], "_logstd"): nets["actor"]._logstd.bias.sub_(1.5)


def record(config, batch: TorchMiniBatch) -> tuple[dict, list]:
    "One update: arrays before and after, gradients as the optimisers got them, losses, and the random draws in order."
    torch.manual_seed(0)
    algo = config.create(device="cpu:0")
    algo.create_impl((OBS,), ACT)
    modules, nets = algo.impl.modules, networks(algo.impl.modules)
    perturb(nets)
    out = snapshot(nets, "before")
    critics = {k: n for k, n in nets.items() if k.startswith("critic")}
    def keep(which): return lambda *_: out.update(snapshot(which, "grad", grad=True))
    modules.critic_optim.optim.register_step_pre_hook(keep(critics))
    modules.actor_optim.optim.register_step_pre_hook(keep({"actor": nets["actor"]}))
    if hasattr(modules, "log_temp"):
        temp = next(modules.log_temp.parameters())
        def read(x): return x.detach().numpy().copy().reshape(())
        out["log_temp/before"] = read(temp)
        modules.temp_optim.optim.register_step_pre_hook(lambda *_: out.update({"log_temp/grad": read(temp.grad)}))
    compute = algo.impl.compute_target
    def compute_target(b):
        y = compute(b)
        out["target"] = y.numpy()[:, 0].copy()
        return y
    algo.impl.compute_target = compute_target
    draws = Draws()
    with draws: losses = algo.impl.update(batch, 0)     # grad_step 0: TD3+BC updates its actor too
    out.update(snapshot(nets, "after"))
    if hasattr(modules, "log_temp"): out["log_temp/after"] = read(temp)
    out.update({f"loss/{k}": np.float32(v) for k, v in losses.items()})
    return out, [x.numpy() for x in draws.found]


def main() -> None:
    torch.set_num_threads(1)
    batch = make_batch()
    encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), VectorEncoderFactory([WIDTH, WIDTH]))
    shared = dict(actor_learning_rate=LR, critic_learning_rate=LR, gamma=.99, tau=.005, n_critics=2, batch_size=BATCH, **encoders)
    td3bc, (noise,) = record(d3rlpy.algos.TD3PlusBCConfig(alpha=2.5, target_smoothing_sigma=.2, target_smoothing_clip=.5, **shared), batch)
    td3bc["noise"] = noise
    cql_config = d3rlpy.algos.CQLConfig(temp_learning_rate=LR, alpha_learning_rate=0., initial_alpha=1., alpha_threshold=0., conservative_weight=10.,
                                        n_action_samples=SAMPLES, soft_q_backup=False, max_q_backup=False, **shared)
    cql, (noise_s, noise_s2, uniform, noise_pi) = record(cql_config, batch)
    cql.update(noise_s=noise_s, noise_s2=noise_s2, uniform=uniform.reshape(BATCH, SAMPLES, ACT), noise_pi=noise_pi)
    fields = dict(s=batch.observations, a=batch.actions, r=batch.rewards[:, 0], s2=batch.next_observations, d=batch.terminals[:, 0])
    arrays = {f"{algo}/{k}": v for algo, found in (("td3bc", td3bc), ("cql", cql))
              for k, v in {**found, **{f"batch/{k}": v.numpy() for k, v in fields.items()}}.items()}
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values())
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT.name}: {len(arrays)} arrays, {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__": main()
