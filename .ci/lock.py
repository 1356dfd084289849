"""Write requirements.lock: the exact versions, in this environment, of what pyproject.toml's extra `all` needs.

To change a pin: install what you want into .venv, run `.venv/bin/python .ci/lock.py`, then `make test`.
"""
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# Exact pins of pyproject.toml's extra `all`, for Python 3.11, written by .ci/lock.py. Installed by make.\n"


def needed(pyproject: dict) -> dict[str, str]:
    "Name -> version of every package the project's extra `all` needs, dependencies of dependencies included."
    extras = pyproject["project"]["optional-dependencies"]
    todo = [*pyproject["project"]["dependencies"], *(r for rs in extras.values() for r in rs)]
    todo = [(Requirement(r), frozenset()) for r in todo + pyproject["build-system"]["requires"]]
    found, seen = {}, set()
    while todo:
        requirement, parent_extras = todo.pop()
        name = canonicalize_name(requirement.name)
        wanted = [{"extra": e} for e in parent_extras or [""]]
        if requirement.marker and not any(requirement.marker.evaluate(e) for e in wanted): continue
        key = (name, frozenset(requirement.extras))
        if name == pyproject["project"]["name"] or key in seen: continue
        seen.add(key)
        try: installed = distribution(name)
        except PackageNotFoundError: sys.exit(f"{name} is not installed: pip install '{requirement}', then lock again")
        if not requirement.specifier.contains(installed.version, prereleases=True):
            sys.exit(f"{name} {installed.version} is installed, but '{requirement}' is wanted")
        found[name] = installed.version.split("+")[0]      # torch 2.13.0+cpu exists on few machines
        todo += [(Requirement(r), key[1]) for r in installed.requires or []]
    return found


if __name__ == "__main__":
    pins = needed(tomllib.loads((ROOT/"pyproject.toml").read_text()))
    (ROOT/"requirements.lock").write_text(HEAD + "".join(f"{n}=={v}\n" for n, v in sorted(pins.items())))
    print(f"{len(pins)} pins")
