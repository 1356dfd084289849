"""Training functions for tests: workers import them by name."""
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rlpapers.core.record import LineConfig, RunOutput, Work


@dataclass(frozen=True)
class SlowConfig(LineConfig):
    "A fit that sleeps between steps, stops half-way while `<seed>.hold` is there, and leaves its process id where tests find it."
    sleep: float = .02
    trace: str = ""          # folder for traces; "" = none
    deaths: int = 0          # dies that many times half-way (SIGKILL to itself)


def slow_fit(config: SlowConfig, work: Work) -> RunOutput:
    "fit_line in slices, slowly."
    trace = Path(config.trace) if config.trace else None
    state = work.load()
    start, (done, values) = state or (0, (0, []))
    if trace:
        with open(trace/f"{config.seed}.starts", "a") as f: f.write(f"{os.getpid()} {start}\n")
    for step in range(start, config.steps):
        time.sleep(config.sleep)
        values = values + [config.seed*1000 + step]
        work.save(step + 1, (step + 1, values))
        work.report(step + 1, config.steps)
        if trace and step + 1 == config.steps//2 and (hold := trace/f"{config.seed}.hold").exists():
            (trace/f"{config.seed}.held").touch()
            while hold.exists(): time.sleep(.01)
        if trace and step + 1 == config.steps//2 and len((trace/f"{config.seed}.starts").read_text().splitlines()) <= config.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
    return RunOutput(pd.DataFrame({"step": range(config.steps), "value": values}))
