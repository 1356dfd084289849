"One update against d3rlpy's, an independent implementation, on copied weights, batch and noise (recorded by golden/make_d3rlpy_updates.py)."
from pathlib import Path

import numpy as np
import pytest
import torch

from rlpapers.offline.cql import CQL, CQLConfig
from rlpapers.offline.data import Transitions
from rlpapers.offline.networks import Params, descend, mlp, polyak
from rlpapers.offline.policies import temperature_loss
from rlpapers.offline.td3bc import actor_loss
from rlpapers.offline.trainer import weighted_loss

OBS, ACT, WIDTH, LR = 5, 2, 16, 3e-4
ACTOR, CRITIC = (OBS, WIDTH, WIDTH, ACT), (OBS + ACT, WIDTH, WIDTH, 1)
GOLDEN = np.load(Path(__file__).parent/"golden"/"d3rlpy_updates.npz", allow_pickle=False)


def flat(prefix, layers=("0", "1", "2")):
    "A recorded network as our flat parameters: Linear stores (out, in), we store (in, out)."
    return torch.cat([torch.as_tensor(x).reshape(-1) for i in layers for x in (GOLDEN[f"{prefix}/{i}/weight"].T, GOLDEN[f"{prefix}/{i}/bias"])])


def stack(algo, when, name): return torch.stack([flat(f"{algo}/{when}/{name}{j}") for j in range(2)])[None]


def close(ours, theirs): torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=1e-5, rtol=1e-5)


def q_values(theta, s, a): return mlp(theta, torch.cat([s, a], -1)[:, None], CRITIC, False).squeeze(-1)   # (R, critics, B)


@pytest.fixture
def td3bc():
    "Recorded batch with a leading run dimension."
    return {k: torch.as_tensor(GOLDEN[f"td3bc/batch/{k}"])[None] for k in ("s", "a", "r", "s2", "d")}


def target_of(b):
    noise = (.2 * torch.as_tensor(GOLDEN["td3bc/noise"])).clamp(-.5, .5)
    a2 = (mlp(flat("td3bc/before/target_actor")[None], b["s2"], ACTOR, False).tanh() + noise).clamp(-1, 1)
    return q_values(stack("td3bc", "before", "target"), b["s2"], a2).amin(1)


def test_td3bc_target(td3bc): close(target_of(td3bc)[0], GOLDEN["td3bc/target"])


def test_td3bc_critics(td3bc):
    b, params = td3bc, Params.create(stack("td3bc", "before", "critic"))
    leaf = params.leaf()
    loss = weighted_loss((b["r"] + .99 * (1 - b["d"]) * target_of(b))[:, None] - q_values(leaf, b["s"], b["a"])).sum()
    close(loss.detach(), GOLDEN["td3bc/loss/critic_loss"])
    close(torch.autograd.grad(loss, leaf, retain_graph=True)[0], stack("td3bc", "grad", "critic"))
    descend(loss, leaf, params, LR)
    close(params.theta, stack("td3bc", "after", "critic"))


def test_td3bc_actor_with_the_updated_critics(td3bc):
    b, params = td3bc, Params.create(flat("td3bc/before/actor")[None])
    leaf = params.leaf()
    pi = mlp(leaf, b["s"], ACTOR, False).tanh()
    loss = actor_loss(q_values(stack("td3bc", "after", "critic")[:, :1], b["s"], pi)[:, 0], pi - b["a"], alpha=2.5).sum()
    close(loss.detach(), GOLDEN["td3bc/loss/actor_loss"])
    close(torch.autograd.grad(loss, leaf, retain_graph=True)[0][0], flat("td3bc/grad/actor"))
    descend(loss, leaf, params, LR)
    close(params.theta[0], flat("td3bc/after/actor"))


def test_td3bc_targets():
    for target, online in ((stack("td3bc", "before", "target"), stack("td3bc", "after", "critic")),
                           (flat("td3bc/before/target_actor"), flat("td3bc/after/actor"))):
        polyak(target, online, .005)
        close(target, stack("td3bc", "after", "target") if target.dim() == 3 else flat("td3bc/after/target_actor"))


class RecordedBatch:
    "The recorded batch and draws of CQL, by the names that our agent asks for; target actions are d3rlpy's, the mode."
    def __init__(self):
        for k in ("s", "a", "r", "s2", "d"): setattr(self, k, torch.as_tensor(GOLDEN[f"cql/batch/{k}"])[None])

    def normal(self, name, *shape):
        if name == "next": return torch.zeros(1, *shape)
        return torch.as_tensor(GOLDEN["cql/" + {"policy": "noise_pi", "here": "noise_s", "there": "noise_s2"}[name]])[None].view(1, *shape)

    def uniform(self, name, *shape): return torch.as_tensor(GOLDEN["cql/uniform"]).transpose(0, 1)[None].view(1, *shape)


def cql_actor(when):
    "The recorded actor with its two heads as one; scale 1 and shift 0 of log sigma, which d3rlpy does not have."
    heads = [np.concatenate([GOLDEN[f"cql/{when}/actor/{h}/{k}"] for h in ("mu", "log_std")]) for k in ("weight", "bias")]
    parts = [flat(f"cql/{when}/actor", ("0", "1")), *(torch.as_tensor(x).reshape(-1) for x in (heads[0].T, heads[1]))]
    return torch.cat([*parts, torch.tensor([1., 0.])])[None]


@pytest.fixture
def cql():
    "Our agent with d3rlpy's weights."
    zero, no = np.zeros((4, 1), np.float32), np.zeros(4, bool)
    data = Transitions(zero.repeat(OBS, 1), zero.repeat(ACT, 1), zero[:, 0], zero.repeat(OBS, 1), no, no, np.zeros(4, int))
    config = CQLConfig(seeds=(0,), variants=("no LayerNorm",), width=WIDTH, batch=32, actor_depth=2, critic_depth=2, lr=LR, policy_lr=LR, pretrain=0)
    agent = CQL(config, data)
    for name, theta in (("actor", cql_actor("before")), ("critic", stack("cql", "before", "critic"))): agent.nets[name] = Params.create(theta)
    agent.targets["critic"] = stack("cql", "before", "target")
    return agent, RecordedBatch(), agent.groups()[0]


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
