"""The papermill driver: every way a notebook can fail has its name, and none stops the others."""
import os, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rlpapers.core.notebooks import ParameterError, check_parameters, missing_outputs, run_notebook, run_notebooks

PARAMETERS = 'scale: str = "laptop"   # smoke, laptop or paper\nout: str = "figures"'


def write(path, *sources, parameters=(PARAMETERS,), language=True):
    cells = [new_code_cell(p, metadata={"tags": ["parameters"]}) for p in parameters] + [new_code_cell(s) for s in sources]
    spec = dict(name="python3", display_name="Python 3") | ({"language": "python"} if language else {})
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": spec}), path)
    return path


CASES = {   # name -> (cells, parameters, expected status, part of the message)
    "fine": (["assert scale == 'smoke'"], {"scale": "smoke"}, "ok", ""),
    "raises": (["1/0", "'later'"], {}, "cell error", "ZeroDivisionError"),
    "system_exit_1": (["raise SystemExit(1)", "'later'"], {}, "early exit", ""),
    "exit_0": (["import sys; sys.exit(0)", "'later'"], {}, "early exit", "never ran"),
    "kernel_killed": (["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "'later'"], {}, "kernel died", ""),
    "cell_timeout": (["import time; time.sleep(99)"], {}, "timeout", "no end after 10 s"),
    "papermill_killed": (["import os, signal; os.kill(os.getppid(), signal.SIGKILL)", "import time; time.sleep(3)"], {}, "driver died", "exit status -9"),
    "misspelt": (["1"], {"scael": "smoke"}, "bad parameters", "Did you mean 'scale'"),
    "wrong_type": (["1"], {"scale": 3}, "bad parameters", "must be of type str"),
    "bad_scale": (["from rlpapers.core.scale import Scale; Scale(scale)"], {"scale": "lptop"}, "cell error", "Did you mean 'laptop'"),
}


@pytest.mark.timeout(200)
def test_every_failure_has_its_name(tmp_path):
    results = {}
    paths = [write(tmp_path/f"{name}.ipynb", *cells) for name, (cells, *_) in CASES.items()]
    for path in paths:
        results[path.stem] = run_notebook(path, CASES[path.stem][1], folder=tmp_path/"done", timeout=10 if path.stem == "cell_timeout" else 60)
    assert {n: r.status for n, r in results.items()} == {n: c[2] for n, c in CASES.items()}
    for name, (_, _, status, text) in CASES.items(): assert text in results[name].message, results[name]
    kept = {p.name for p in (tmp_path/"done").iterdir()}
    assert "fine.ipynb" in kept and "raises.failed.ipynb" in kept and "raises.ipynb" not in kept       # failed copies are kept for reading


def test_a_failure_does_not_stop_the_others(tmp_path):
    paths = [write(tmp_path/"a.ipynb", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"), write(tmp_path/"b.ipynb", "2 + 2"), tmp_path/"c.ipynb"]
    write(paths[2], "1", parameters=())
    (tmp_path/"conflict.ipynb").write_text('{"cells": [\n<<<<<<< HEAD\n')
    write(tmp_path/"syntax.ipynb", "1", parameters=("scale: str = = 1",))
    paths = [tmp_path/"conflict.ipynb", tmp_path/"gone.ipynb", tmp_path/"syntax.ipynb", *paths]
    results = run_notebooks(paths, {"scale": "smoke"}, jobs=1, folder=tmp_path/"done", timeout=60)
    assert [r.status for r in results] == ["bad notebook"]*3 + ["driver died", "ok", "bad parameters"]
    assert "conflict.ipynb" in results[0].notebook and "JSON" in results[0].message


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_driver_stops_everything(tmp_path, how):
    "papermill, its kernel and what the kernel started end within seconds of the driver."
    write(tmp_path/"slow.ipynb", f"import os, pathlib, time; pathlib.Path({str(tmp_path/'kernel')!r}).write_text(str(os.getpid())); time.sleep(120)")
    code = f"from pathlib import Path; from rlpapers.core.notebooks import run_notebooks; run_notebooks([Path({str(tmp_path/'slow.ipynb')!r})], {{}}, folder=Path({str(tmp_path)!r})/'done')"
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path/"kernel").exists(): assert time.monotonic() < end; time.sleep(.1)
    os.killpg(driver.pid, how) if how == signal.SIGINT else driver.send_signal(how)      # a terminal's Ctrl-C reaches the whole group
    driver.wait(15)
    kernel, end = int((tmp_path/"kernel").read_text()), time.monotonic() + 15
    def alive():
        try: return Path(f"/proc/{kernel}/stat").read_text().split()[2] != "Z"
        except OSError: return False
    while alive(): assert time.monotonic() < end, "the kernel outlived its driver"; time.sleep(.1)


@pytest.mark.parametrize("cells, message", [((), "0 cells tagged"), ((PARAMETERS, PARAMETERS), "2 cells tagged"), (("a: int = 1; b: int = 2",), "one annotated value a line"),
                                            (("a = 1",), "one annotated value"), (("import os",), "one annotated value"), (("a: int",), "one annotated value")])
def test_bad_parameter_cells(tmp_path, cells, message):
    with pytest.raises(ParameterError, match=message): check_parameters(write(tmp_path/"x.ipynb", parameters=cells), {})


def test_kernelspec_without_language_runs(tmp_path):
    "nbdev_clean drops it; papermill alone then refuses the notebook."
    assert run_notebook(write(tmp_path/"x.ipynb", "1", language=False), {}, folder=tmp_path/"done", timeout=60).ok


def test_a_forgotten_figure_is_a_failure(tmp_path, monkeypatch):
    "The inventory promises two figures; the notebook writes one, and the other is an old one."
    from rlpapers.core import claims
    items = [claims.Item(id, "A title", "figure", "nbs/offline/19_demo.ipynb", scales=("smoke",)) for id in ("Z1", "Z2")]
    monkeypatch.setattr(claims, "inventory", lambda paper: items)
    since = time.time()
    for id, age in (("Z1", 0), ("Z2", 100)):
        file = tmp_path/"offline"/"smoke"/f"{id}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("<svg/>")
        os.utime(file, (since - age, since - age))
        claims.put_row(tmp_path/"manifest.json", dict(paper="offline", id=id, scale="smoke", files={f"offline/smoke/{id}.svg": ""}), ("paper", "id", "scale"))
    assert missing_outputs("nbs/offline/19_demo.ipynb", "smoke", tmp_path, since) == ["Z2"]
    assert missing_outputs("nbs/offline/19_demo.ipynb", "laptop", tmp_path, since) == []
