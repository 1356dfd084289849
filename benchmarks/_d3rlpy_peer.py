"""Serves d3rlpy to `offline_peers.py`; runs in d3rlpy's own environment (see tests/golden/make_d3rlpy_updates.py for its packages).

A request is a line `algorithm width layer_norm batch updates`; the answer is a line with the CPU seconds of sampling that many batches and of
as many updates. Algorithms are made once and kept. The data are read from the .npz named on the command line.
"""
import sys
import time
import warnings
from functools import lru_cache

import numpy as np

warnings.filterwarnings("ignore")   # of gym, which d3rlpy imports
stdout, sys.stdout = sys.stdout, sys.stderr     # d3rlpy logs to stdout

import d3rlpy  # noqa: E402
import torch  # noqa: E402
from d3rlpy.models.encoders import VectorEncoderFactory  # noqa: E402

torch.set_num_threads(1)
arrays = np.load(sys.argv[1])
data = d3rlpy.dataset.MDPDataset(arrays["obs"], arrays["act"], arrays["rew"][:, None], arrays["terminal"].astype(np.float32),
                                 timeouts=arrays["timeout"].astype(np.float32))


@lru_cache(None)
def algorithm(name: str, width: int, layer_norm: int, batch: int):
    "TD3+BC with two critics, or SAC with ten: two hidden layers in every network."
    encoder = VectorEncoderFactory([width, width], use_layer_norm=bool(layer_norm))
    shared = dict(actor_encoder_factory=encoder, critic_encoder_factory=encoder, batch_size=batch)
    config = d3rlpy.algos.TD3PlusBCConfig(**shared) if name == "td3bc" else d3rlpy.algos.SACConfig(n_critics=10, **shared)
    algo = config.create(device="cpu:0")
    algo.build_with_dataset(data)
    return algo


for line in sys.stdin:
    name, *numbers = line.split()
    width, layer_norm, batch, updates = map(int, numbers)
    algo, batches, seconds = algorithm(name, width, layer_norm, batch), [], [0., 0.]
    for _ in range(updates):
        start = time.process_time()
        rows = data.sample_transition_batch(batch)
        sampled = time.process_time()
        algo.update(rows)
        seconds[0] += sampled - start
        seconds[1] += time.process_time() - sampled
    print(*seconds, file=stdout, flush=True)
