"""The record: keys, staleness, concurrent writers, damage."""
import importlib, json, multiprocessing as mp, sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from rlpapers.core import record
from rlpapers.core.record import CorruptRun, LineConfig, NotExported, RunOutput, Work, code_hash, find_run, fit_line, promote, read_run, recorded_runs, run_key, write_run


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A package on disk with a training function, a helper in another module and an unrelated function."
    folder = tmp_path/"toypkg"
    folder.mkdir()
    (folder/"__init__.py").write_text("")
    files = {"helper.py": "SCALE = 2\n\ndef loss(x):\n    return SCALE*x\n\ndef unrelated(x):\n    return x\n",
             "train.py": "from dataclasses import dataclass\nfrom .helper import loss as the_loss\n\n@dataclass(frozen=True)\nclass Config:\n    seed: int = 0\n\ndef train(config: Config, work):\n    return the_loss(config.seed)\n"}
    for name, text in files.items(): (folder/name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    def hash_now():
        for name in [m for m in sys.modules if m.startswith("toypkg")]: del sys.modules[name]
        record._definitions.cache_clear(), record.code_hash.cache_clear()
        importlib.invalidate_caches()
        return code_hash(importlib.import_module("toypkg.train").train)
    def edit(name, old, new):
        text = (folder/name).read_text()
        assert old in text
        (folder/name).write_text(text.replace(old, new))
        return hash_now()
    return hash_now, edit


@pytest.mark.parametrize("name, old, new, stale", [
    ("train.py", "return the_loss(config.seed)", "return the_loss(config.seed) + 1", True),     # the function itself
    ("helper.py", "return SCALE*x", "return SCALE*x*x", True),                                  # a helper across modules, renamed on import
    ("helper.py", "SCALE = 2", "SCALE = 3", True),                                              # a constant the helper reads
    ("train.py", "seed: int = 0", "seed: int = 1", True),                                       # a default of its config
    ("helper.py", "return x\n", "return -x\n", False),                                          # something it does not reach
    ("helper.py", "def loss(x):", 'def loss(x):\n    "Now with words."', False),               # a docstring
    ("train.py", "def train", "# a remark\ndef train", False),                                  # a comment
    ("helper.py", "return SCALE*x", "return SCALE * x", False),                                 # layout
])
def test_code_hash_follows_what_the_function_reaches(package, name, old, new, stale):
    hash_now, edit = package
    assert (hash_now() != edit(name, old, new)) == stale


def test_canonical_tree_is_the_same_in_every_python():
    "Pinned, because ast.unparse and ast.dump differ between 3.11 and 3.12."
    import ast, hashlib
    text = "@deco\nclass A(B):\n  'Words.'\n  def f(self, *x: int, y=f\"{a!r:>{w}} {b['k']}\") -> None:\n    'More.'\n    return [i for i in x if i] or {**y} # end\n"
    assert hashlib.sha256(json.dumps(record._canonical(ast.parse(text).body[0])).encode()).hexdigest()[:12] == "fb191f6a5324"


def test_output_tensors_may_share_memory(tmp_path):
    w = torch.arange(4.)
    run = write_run(tmp_path, fit_line, LineConfig(), RunOutput(pd.DataFrame({"x": [1]}), {"a": w, "b": w[:2], "c": w.reshape(2, 2).T}), 1.)
    assert read_run(run.folder).tensors["c"].tolist() == [[0., 2.], [1., 3.]]


def test_a_config_of_another_class_is_refused(tmp_path):
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Wider(LineConfig):
        extra: int = 0
    with pytest.raises(record.BadConfig, match="extra"): run_key(fit_line, Wider())
    with pytest.raises(record.BadConfig, match="slopes"): record.config_object(fit_line, {"slopes": 1.})
    with pytest.raises(TypeError, match="RunOutput"): write_run(tmp_path, fit_line, LineConfig(), pd.DataFrame(), 1.)


def test_key_depends_on_function_config_and_inputs():
    assert run_key(fit_line, LineConfig()) == run_key(fit_line, LineConfig(seed=0))
    assert len({run_key(fit_line, LineConfig(seed=s, lr=lr)) for s in range(5) for lr in (.1, .2)}) == 10
    class WithData(LineConfig):
        def inputs(self): return {"data": "v2"}
    assert run_key(fit_line, WithData()) != run_key(fit_line, LineConfig())


def test_local_functions_are_refused():
    def inner(config, work): ...
    with pytest.raises(NotExported, match="export"): run_key(inner, LineConfig())


def _write(root, seed, times):
    torch.set_num_threads(1)
    for i in range(times):
        frame = pd.DataFrame({"x": [float(seed)]*200, "turn": i})
        write_run(root, fit_line, LineConfig(seed=77), RunOutput(frame, {"w": torch.full((50,), float(seed))}), 1.)


def test_concurrent_writers_never_corrupt_a_run(tmp_path):
    "Four processes write the same run 30 times each, with different content, while we read: every read is one writer's, whole."
    _write(tmp_path, 9, 1)
    context = mp.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, seed, 30)) for seed in range(4)]
    for w in writers: w.start()
    reads = 0
    while any(w.is_alive() for w in writers):
        run = find_run(fit_line, LineConfig(seed=77), (tmp_path,))
        try: metrics, tensors = run.metrics, run.tensors
        except CorruptRun: continue                                  # another writer's files replaced them in between: look the run up again
        assert metrics.x.nunique() == 1 and tensors["w"].eq(tensors["w"][0]).all()
        reads += 1
    for w in writers: w.join()
    assert all(w.exitcode == 0 for w in writers) and reads > 10
    run = find_run(fit_line, LineConfig(seed=77), (tmp_path,))
    assert run.metrics.x.iloc[0] == run.tensors["w"][0].item()       # metrics and tensors of the same writer
    assert len(list(run.folder.glob("*-*"))) == 2                    # nothing left of the others


