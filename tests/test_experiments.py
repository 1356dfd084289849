"""Ring three: every experiment notebook through papermill at smoke scale, trained from nothing."""

import pytest

from rlpapers.core.claims import claims_of, ledger, papers, read_rows
from rlpapers.core.cli import experiment_notebooks
from rlpapers.core.figures import verify_manifest
from rlpapers.core.notebooks import run_notebook
from rlpapers.core.paths import project_paths

NOTEBOOKS = experiment_notebooks(list(papers()))


@pytest.mark.xdist_group("experiments")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_runs_at_smoke_scale(path, tmp_path):
    "Parameters, all cells, every promised figure and table, a manifest without a flaw, provenance on each row."
    result = run_notebook(path, dict(scale="smoke", engine="local", rerun="all", seeds=0, out=str(tmp_path/"figures")), folder=tmp_path/"done", timeout=500)
    assert result.ok, result.message
    assert verify_manifest(tmp_path/"figures") == []
    rows = read_rows(tmp_path/"figures"/"manifest.json")
    assert rows and all(r["scale"] == "smoke" and not r["stale"] and r["caption"] and r["notebook"] for r in rows)
    assert all(r["machine"] and r["wall_time_s"] > 0 and r["code_hash"] for r in rows if r["run_keys"])


def test_shipped_figures_are_what_the_manifest_says():
    assert verify_manifest(project_paths().figures) == []


def test_shipped_figures_come_from_shipped_runs():
    "Every run key behind a committed figure is in data/record/."
    keys = {p.parent.name for p in project_paths().record.glob("*/*/*/run.json")}
    missing = {(r["paper"], r["id"], r["scale"]): sorted(set(r["run_keys"]) - keys) for r in read_rows(project_paths().figures/"manifest.json")}
    assert not {k: v for k, v in missing.items() if v}


def test_shipped_record_is_fresh():
    "The code that made the shipped runs is the code of this checkout."
    from rlpapers.core.record import recorded_runs
    runs = list(recorded_runs(project_paths().record))
    assert runs and [r.info["function"] + " " + r.key for r in runs if r.status == "stale"] == []


def test_every_claim_is_in_the_ledger():
    rows = ledger(project_paths().figures)
    assert {(r["paper"], r["claim"]) for r in rows} == {(p, c.id) for p in papers() for c in claims_of(p)}
    assert all(r["evidence"] for r in rows)
