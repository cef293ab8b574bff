"""Imports point down only, from commands to the environment, and always by the one import name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("env", "controllers", "agents", "scripts")  # the lowest first
LIBRARIES = {"env": {"stable_baselines3"}, "controllers": {"stable_baselines3", "gymnasium"}}
"""libraries that a floor does without"""
WITHOUT_PEERS = ("results", "live")
"""folders of the evaluation that know nothing of other libraries"""


def imported(source: str) -> set[str]:
    """Names of the modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_below(folder: Path) -> dict[str, set[str]]:
    """Names that each Python file below a folder imports."""
    files = sorted(folder.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): imported(path.read_text(encoding="utf-8")) for path in files}


def starts_with(name: str, packages: set[str]) -> bool:
    """Whether a module is one of the packages, or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_from_those_below_it_only(floor: str) -> None:
    above = {f"specgym.{name}" for name in FLOORS[FLOORS.index(floor) + 1 :]} | {"tests"}
    forbidden = above | LIBRARIES.get(floor, set())
    files = imports_below(ROOT / floor)
    wrong = {path: sorted(n for n in names if starts_with(n, forbidden)) for path, names in files.items()}
    assert {path: names for path, names in wrong.items() if names} == {}
    assert any(starts_with(name, {f"specgym.{floor}"}) for names in files.values() for name in names), "vacuous"


@pytest.mark.parametrize("folder", [*FLOORS, "tests"])
def test_every_import_is_by_the_one_import_name(folder: str) -> None:
    """`env.x` and `specgym.env.x` would be two modules with two classes of the same name."""
    files = imports_below(ROOT / folder)
    wrong = {path: sorted(n for n in names if starts_with(n, set(FLOORS))) for path, names in files.items()}
    assert {path: names for path, names in wrong.items() if names} == {}
    assert any(starts_with(name, {"specgym"}) for names in files.values() for name in names), "vacuous"


@pytest.mark.parametrize("folder", WITHOUT_PEERS)
def test_results_and_benchmarks_know_nothing_of_peers(folder: str) -> None:
    files = imports_below(ROOT / "controllers" / "evaluation" / folder)
    wrong = {path: [n for n in names if ".peers" in n] for path, names in files.items()}
    assert {path: names for path, names in wrong.items() if names} == {}
    assert len(files) > 1, "the test would be vacuous"


def test_no_two_modules_have_the_same_file_name() -> None:
    names = Counter(path.name for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    del names["__init__.py"]
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) > 100, "the test would be vacuous"


def test_an_import_is_found_wherever_it_hides() -> None:
    source = "import a.b\ndef later():\n    from c.d import e\nif True:\n    import f as g, h\n"
    assert imported(source) == {"a.b", "c.d", "c.d.e", "f", "h"}
