"Every algorithm with its tensors on another device, in eager training; `08a_capture` records the same updates into CUDA graphs."
from dataclasses import replace

import numpy as np
import pytest
from elsewhere import elsewhere

from rlpapers.core.record import Work
from rlpapers.offline import grids

ALL = grids.ALGORITHMS | grids.ONLINE


@pytest.mark.parametrize("name", ALL)
def test_every_algorithm_keeps_to_one_device(name):
    "The plain networks there also agree with the ones by hand here, up to the rounding of a few updates."
    fn, few = ALL[name][1], dict(online_steps=6, warmup=2, save_every=3) if name == "online" else dict(clone_updates=2) if "EDAC" in name else {}
    c = replace(grids.settings(name, "CartPole", "medium", "smoke", variants=("none",) if name == "BC" else grids.MAIN), updates=6, pretrain=3, eval_every=6, **few)
    here = fn(c, Work()).metrics
    with elsewhere(): there = fn(replace(c, device="cuda"), Work()).metrics
    np.testing.assert_allclose(there.select_dtypes("number"), here.select_dtypes("number"), rtol=1e-3, atol=1e-3)
