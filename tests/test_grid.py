"""Grids on bad days: dead workers, interrupted and killed drivers, two drivers, a lost cluster node."""
import json, os, signal, subprocess, sys, textwrap, time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

import toy
from rlpapers.core.datasets import SEAL
from rlpapers.core.grid import GridError, Job, Runs, audit_run, product, run_grid, train_one
from rlpapers.core.paths import Paths
from rlpapers.core.record import LineConfig, RunOutput, Work, find_run, fit_line, write_run

HERE = Path(__file__).parent


def expected(configs): return pd.concat([pd.DataFrame({"step": range(c.steps), "value": [c.seed*1000 + s for s in range(c.steps)]}) for c in configs], ignore_index=True)
def starts(folder, seed): return [tuple(map(int, line.split())) for line in (Path(folder)/f"{seed}.starts").read_text().splitlines()]
def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError: return False


def driver(tmp_path, steps=60, seeds=4, extra=""):
    "A process that runs a grid of slow fits."
    code = f"""
        import sys; sys.path.insert(0, {str(HERE)!r})
        from pathlib import Path
        from rlpapers.core.grid import product, run_grid
        import toy
        configs = product(toy.SlowConfig(steps={steps}, trace={str(tmp_path)!r}), seed=list(range({seeds})))
        run_grid(toy.slow_fit, configs, root=Path({str(tmp_path)!r})/"runs", jobs=2{extra})
        print("finished")"""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def grid_of(tmp_path, steps=60, seeds=4): return product(toy.SlowConfig(steps=steps, trace=str(tmp_path)), seed=list(range(seeds)))
def recorded(tmp_path, configs): return [c for c in configs if find_run(toy.slow_fit, c, (tmp_path/"runs",))]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(.05)


def test_dead_worker_is_started_again_and_resumes(tmp_path):
    configs = product(toy.SlowConfig(steps=20, sleep=.01, trace=str(tmp_path), deaths=2), seed=[0]) + product(toy.SlowConfig(steps=20, sleep=.01, trace=str(tmp_path)), seed=[1])
    runs = run_grid(toy.slow_fit, configs, root=tmp_path/"runs", jobs=2)
    assert runs.frame().drop(columns="run").equals(expected(configs))
    begun = [step for _, step in starts(tmp_path, 0)]
    assert begun[0] == 0 and len(begun) == 2 and begun[1] == 10      # resumed where it died; a second death needs step 10 again
    assert len(starts(tmp_path, 1)) == 1                             # its neighbour never noticed


def test_a_run_that_is_not_found_is_asked_for_again(tmp_path, monkeypatch):
    "A worker that says it is done and left nothing to be seen gets another try, as one that died."
    looks = []
    def blind(*args):
        looks.append(args)
        return None if len(looks) <= 2 else find_run(*args)          # before the grid starts, and after the first try
    monkeypatch.setattr("rlpapers.core.grid.find_run", blind)
    run, = run_grid(fit_line, [LineConfig(steps=5)], root=tmp_path, jobs=1)
    assert run.metrics.equals(fit_line(LineConfig(steps=5), Work()).metrics) and len(looks) == 3
    looks.clear()
    with pytest.raises(GridError, match="ended without a result 1 times"): run_grid(fit_line, [LineConfig(steps=6)], root=tmp_path, jobs=1, retries=0)


def test_a_worker_that_always_dies_fails_alone(tmp_path):
    bad, good = (toy.SlowConfig(steps=4, sleep=0, trace=str(tmp_path), deaths=deaths, seed=seed) for seed, deaths in ((2, 99), (3, 0)))
    with pytest.raises(GridError, match="died 1 times .exit status -9") as error: run_grid(toy.slow_fit, [bad, good], root=tmp_path/"runs", retries=0)
    assert "log.txt" in str(error.value) and "seed=2" in str(error.value)
    assert find_run(toy.slow_fit, good, (tmp_path/"runs",)).status == "fresh"


