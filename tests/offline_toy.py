"What tests of the offline algorithms share: random episodes, and work that dies."
import numpy as np

from rlpapers.core.record import Work
from rlpapers.offline.data import Transitions


def synthetic(n=300, seed=0, obs=3, act=2):
    "Random episodes of about 20 steps; half of them end truly, half by a cut."
    g = np.random.default_rng(seed)
    end = g.random(n) < .05
    end[-1] = True
    kind = g.random(n) < .5
    f = lambda *shape: g.normal(size=shape).astype(np.float32)
    return Transitions(f(n, obs), np.tanh(f(n, act)), f(n), f(n, obs), end & kind, end & ~kind, np.cumsum(np.append(0, end[:-1])))


class Killed(Exception): pass


class DyingWork(Work):
    "Dies right after its n-th save."
    def __init__(self, folder, saves):
        super().__init__(folder)
        self.left = saves

    def save(self, step, state):
        super().save(step, state)
        self.left -= 1
        if not self.left: raise Killed