def test_killed_writer_leaves_the_previous_run(tmp_path):
    from test_checkpoint import forked, kill_after
    import os, random
    _write(tmp_path, 5, 1)
    rng, kills = random.Random(1), 0
    for _ in range(30):
        kills += os.WIFSIGNALED(kill_after(forked(lambda: _write(tmp_path, 6, 10_000)), rng.uniform(.02, .1)))
        run = find_run(fit_line, LineConfig(seed=77), (tmp_path,))
        assert run.metrics.x.iloc[0] == run.tensors["w"][0].item()
    assert kills == 30


def test_damaged_runs_are_typed_errors(tmp_path):
    config = LineConfig(steps=3)
    run = write_run(tmp_path, fit_line, config, fit_line(config, Work()), 1.)
    path = run.folder/run.info["files"]["metrics"]["name"]
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(CorruptRun, match="lacks metrics"): find_run(fit_line, config, (tmp_path,)).metrics
    (run.folder/"run.json").write_text('{"key": ')
    with pytest.raises(CorruptRun, match="run.json"): read_run(run.folder)
    for text, lost in (("[]", "code_hash, config"), ('{"key": "0", "code_hash": "0", "config": {}}', "files, function")):
        (run.folder/"run.json").write_text(text)
        with pytest.raises(CorruptRun, match=f"run.json lacks {lost}"): list(recorded_runs(tmp_path))


def test_promotion_checks_and_replaces(tmp_path):
    config, local, shipped = LineConfig(steps=3), tmp_path/"runs", tmp_path/"record"
    run = write_run(local, fit_line, config, fit_line(config, Work()), 1.)
    old = write_run(shipped, fit_line, config, RunOutput(pd.DataFrame({"x": [1.]})), 1.)
    promote(run, shipped)
    assert read_run(old.folder).metrics.equals(run.metrics) and len(list(old.folder.iterdir())) == 3
    path = run.folder/run.info["files"]["tensors"]["name"]
    path.write_bytes(b"torn")
    with pytest.raises(CorruptRun): promote(find_run(fit_line, config, (local,)), shipped)
    assert read_run(old.folder).tensors["w"].numel() == 1            # the shipped copy is untouched
    assert [r.status for r in recorded_runs(shipped)] == ["fresh"]


def test_a_function_that_is_gone_makes_its_runs_stale(tmp_path):
    config = LineConfig(steps=3)
    run = write_run(tmp_path, fit_line, config, fit_line(config, Work()), 1.)
    info = run.info | {"function": "rlpapers.core.record:fit_curve"}
    (run.folder/"run.json").write_text(json.dumps(info))
    assert [r.status for r in recorded_runs(tmp_path)] == ["stale"]


def test_shipped_record_is_whole():
    "Every run in data/record/ passes its checksums and is named after its key."
    from rlpapers.core.paths import project_paths
    for run in recorded_runs(project_paths().record):
        assert run.folder.name == run.key == run_key(record.load_function(run.info["function"]), run.config)
        assert len(run.metrics) and run.tensors is not None


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or "cpu family" not in Path("/proc/cpuinfo").read_text(), reason="no x86 Linux")
def test_a_machine_tells_its_generation():
    "Cloud machines of several generations share one model name; their rounding differs."
    cpuinfo = Path("/proc/cpuinfo").read_text()
    family, model = (next(line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.split(":")[0].strip() == name) for name in ("cpu family", "model"))
    assert record.machine()["cpu"].endswith(f"(family {family}, model {model})")