def test_an_exception_is_not_retried_and_is_quoted(tmp_path):
    configs = [LineConfig(steps=9, save_every=0), LineConfig(steps=9)]
    with pytest.raises(GridError, match="ZeroDivisionError"): run_grid(fit_line, configs, root=tmp_path)
    assert find_run(fit_line, configs[1], (tmp_path,)).status == "fresh"
    log = next(tmp_path.glob("*/*/*/work-*/log.txt")).read_text()
    assert log.count("Traceback") == 1                               # tried once


def test_every_failed_run_is_named(tmp_path):
    configs = [LineConfig(steps=9, save_every=0, seed=seed) for seed in range(3)]
    with pytest.raises(GridError, match="3 of 3 runs failed") as error: run_grid(fit_line, configs, engine="here", root=tmp_path)
    text = str(error.value)
    assert all(f"seed={seed}" in text for seed in range(3)) and text.count("Traceback") == 1 and text.count("ZeroDivisionError") == 3


def test_a_worker_trains_one_run_after_the_other(tmp_path):
    configs = product(toy.SlowConfig(steps=4, sleep=0, trace=str(tmp_path)), seed=list(range(5)))
    runs = run_grid(toy.slow_fit, configs, root=tmp_path/"runs", jobs=2)
    assert runs.frame().drop(columns="run").equals(expected(configs))
    assert len({pid for seed in range(5) for pid, _ in starts(tmp_path, seed)}) <= 2


def test_a_worker_that_dies_is_replaced_for_the_runs_that_wait(tmp_path):
    configs = [toy.SlowConfig(steps=20, sleep=0, trace=str(tmp_path), deaths=1, seed=0), *product(toy.SlowConfig(steps=4, sleep=0, trace=str(tmp_path)), seed=[1, 2])]
    runs = run_grid(toy.slow_fit, configs, root=tmp_path/"runs", jobs=1)
    assert runs.frame().drop(columns="run").equals(expected(configs))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_driver_loses_nothing_finished(tmp_path, how):
    for s in (2, 3): (tmp_path/f"{s}.hold").touch()
    configs, process = grid_of(tmp_path), driver(tmp_path)
    wait_until(lambda: len(recorded(tmp_path, configs)) == 2 and all((tmp_path/f"{s}.held").exists() for s in (2, 3)))   # two are done, two half-way
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0 and "finished" not in out
    pids = [pid for seed in range(4) for pid, _ in starts(tmp_path, seed)]
    wait_until(lambda: not any(map(alive, pids)), 10)                # no worker outlives its driver
    done = recorded(tmp_path, configs)
    assert [c.seed for c in done] == [0, 1]
    for s in (2, 3): (tmp_path/f"{s}.hold").unlink()
    process = driver(tmp_path)
    out, err = process.communicate(timeout=120)
    assert "finished" in out, err
    assert Runs(find_run(toy.slow_fit, c, (tmp_path/"runs",)) for c in configs).frame().drop(columns="run").equals(expected(configs))
    for c in configs:
        begun = [step for _, step in starts(tmp_path, c.seed)]
        assert begun == ([0] if c in done else [0, 30])              # finished ones were not trained again, the others resumed


def test_two_drivers_train_each_run_once(tmp_path):
    first, second = driver(tmp_path, steps=20, seeds=3), driver(tmp_path, steps=20, seeds=3)
    outs = [p.communicate(timeout=120) for p in (first, second)]
    assert all("finished" in out for out, _ in outs), outs
    assert [len(starts(tmp_path, seed)) for seed in range(3)] == [1, 1, 1]


