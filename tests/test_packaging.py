"""What `pip install` takes along is what the code needs: every package, and every file that lies beside its modules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FLOORS = ("env", "controllers", "agents", "scripts")


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_named(setuptools_table: dict[str, Any]) -> None:
    inits = [path for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py")]
    assert sorted(setuptools_table["packages"]) == sorted(
        ["specgym", *(".".join(("specgym", *path.relative_to(ROOT).parts[:-1])) for path in inits)]
    )


def test_every_module_lies_in_a_package() -> None:
    modules = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    assert [path for path in modules if not (path.parent / "__init__.py").is_file()] == []


def test_every_data_file_is_taken_along(setuptools_table: dict[str, Any]) -> None:
    taken: set[Path] = set()
    for package in setuptools_table["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])  # past the links
        for pattern in [*setuptools_table["package-data"]["*"], *setuptools_table["package-data"].get(package, [])]:
            taken.update(folder.glob(pattern))
    assert ROOT / "env" / "prompts" / "builtin.jsonl" in taken
    files = {path for floor in FLOORS for path in (ROOT / floor).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in {".py", ".pyc"}} - taken == set()
