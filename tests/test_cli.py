"""The command line: stable JSON, suggestions, exit status, and sentences instead of tracebacks."""
import json, re, subprocess, sys

import pytest
from typer.testing import CliRunner

from rlpapers.core.claims import papers
from rlpapers.core.cli import app, experiment_notebooks


def call(*args): return CliRunner().invoke(app, list(args))


def test_list_and_claims_have_stable_fields():
    rows = json.loads(call("list", "--json").output)
    assert all(list(r) == ["paper", "id", "title", "kind", "notebook", "scale", "status", "files"] for r in rows)
    assert {"F1a", "T1", "F2b"} <= {r["id"] for r in rows if r["paper"] == "offline"}
    rows = json.loads(call("claims", "--json").output)
    assert all(list(r) == ["paper", "claim", "statement", "verdict", "scale", "evidence"] for r in rows)


@pytest.mark.parametrize("args, hint", [(["list", "offlin"], "offline"), (["claims", "pome"], "poem"), (["reproduce", "--scale", "smok"], "smoke"), (["reproduce", "--engine", "loacl"], "local"),
                                        (["reproduce", "--rerun", "stael"], "stale"), (["lst"], "list"), (["audit", "--cheepest"], "--cheapest")])
def test_wrong_names_get_suggestions(args, hint):
    result = call(*args)
    assert result.exit_code == 2 and hint in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("command", ["list", "claims", "reproduce", "audit", "promote", "site", "doctor"])
def test_help_teaches(command):
    result = call(command, "--help")
    assert result.exit_code == 0 and len(result.output.split()) > 12


def test_our_errors_are_sentences(tmp_path):
    "Outside a checkout and with a package that is not in one, the command says what to do."
    code = "import rlpapers.core.cli as c, rlpapers.core.paths as p, sys; p._is_root = lambda f: False; sys.argv = ['rlpapers', 'list']; c.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Error: No rlpapers checkout") and "Traceback" not in done.stderr


def test_doctor_names_what_is_missing(monkeypatch):
    import shutil
    monkeypatch.setattr(shutil, "which", lambda name: None)
    output = call("doctor").output
    assert "chromium" in output and "apt-get install chromium" in output and "mujoco/hopper/medium-v0" in output


def test_a_failing_notebook_sets_the_exit_status(monkeypatch, tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    from rlpapers.core import cli
    source = "scale: str = ''\nengine: str = ''\nrerun: str = ''\nseeds: int = 0\nout: str = ''"
    paths = [tmp_path/"bad.ipynb", tmp_path/"good.ipynb"]
    for path, cell in zip(paths, ("1/0", "1")):
        nbformat.write(new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]}), new_code_cell(cell)]), path)
    monkeypatch.setattr(cli, "experiment_notebooks", lambda names, scale="": paths)
    result = call("reproduce", "--scale", "smoke", "--out", str(tmp_path/"out"))
    assert result.exit_code == 1 and "FAILED" in result.output and "ZeroDivisionError" in result.output and "1 of 2 notebooks ok" in result.output


def test_every_experiment_notebook_takes_our_parameters():
    from rlpapers.core.claims import papers
    from rlpapers.core.notebooks import notebook_parameters
    found = experiment_notebooks(list(papers()))
    assert found and all(notebook_parameters(path) == dict(scale=str, engine=str, rerun=str, seeds=int, out=str) for path in found)