def test_rerun_rules(tmp_path):
    config = LineConfig(steps=12)
    run = write_run(tmp_path, fit_line, config, fit_line(config, Work()), 1.)
    (run.folder/"run.json").write_text(json.dumps(run.info | {"code_hash": "0"*16}))
    assert run_grid(fit_line, [config], engine="here", root=tmp_path)[0].status == "stale"              # used, marked
    assert run_grid(fit_line, [config], engine="here", root=tmp_path, rerun="stale")[0].status == "fresh"
    before = (run.folder/"run.json").stat().st_mtime_ns
    run_grid(fit_line, [config], engine="here", root=tmp_path, rerun="stale")
    assert (run.folder/"run.json").stat().st_mtime_ns == before                                          # fresh: left alone
    run_grid(fit_line, [config], engine="local", root=tmp_path, rerun="all")
    assert (run.folder/"run.json").stat().st_mtime_ns > before


def test_audit_finds_a_changed_number(tmp_path):
    run = train_one(Job(fit_line, LineConfig(steps=30), tmp_path))
    assert audit_run(run, "here").verdict == "identical"
    here = run.info["machine"]
    def forge(metrics, tensors=run.tensors, where=here): return write_run(tmp_path, fit_line, LineConfig(steps=30), RunOutput(metrics, tensors), 1., where)
    shifted = run.metrics.copy()
    shifted.loc[17, "slope"] *= 1.001
    audit = audit_run(forge(shifted), "here")
    assert audit.verdict == "differs" and "row 17" in audit.detail
    assert audit_run(forge(run.metrics, {"w": run.tensors["w"] + 1}), "here").verdict == "differs"
    elsewhere = here | {"cpu": "another maker's"}
    assert audit_run(forge(shifted, where=elsewhere), "here").verdict == "not comparable"          # rounding may explain a drift
    rounded, other = ({"w": run.tensors["w"] * factor} for factor in (1 + 1e-6, 1.1))
    assert audit_run(forge(run.metrics, rounded), "here").verdict == "differs"
    assert audit_run(forge(run.metrics, rounded, elsewhere), "here").verdict == "not comparable"   # rounding may explain other weights behind the same metrics
    assert audit_run(forge(run.metrics, other, elsewhere), "here").verdict == "differs"
    for nonsense in (run.metrics.assign(slope=123.), run.metrics.head(3), run.metrics.iloc[:0], run.metrics.assign(slope=float("nan")), run.metrics.astype({"seed": str})):
        assert audit_run(forge(nonsense, where=elsewhere), "here").verdict == "differs"            # but nothing else


@dataclass(frozen=True)
class OnData(LineConfig):
    "A fit that claims to read a data set."
    def inputs(self): return {"toy/line-v0": "wanted"}


def fit_on_data(config: OnData, work: Work) -> RunOutput: return fit_line(config, work)


def test_audit_on_data_that_came_out_otherwise_proves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("rlpapers.core.grid.project_paths", lambda: Paths(tmp_path))
    run = train_one(Job(fit_on_data, OnData(steps=30), tmp_path))
    forged = write_run(tmp_path, fit_on_data, OnData(steps=30), RunOutput(run.metrics.assign(slope=123.), run.tensors), 1.)
    seal = tmp_path/"runs"/"datasets"/"toy"/"line-v0"/SEAL
    seal.parent.mkdir(parents=True)
    for checksum, verdict in (("wanted", "differs"), ("another", "not comparable")):
        seal.write_text(json.dumps(dict(checksum=checksum, wanted="wanted")))
        assert audit_run(forged, "here").verdict == verdict


