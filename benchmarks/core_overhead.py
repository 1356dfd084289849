"What the core costs: a run through the grid, a run found in the record, a checkpoint."
import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch

from rlpapers.core.checkpoint import load_checkpoint, save_checkpoint
from rlpapers.core.grid import run_grid
from rlpapers.core.record import Work
from rlpapers.offline.sweeps import FQIConfig, fqi_errors

RUNS = 8
CONFIGS = [FQIConfig(states=5, episodes=2, seeds=(seed,)) for seed in range(RUNS)]      # milliseconds each


def timed(fn, *args, **kwargs) -> tuple[float, object]:
    start = time.perf_counter()
    result = fn(*args, **kwargs)
    return time.perf_counter() - start, result


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):      # no progress lines
        root = Path(folder)
        for config in CONFIGS: fqi_errors(config, Work())                                # warm caches
        plain, _ = timed(lambda: [fqi_errors(c, Work()) for c in CONFIGS])
        here, _ = timed(run_grid, fqi_errors, CONFIGS, engine="here", root=root/"here")
        local, _ = timed(run_grid, fqi_errors, CONFIGS, engine="local", jobs=2, root=root/"local")
        cached, _ = timed(run_grid, fqi_errors, CONFIGS, engine="here", root=root/"here")
        state = {"weights": torch.randn(2_000_000), "step": 1}                           # 8 MB
        save = min(timed(save_checkpoint, root/"state", step, state)[0] for step in range(5))
        load = min(timed(load_checkpoint, root/"state")[0] for _ in range(5))
    for name, seconds in (("training alone", plain), ("grid, this process", here), ("grid, 2 worker processes", local), ("found in the record", cached)):
        print(f"{name:<26} {1000 * seconds / RUNS:8.1f} ms a run")
    print(f"{'checkpoint of 8 MB':<26} {1000 * save:8.1f} ms to save, {1000 * load:.1f} ms to load")


if __name__ == "__main__": main()