def test_promote_keeps_what_is_good(monkeypatch, tmp_path):
    "A stale local run never replaces a recorded one, a missing manifest drops nothing, unused runs go."
    import json as js
    from rlpapers.core import claims, cli, record
    from rlpapers.core.paths import Paths
    from rlpapers.core.record import LineConfig, Work, fit_line, read_run, write_run
    (tmp_path/"figures").mkdir()
    monkeypatch.setattr(cli, "project_paths", lambda: Paths(tmp_path))
    monkeypatch.setattr(record, "project_paths", lambda: Paths(tmp_path))
    monkeypatch.setattr(cli, "papers", lambda: {"core": "The core"})
    monkeypatch.setattr(cli, "out_folder", lambda out: tmp_path/out)
    make = lambda root, config: write_run(root, fit_line, config, fit_line(config, Work()), 1.)
    shipped, unused = make(Paths(tmp_path).record, LineConfig(steps=5)), make(Paths(tmp_path).record, LineConfig(steps=6))
    stale = make(Paths(tmp_path).runs, LineConfig(steps=5))
    (stale.folder/"run.json").write_text(js.dumps(stale.info | {"code_hash": "0"*16}))
    new = make(Paths(tmp_path).runs, LineConfig(steps=7))
    result = call("promote", "--out", "figurse")
    assert result.exit_code != 0 and "--out" in str(result.exception) and read_run(unused.folder)
    claims.put_row(tmp_path/"figures"/"manifest.json", dict(paper="core", id="Z", scale="smoke", run_keys=[shipped.key]), ("paper", "id", "scale"))
    claims.put_row(tmp_path/"figures"/"claims.json", dict(paper="core", claim="C", scale="smoke", run_keys=[new.key]), ("paper", "claim", "scale"))
    claims.put_row(tmp_path/"elsewhere"/"manifest.json", dict(paper="core", id="Z", scale="smoke", run_keys=[new.key]), ("paper", "id", "scale"))
    assert call("promote", "--out", "elsewhere").exit_code == 0 and read_run(unused.folder) and read_run(shipped.folder)     # another folder adds, and drops nothing
    claims.put_row(tmp_path/"other"/"manifest.json", dict(paper="toy", id="Z", scale="smoke", run_keys=["0"]), ("paper", "id", "scale"))
    assert "--out" in str(call("promote", "--out", "other").exception)                                                       # of another paper only
    assert call("promote").exit_code == 0
    kept = {p.parent.name: js.loads(p.read_text()) for p in Paths(tmp_path).record.glob("*/*/*/run.json")}
    assert set(kept) == {shipped.key, new.key} and kept[shipped.key]["code_hash"] == shipped.info["code_hash"]


def test_reproduce_leaves_out_notebooks_with_nothing_at_a_scale(monkeypatch):
    from rlpapers.core import cli
    from rlpapers.core.claims import Item
    here = sorted(path.name for path in experiment_notebooks(["poem"]))
    items = [Item("A", "", "figure", f"nbs/poem/{here[0]}", (), ("smoke", "paper")), Item("B", "", "table", f"nbs/poem/{here[1]}", (), ("smoke",)), Item("C", "", "table", f"nbs/poem/{here[1]}")]
    monkeypatch.setattr(cli, "inventory", lambda paper: items)
    assert [path.name for path in experiment_notebooks(["poem"], "smoke")] == here
    assert [path.name for path in experiment_notebooks(["poem"], "laptop")] == here[1:]     # one of its items is enough, and so is none


def test_dry_run_plans_every_paper():
    "Without names, and none of the papers with experiments may lack a plan."
    result = call("reproduce", "--scale", "smoke", "--dry-run")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("11_medium_curves", "13_dream_agent", "11_mazes"))
    assert "core-hours" in result.output and "--engine ray" in result.output
    again = call("reproduce", "poem", "--scale", "smoke", "--dry-run", "--fresh", "--seeds", "1").output
    runs, rows = re.search(r"(\d+) of (\d+) runs to train", again).groups()
    assert runs == rows != "0" and "--rerun all --seeds 1" in again


@pytest.mark.parametrize("option, value", [("--seeds", "-3"), ("--timeout", "-4"), ("--jobs", "0")])
def test_numbers_out_of_range_are_usage_errors(option, value):
    assert call("reproduce", "offline", "--dry-run", option, value).exit_code == 2


def test_out_is_a_folder():
    assert "README.md is a file" in str(call("list", "--out", "README.md").exception)


@pytest.mark.parametrize("path", experiment_notebooks(papers()), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_papermill_sees_every_parameter(path, capsys):
    "What `papermill --help-notebook` lists; an apostrophe in a comment hides its parameter."
    from papermill import inspect_notebook
    assert set(inspect_notebook(str(path))) == {"scale", "out", "engine", "rerun", "seeds"}
