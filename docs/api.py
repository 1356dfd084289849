"""API pages: signature with its docments, and docstring, of every exported name.

Signatures are cut from the source. nbdev's show_doc evaluates annotations, which fails for types that are imported only to be checked.
"""
import ast
import inspect
import pkgutil
import textwrap
from importlib import import_module

import rlpapers


def exported_modules() -> dict[str, object]:
    "Short name (core.paths) -> module, for every module that a notebook exports."
    found = {}
    for info in pkgutil.walk_packages(rlpapers.__path__, "rlpapers."):
        if info.ispkg or info.name.split(".")[-1].startswith("_"): continue
        module = import_module(info.name)
        if getattr(module, "__all__", None): found[info.name.removeprefix("rlpapers.")] = module
    return found


def own_names(module) -> list[str]:
    return [n for n in module.__all__ if getattr(getattr(module, n), "__module__", module.__name__) == module.__name__]


def label(short: str, name: str, value) -> str:
    "Label of an entry. Sphinx folds case, so a class, a value and a function of one name need different ones."
    return f"api-{short}.{'class-' * inspect.isclass(value)}{'value-' * (not callable(value))}{name}"


def symbol_links(modules: dict) -> dict[str, str]:
    "Exported name -> link to its entry; a name that two modules export has none."
    owners = {}
    for short, module in modules.items():
        for name in own_names(module): owners.setdefault(name, []).append(label(short, name, getattr(module, name)))
    return {name: f"#{labels[0]}" for name, labels in owners.items() if len(labels) == 1}


def signature(function) -> str:
    "The lines of a function up to its body, comments included."
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    body = ast.parse(source).body[0].body[0]
    lines = source.splitlines()
    return "\n".join(lines[:body.lineno - 1] or [lines[0][:body.col_offset].rstrip()])


def _entry(short: str, name: str, value) -> str:
    head = f"({label(short, name, value)})=\n## {name}\n\n"
    if inspect.isclass(value) and issubclass(value, BaseException):
        return f"{head}{inspect.getdoc(value) or ''}\n\n```python\nclass {name}({', '.join(b.__name__ for b in value.__bases__)})\n```\n"
    if inspect.isclass(value):
        return f"{head}{inspect.getdoc(value) or ''}\n\n```python\n{inspect.getsource(value).rstrip()}\n```\n"
    if not callable(value): return f"{head}```python\n{name} = {value!r:.400}\n```\n"
    return f"{head}{inspect.getdoc(value) or ''}\n\n```python\n{signature(value)}\n```\n"


def module_page(short: str, module, notebook: str) -> str:
    "One module: its docstring, the notebook that explains it, its names."
    text = f"# {short}\n\n{{.lead}}\n{(module.__doc__ or '').strip()}\n\nExplained and tested in [{notebook}](/{notebook}).\n\n"
    text += f"```python\nfrom rlpapers.{short} import …\n```\n\n"
    return text + "\n".join(_entry(short, name, getattr(module, name)) for name in own_names(module))


def source_notebook(module) -> str:
    "Path, inside nbs/, of the notebook that a module was exported from."
    text = inspect.getsource(module)
    return text.split("File to edit: ", 1)[1].split("nbs/", 1)[1].split(".ipynb", 1)[0] + ".ipynb"