def test_interrupted_rerun_of_a_stale_run_resumes(tmp_path):
    config = toy.SlowConfig(steps=40, trace=str(tmp_path))
    run = write_run(tmp_path/"runs", toy.slow_fit, config, RunOutput(pd.DataFrame({"value": [1]})), 1.)
    (run.folder/"run.json").write_text(json.dumps(run.info | {"code_hash": "0"*16}))
    (tmp_path/"0.hold").touch()
    process = driver(tmp_path, steps=40, seeds=1, extra=", rerun='stale'")
    wait_until(lambda: (tmp_path/"0.held").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert find_run(toy.slow_fit, config, (tmp_path/"runs",)).status == "stale"                     # the old one is still there
    (tmp_path/"0.hold").unlink()
    runs = run_grid(toy.slow_fit, [config], engine="here", root=tmp_path/"runs", rerun="stale")
    assert runs[0].status == "fresh" and [step for _, step in starts(tmp_path, 0)] == [0, 20]


def test_odd_grids(tmp_path, monkeypatch):
    assert len(run_grid(fit_line, [], engine="here", root=tmp_path).frame()) == 0
    twice = run_grid(fit_line, [LineConfig(steps=5)]*2, engine="here", root=tmp_path, jobs=-1)
    assert len(twice) == 2 and twice.keys[0] == twice.keys[1]
    (tmp_path/"queue.py").write_text("raise SystemExit(1)")                                          # must not shadow the standard library in workers
    monkeypatch.chdir(tmp_path)
    assert len(run_grid(fit_line, [LineConfig(steps=6)], root=tmp_path)) == 1


def test_terminal_bar_counts_in_steps_of_ten(tmp_path):
    process = driver(tmp_path, steps=10, seeds=2)
    _, err = process.communicate(timeout=60)
    lines = err.strip().splitlines()
    assert lines[-1].startswith("2 runs of slow_fit: 0 from the record, 2 of 2 trained") and 2 < len(lines) <= 12
    assert any("left" in line for line in lines)


def test_bar_in_a_terminal(tmp_path):
    "On a terminal it is one line, rewritten, with the time left, and the summary below."
    import fcntl, pty, struct, termios
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))      # 100 columns
    code = f"from pathlib import Path; from rlpapers.core.grid import *; import toy; run_grid(toy.slow_fit, product(toy.SlowConfig(steps=30), seed=[0, 1]), root=Path({str(tmp_path)!r}), jobs=2)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])})
    os.close(slave)
    text = b""
    while True:
        try: chunk = os.read(master, 4096)
        except OSError: break
        if not chunk: break
        text += chunk
    assert process.wait(60) == 0
    text = text.decode()
    assert "2.0/2 runs" in text and "<" in text and text.count("\r") > 5
    assert "2 runs of slow_fit: 0 from the record, 2 of 2 trained" in text.splitlines()[-1]


@pytest.mark.xdist_group("ray")
@pytest.mark.timeout(240)
def test_ray_cluster_loses_a_node(tmp_path):
    "Two nodes on this machine; one is killed in mid-grid; every run arrives, those that moved resumed."
    pytest.importorskip("ray", reason="needs the `ray` extra: pip install 'rlpapers[ray]'")
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    try:
        code = f"from rlpapers.core.grid import *; from rlpapers.core.record import *; run_grid(fit_line, [LineConfig()], engine='ray:{cluster.address}', gpus=1)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
        assert "GridError: A run needs 1 CPU and 1 GPU; the cluster" in done.stderr                # instead of waiting for ever
        doomed = cluster.add_node(num_cpus=1)
        process = driver(tmp_path, steps=100, seeds=3, extra=f", engine='ray:{cluster.address}'")
        wait_until(lambda: len(list(tmp_path.glob("*.starts"))) == 2, 90)
        time.sleep(.7)
        cluster.remove_node(doomed, allow_graceful=False)
        out, err = process.communicate(timeout=150)
        assert "finished" in out, err[-3000:]
    finally: cluster.shutdown()
    configs = grid_of(tmp_path, steps=100, seeds=3)
    assert Runs(find_run(toy.slow_fit, c, (tmp_path/"runs",)) for c in configs).frame().drop(columns="run").equals(expected(configs))
    begun = {seed: [step for _, step in starts(tmp_path, seed)] for seed in range(3)}
    moved = [b for b in begun.values() if len(b) > 1]
    assert len(moved) >= 1 and all(b[1] > 0 for b in moved), begun   # lost with its node, resumed on the other
