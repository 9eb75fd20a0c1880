"""The import table of the design, and what else holds for every file of the library."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "dfmsd"
LONGEST_FILE = 260

METHOD = {"ranges", "context", "masking", "enhance", "align", "generate", "loss"}

# Room (a file or folder of `ls dfmsd`) -> what it may import of dfmsd: rooms, or files of a room.
TABLE: dict[str, set[str]] = {
    "__init__": set(),
    "ranges": set(),
    "context": {"ranges"},
    "masking": {"context", "ranges"},
    "enhance": {"context", "ranges"},
    "align": {"context", "ranges"},
    "generate": {"context", "ranges"},
    "loss": METHOD - {"loss"},
    "baselines": METHOD,
    "detectors": {"ranges"},
    "data": set(),
    "training": {"detectors.checkpoints", "detectors.features", "detectors.files"},
    "distill": {"context", "detectors.features"},
    "stages": {
        "align",
        "context",
        "distill",
        "training",
        "detectors.checkpoints",
        "detectors.features",
    },
    "viz": set(),
    "widgets": METHOD | {"detectors.features", "detectors.saved", "data.images", "data.scenes"},
    "experiments": METHOD
    | {"baselines", "detectors", "data", "training", "distill", "stages", "viz", "widgets"},
    "notebook": {"experiments"},
    "__main__": {
        "experiments.commands",
        "data.commands",
        "detectors.commands",
        "training.signals",
        "widgets.commands",
    },
}
PRINTING = {"__main__.py", "commands.py", "notebook.py"}

FILES = sorted(LIBRARY.rglob("*.py"))


def room(path: Path) -> str:
    """The table's name of a file: a package counts as one room."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(source: str, package: list[str]) -> set[str]:
    """Dotted names of all imports anywhere in a source, relative ones resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names}
    return found


def rooms_used(source: str, package: list[str]) -> set[str]:
    """`room` or `room.file` of dfmsd that a source imports; "" stands for the bare package."""
    names = [name.split(".") for name in imports(source, package)]
    return {".".join(name[1:3]) for name in names if name[0] == "dfmsd"}


def package_of(path: Path) -> list[str]:
    return ["dfmsd", *path.relative_to(LIBRARY).parts[:-1]]


def test_imports_reads_every_form():
    source = "import dfmsd, dfmsd.a\ndef f():\n    from dfmsd.b import c\n"
    source += "from . import d\nfrom .e import x\n"
    assert rooms_used(source, ["dfmsd"]) == {"a", "b.c", "d", "e.x", ""}
    assert rooms_used("from ..masking import x\nfrom .mgd import y", ["dfmsd", "baselines"]) == {
        "masking.x",
        "baselines.mgd",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_module_imports_only_what_its_row_allows(path):
    name = room(path)
    assert name in TABLE, f"dfmsd/{name} is not in the import table of tests/test_imports.py"
    allowed = TABLE[name] | {name}
    used = rooms_used(path.read_text(), package_of(path))
    forbidden = {part for part in used if not {part, part.split(".")[0]} & allowed}
    assert not forbidden, f"dfmsd/{name} imports {sorted(forbidden)}, allowed {sorted(TABLE[name])}"


def test_the_table_has_no_circle():
    seen: set[str] = set()
    while todo := {name for name in TABLE if name not in seen}:
        free = {name for name in todo if {part.split(".")[0] for part in TABLE[name]} <= seen}
        assert free, f"these import each other in a circle: {sorted(todo)}"
        seen |= free


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_file_is_short_and_keeps_the_house_rules(path):
    source = path.read_text()
    assert source.count("\n") <= LONGEST_FILE, f"{path.name} has more than {LONGEST_FILE} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"star import: {path.name}"
        if isinstance(node, ast.Call) and path.name not in PRINTING:
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit"), f"{called}: {path.name}"


def declared(*groups: str) -> set[str]:
    """Normalised names of the distributions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for group in groups:
        lines += project["optional-dependencies"][group]
    return {canonical(re.split(r"[<>=!~;\[ ]", line)[0]) for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def distributions() -> dict[str, list[str]]:
    """Package → the distributions it comes from, asked once: it reads every one's list of files."""
    return dict(metadata.packages_distributions())


def undeclared(path: Path, allowed: set[str]) -> set[str]:
    """Imported packages of a file that come from no declared distribution."""
    tops = {name.split(".")[0] for name in imports(path.read_text(), package_of_any(path))}
    beside = [*path.parent.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    local = {"dfmsd", *(other.stem for other in beside)}
    owners = distributions()
    third = tops - set(sys.stdlib_module_names) - local - {""}
    return {top for top in third if not {canonical(n) for n in owners.get(top, [])} & allowed}


def package_of_any(path: Path) -> list[str]:
    return package_of(path) if path.is_relative_to(LIBRARY) else []


def test_the_library_imports_only_declared_packages():
    allowed = declared()
    missing = {path.name: undeclared(path, allowed) for path in FILES}
    assert not {name: tops for name, tops in missing.items() if tops}


def test_the_tests_import_only_declared_packages():
    allowed = declared("dev")
    missing = {path.name: undeclared(path, allowed) for path in sorted(ROOT.glob("tests/**/*.py"))}
    assert not {name: tops for name, tops in missing.items() if tops}


def test_an_undeclared_package_is_noticed():
    assert undeclared(LIBRARY / "__init__.py", set()) == set()
    assert undeclared(Path(__file__), declared()) == {"pytest"}
