"One update against d3rlpy's, an independent implementation, on copied weights, batch and noise (recorded by golden/make_d3rlpy_updates.py)."
from pathlib import Path

import numpy as np
import pytest
import torch

from rlpapers.offline.cql import CQL, CQLConfig
from rlpapers.offline.data import Transitions
from rlpapers.offline.networks import Params, descend, mlp
from rlpapers.offline.policies import temperature_loss
from rlpapers.offline.td3bc import TD3BC, TD3BCConfig, actor_loss
from rlpapers.offline.trainer import weighted_loss

OBS, ACT, WIDTH, LR = 5, 2, 16, 3e-4
ACTOR, CRITIC = (OBS, WIDTH, WIDTH, ACT), (OBS + ACT, WIDTH, WIDTH, 1)
GOLDEN = np.load(Path(__file__).parent/"golden"/"d3rlpy_updates.npz", allow_pickle=False)


def flat(prefix, layers=("0", "1", "2")):
    "A recorded network as our flat parameters: Linear stores (out, in), we store (in, out)."
    return torch.cat([torch.as_tensor(x).reshape(-1) for i in layers for x in (GOLDEN[f"{prefix}/{i}/weight"].T, GOLDEN[f"{prefix}/{i}/bias"])])


def stack(algo, when, name): return torch.stack([flat(f"{algo}/{when}/{name}{j}") for j in range(2)])[None]


def close(ours, theirs): torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=1e-5, rtol=1e-5)


def zeros(n=4):
    "Data of the recorded shapes; agents need them to size their networks."
    no = np.zeros(n, bool)
    return Transitions(np.zeros((n, OBS), np.float32), np.zeros((n, ACT), np.float32), np.zeros(n, np.float32), np.zeros((n, OBS), np.float32), no, no, np.zeros(n, int))


SMALL = dict(seeds=(0,), variants=("no LayerNorm",), width=WIDTH, batch=32, actor_depth=2, critic_depth=2, lr=LR, pretrain=0)


class Recorded:
    "A recorded batch and its draws, by the names that our agents ask for."
    def __init__(self, algo, **draws):
        self.draws = {k: torch.as_tensor(x)[None] for k, x in draws.items()}
        for k in ("s", "a", "r", "s2", "d"): setattr(self, k, torch.as_tensor(GOLDEN[f"{algo}/batch/{k}"])[None])

    def normal(self, name, *shape): return self.draws[name].view(1, *shape)

    def uniform(self, name, *shape): return torch.as_tensor(GOLDEN["cql/uniform"]).transpose(0, 1)[None].view(1, *shape)


def theirs(when):
    "Networks and targets of TD3+BC as d3rlpy had them before or after its update."
    nets = dict(actor=flat(f"td3bc/{when}/actor")[None], critic=stack("td3bc", when, "critic"))
    return nets, dict(actor=flat(f"td3bc/{when}/target_actor")[None], critic=stack("td3bc", when, "target"))


@pytest.fixture
def td3bc():
    "Our agent with d3rlpy's weights, the recorded batch, and its one group of runs."
    agent = TD3BC(TD3BCConfig(**SMALL, alpha=2.5), zeros())
    nets, targets = theirs("before")
    for name in nets: agent.nets[name], agent.targets[name] = Params.create(nets[name]), targets[name].clone()
    return agent, Recorded("td3bc", target=GOLDEN["td3bc/noise"]), agent.groups()[0]


def gradients(agent, monkeypatch):
    "Gradients that reach an agent's optimisers, by network, in the order of their steps."
    seen, adam = [], Params.adam
    def spy(self, gradient, lr):
        seen.append((next((k for k, p in agent.nets.items() if p.theta.data_ptr() == self.theta.data_ptr()), None), gradient.clone()))
        return adam(self, gradient, lr)
    monkeypatch.setattr(Params, "adam", spy)
    return seen


def same(agent, nets, targets):
    for name in nets: close(agent.nets[name].theta, nets[name]), close(agent.targets[name], targets[name])


def test_td3bc_target(td3bc):
    agent, b, g = td3bc
    assert b.d.any() and not b.d.all()
    close(agent.td_target(b, g)[0], b.r[0] + .99 * (1 - b.d[0]) * torch.as_tensor(GOLDEN["td3bc/target"]))


def test_td3bc_clips_noise_and_target_action(td3bc):
    "The recorded draws are mild; louder ones must end at +-.5 around the target actor's action, and inside [-1, 1]."
    agent, b, g = td3bc
    b.draws["target"], b.s2 = 1e6 * b.draws["target"], 5 * b.s2         # far states make bold actions, for which the bounds matter
    pi = mlp(flat("td3bc/before/target_actor")[None], b.s2, ACTOR, False).tanh()
    a2 = (pi + .5 * b.draws["target"].sign()).clamp(-1, 1)
    assert (a2.abs() == 1).any()
    q = mlp(stack("td3bc", "before", "target"), torch.cat([b.s2, a2], -1)[:, None], CRITIC, False).squeeze(-1)
    close(agent.td_target(b, g), b.r + .99 * (1 - b.d) * torch.minimum(q[:, 0], q[:, 1]))


