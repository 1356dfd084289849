"One update against d3rlpy's, an independent implementation, on copied weights, batch and noise (recorded by golden/make_d3rlpy_updates.py)."
from pathlib import Path

import numpy as np
import pytest
import torch

from rlpapers.offline.networks import Params, descend, mlp, polyak
from rlpapers.offline.td3bc import actor_loss, critic_loss

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
    loss = critic_loss(q_values(leaf, b["s"], b["a"]), b["r"] + .99 * (1 - b["d"]) * target_of(b)).sum()
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
