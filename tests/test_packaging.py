"""The wheel holds every package and every data file, under one name, and works among a user's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import make_home
from tests.support.tiny_pair import save_tiny_folders
from tests.support.tiny_trace import save_tiny_trace

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the source tree, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for floor in ("specgym", *FLOORS):
        shutil.copytree(ROOT / floor, source / floor, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    shutil.rmtree(source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder that the wheel alone is installed into."""
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", wheel.parent / "site", wheel)
    return wheel.parent / "site"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(site: Path, folder: Path, *command: object) -> str:
    """Runs a command in `folder` with the installed copy before everything else. Returns what it printed."""
    settings = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "SPECGYM_HOME": str(make_home(folder / "home"))}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_installs_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"specgym"}


def test_an_installed_copy_works_beside_files_of_the_same_names(site: Path, tmp_path: Path) -> None:
    """In the user's folder lie modules named like our floors, which fail when they are imported."""
    (tmp_path / "env.py").write_text("raise ImportError('a decoy')\n", encoding="utf-8")
    for floor in FLOORS[1:]:
        (tmp_path / floor).mkdir()
        (tmp_path / floor / "__init__.py").write_text("raise ImportError('a decoy')\n", encoding="utf-8")
    models, trace = save_tiny_folders(tmp_path / "models"), save_tiny_trace(tmp_path / "tiny.sgt")
    program = site / "bin" / "specgym"
    assert "usage: specgym generate" in run(site, tmp_path, sys.executable, program, "generate", "--help")
    pair = ["--target", models.target, "--draft", models.draft, "--dtype", "float32", "--max-new-tokens", 8]
    assert run(site, tmp_path, sys.executable, program, "generate", "hello", *pair)
    evaluate = ["specgym", "evaluate", "--traces", trace, "--limit", 4, "--static-texts", 2, "--temperatures", 1]
    evaluate += ["--profiles", "overhead_bound", "--controllers", "history", "--output", "out"]
    code = f"""
import sys
import gymnasium as gym
import specgym
assert specgym.__file__.startswith({str(site)!r}), specgym.__file__
env = gym.make("specgym/Replay-v0")  # plays the trace that comes with the wheel
env.reset(seed=0)
env.step(env.action_space.sample())
sys.argv = {list(map(str, evaluate))}
from specgym.scripts.cli import run_command
run_command()
"""
    assert "history" in run(site, tmp_path, sys.executable, "-c", code)
    assert (tmp_path / "out").is_dir()
