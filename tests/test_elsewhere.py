"The pretended accelerator refuses what a real one refuses, and computes what the CPU computes."
import numpy as np
import pytest
import torch
from elsewhere import TwoDevices, elsewhere


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))


def trained(device):
    "State after three updates."
    net, x = network().to(device), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2, fused=True)
    for _ in range(3):
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()
    return {k: v.cpu() for k, v in net.state_dict().items()}


def test_training_there_is_training_here():
    here = trained("cpu")
    with elsewhere(): there = trained("cuda")
    for k in here: torch.testing.assert_close(there[k], here[k])


@pytest.mark.parametrize("mix", [
    lambda x: x + torch.ones(3), lambda x: torch.cat([x, torch.ones(3)]), lambda x: torch.where(torch.ones(3) > 0, x, x), lambda x: torch.ones(3)[x.long()] * x,
    lambda x: x.numpy(), lambda x: np.asarray(x), lambda x: torch.multinomial(x.softmax(-1), 1, generator=torch.Generator()),
    lambda x: torch.randn(3, device="cuda", generator=torch.Generator()), lambda x: torch.randn(3, generator=torch.Generator("cuda")), lambda x: network()(x.expand(2, 3, 3, 3))])
def test_two_devices_do_not_mix(mix):
    with elsewhere():
        x = torch.zeros(3, device="cuda")
        with pytest.raises(TwoDevices): mix(x)


def test_what_a_gpu_allows_is_allowed():
    with elsewhere():
        x = torch.arange(4., device="cuda")
        assert x.device.type == "cuda" and x.is_cuda and type(x * torch.tensor(2.)) is type(x)      # a number may stay on the CPU
        assert x[torch.tensor([3, 0])].tolist() == [3, 0] and x.max().item() == 3                   # and so may indices
        x[:2] = torch.ones(2)                                                                       # and values to be copied
        assert x.cpu().numpy().tolist() == [1, 1, 2, 3]
        assert torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).is_cuda


def test_nothing_of_it_stays():
    real = torch.Generator
    with pytest.raises(KeyError), elsewhere(): raise KeyError
    assert torch.Generator is real and not torch.__future__.get_overwrite_module_params_on_conversion()
    net = network()
    weight = net[0].weight
    assert net.to("cpu")[0].weight is weight and type(weight.data.to("cpu")) is torch.Tensor
