"Every kind of run that the grids of paper scale ask for: it works, with few updates of few tasks, and all its tensors meet on one device."
from dataclasses import replace

import numpy as np
import pytest
from elsewhere import elsewhere

from rlpapers.core.record import Work
from rlpapers.poem import encoders, grids, training
from rlpapers.poem.mazes import MazeConfig
from rlpapers.poem.sources import SOURCES
from rlpapers.poem.views import make_images

FEW = dict(updates=2, eval_every=2, eval_tasks=1, test_tasks=2)
MAZES = MazeConfig(mazes=150, test=30, items=3, queries=8)


def kinds(config):
    "One run of each kind with this config, or of a decoder of such a run: seeds and sources apart, which differ in content, they are alike."
    found = {}
    for notebook, grid in grids.EXPERIMENTS.items():
        for name, (fn, c) in grid("paper", 1).items():
            run = getattr(c, "run", c)
            if not isinstance(run, config): continue
            mode = SOURCES[run.source].mode if config is training.ViewRun and run.learner == "POEM" else ""      # grey images with one learner
            found.setdefault((fn, run.learner, run.counts, run.precision, getattr(run, "views", ""), mode), pytest.param(fn, c, id=f"{notebook}, {name}"))
    return found.values()


def noise(source, part, each=6, classes=4):
    "Images of a source's shape without its content."
    s = SOURCES[source]
    rng, count = np.random.default_rng(0), each * classes
    return make_images(rng.integers(256, size=(count, 1 if s.mode == "L" else 3, s.size, s.size), dtype=np.uint8), np.arange(classes).repeat(each), tuple("abcd"))


@pytest.mark.parametrize("fn, c", kinds(training.MazeRun))
def test_maze_runs_of_paper_scale(fn, c):
    run = getattr(c, "run", c)
    assert run.device == "cuda" and run.encoder == "pixels"
    where = "cpu" if run.learner == "GRU" else "cuda"       # a recurrent layer transposes in place, which the pretended device cannot
    small = replace(run, **FEW, channels=4, mazes=MAZES, eval_batch=1, device=where)
    if run is not c: small = replace(c, run=small, updates=2, eval_every=2, **(dict(mazes=20, steps=5) if hasattr(c, "steps") else {}))
    with elsewhere(): out = fn(small, Work())
    assert np.isfinite(out.metrics.select_dtypes("number").drop(columns="ratio", errors="ignore")).all(axis=None)


@pytest.mark.parametrize("fn, c", kinds(training.ViewRun))
def test_image_runs_of_paper_scale(fn, c, monkeypatch):
    monkeypatch.setattr(training, "read_images", noise)
    monkeypatch.setattr(training, "resnet18", lambda size, place, pretrained, inputs: encoders.resnet18(size, place, False, 32, inputs))
    assert c.device == "cuda" and c.encoder == "resnet18"
    small = replace(c, **FEW, classes=(1, 2), per_class=2, ways=(2, 3), support=(2, 3), queries=1, pretrain_batch=8, maml=replace(c.maml, steps=1), finetune=replace(c.finetune, steps=2))
    with elsewhere(): out = fn(small, Work())
    assert np.isfinite(out.metrics.drop(columns="ratio").select_dtypes("number")).all(axis=None)