def test_td3bc_critics(td3bc, monkeypatch):
    agent, b, g = td3bc
    q = agent.q(agent.nets["critic"].theta, b.s, b.a, g)
    close(weighted_loss(agent.td_target(b, g)[:, None] - q)[0], GOLDEN["td3bc/loss/critic_loss"])
    seen = gradients(agent, monkeypatch)
    agent.improve_critic(b, g)
    (name, gradient), = seen
    assert name == "critic"
    close(gradient, stack("td3bc", "grad", "critic"))
    close(agent.nets["critic"].theta, stack("td3bc", "after", "critic"))


def test_td3bc_actor_with_the_updated_critics(td3bc, monkeypatch):
    agent, b, g = td3bc
    agent.improve_critic(b, g)
    pi = agent.policy(agent.nets["actor"].theta, b.s, g)
    loss = actor_loss(agent.q(agent.nets["critic"].theta, b.s, pi, g)[:, 0], pi - b.a, agent.config.alpha)
    close(loss[0], GOLDEN["td3bc/loss/actor_loss"])
    seen = gradients(agent, monkeypatch)
    agent.improve_actor(b, g)
    (name, gradient), = seen
    assert name == "actor"
    close(gradient[0], flat("td3bc/grad/actor"))
    close(agent.nets["actor"].theta[0], flat("td3bc/after/actor"))


def test_td3bc_targets_follow(td3bc):
    agent, b, g = td3bc
    agent.improve_critic(b, g), agent.improve_actor(b, g), agent.update_targets(g)
    same(agent, *theirs("after"))


def test_td3bc_whole_update_is_d3rlpys(td3bc, monkeypatch):
    "Critics, then the actor, then all targets: an update with an even number."
    agent, b, g = td3bc
    seen = gradients(agent, monkeypatch)
    agent.improve(b, g, 2)
    assert [name for name, _ in seen] == ["critic", "actor"]
    same(agent, *theirs("after"))


def test_td3bc_odd_updates_move_critics_only(td3bc):
    agent, b, g = td3bc
    agent.improve(b, g, 1)
    nets, targets = theirs("before")
    same(agent, nets | dict(critic=stack("td3bc", "after", "critic")), targets)


def cql_actor(when):
    "The recorded actor with its two heads as one; scale 1 and shift 0 of log sigma, which d3rlpy does not have."
    heads = [np.concatenate([GOLDEN[f"cql/{when}/actor/{h}/{k}"] for h in ("mu", "log_std")]) for k in ("weight", "bias")]
    parts = [flat(f"cql/{when}/actor", ("0", "1")), *(torch.as_tensor(x).reshape(-1) for x in (heads[0].T, heads[1]))]
    return torch.cat([*parts, torch.tensor([1., 0.])])[None]


@pytest.fixture
def cql():
    "Our agent with d3rlpy's weights; target actions are d3rlpy's, the mode."
    agent = CQL(CQLConfig(**SMALL, policy_lr=LR), zeros())
    for name, theta in (("actor", cql_actor("before")), ("critic", stack("cql", "before", "critic"))): agent.nets[name] = Params.create(theta)
    agent.targets["critic"] = stack("cql", "before", "target")
    draws = {"policy": "noise_pi", "here": "noise_s", "there": "noise_s2"}
    return agent, Recorded("cql", next=np.zeros((32, ACT), np.float32), **{k: GOLDEN[f"cql/{v}"] for k, v in draws.items()}), agent.groups()[0]


def test_cql_target_and_critics(cql):
    agent, b, g = cql
    close((agent.td_target(b, g) - b.r)[0] / .99, GOLDEN["cql/target"] * (1 - GOLDEN["cql/batch/d"]))
    leaf = agent.nets["critic"].leaf()
    q = agent.q(leaf, b.s, b.a, g)
    gap = agent.regulariser(leaf, q, b, g, pretraining=False)
    close(gap[0].detach(), GOLDEN["cql/loss/conservative_loss"])
    loss = weighted_loss(agent.td_target(b, g)[:, None] - q) + gap
    close(loss[0].detach(), GOLDEN["cql/loss/critic_loss"])
    close(torch.autograd.grad(loss.sum(), leaf)[0], stack("cql", "grad", "critic"))
    agent.improve_critic(b, g)
    close(agent.nets["critic"].theta, stack("cql", "after", "critic"))


def test_cql_temperature_then_actor_in_d3rlpys_order(cql):
    agent, b, g = cql
    agent.improve_critic(b, g)
    _, lp = agent.actor_gradient(b, g, cloning=False)
    log_alpha = agent.nets["log_alpha"]
    leaf = log_alpha.leaf()
    loss = temperature_loss(leaf, lp, ACT).sum()
    close(torch.autograd.grad(loss, leaf, retain_graph=True)[0][0, 0], GOLDEN["cql/log_temp/grad"])
    descend(loss, leaf, log_alpha, LR)
    close(log_alpha.theta[0, 0], GOLDEN["cql/log_temp/after"])
    gradient, _ = agent.actor_gradient(b, g, cloning=False)
    close(gradient[:, :-2], cql_actor("grad")[:, :-2])
    agent.nets["actor"].adam(gradient, LR)
    close(agent.nets["actor"].theta[:, :-2], cql_actor("after")[:, :-2])


def test_cql_targets(cql):
    agent, b, g = cql
    agent.improve_critic(b, g)
    agent.update_targets(g)
    close(agent.targets["critic"], stack("cql", "after", "target"))
