"""Libraries are loaded only if this user wrote them, whole; a compiler that hangs is tried once, and ended."""

from __future__ import annotations

import os
import stat
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from specgym.env.kernels import build
from specgym.env.kernels.build import UntrustedError, compiled_path, find_library, load_library

SOURCE = 'extern "C" int specgym_one() { return 1; }\n'


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file to compile, and an empty cache folder."""
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    path = tmp_path / "one.cpp"
    path.write_text(SOURCE)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


def lose_digest(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def let_others_write(path: Path) -> None:
    path.chmod(0o666)


def link_elsewhere(path: Path) -> None:
    moved = path.rename(path.with_name("elsewhere"))
    path.symlink_to(moved)


@pytest.mark.parametrize("spoil", [cut, zeros, lose_digest, let_others_write, link_elsewhere])
def test_what_is_not_as_it_was_written_is_compiled_anew(source: Path, spoil: Callable[[Path], None]) -> None:
    path = compiled_path(source)
    whole = path.read_bytes()
    spoil(path)
    assert load_library(source).specgym_one() == 1
    assert path.read_bytes() == whole
    assert stat.S_ISREG(path.lstat().st_mode)


def test_a_folder_that_others_may_write_is_closed_to_them(source: Path) -> None:
    folder = compiled_path(source).parent
    folder.chmod(0o777)
    load_library(source)
    assert not folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give files away")
@pytest.mark.parametrize("what", ["file", "digest"])
def test_a_library_of_another_user_is_never_loaded(source: Path, what: str) -> None:
    path = compiled_path(source)
    planted = path if what == "file" else path.with_suffix(".sha256")
    os.chown(planted, 12345, 12345)
    before = path.stat().st_ino
    assert load_library(source).specgym_one() == 1
    assert path.stat().st_ino != before, "the planted file was used"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give folders away")
def test_a_folder_of_another_user_is_refused_and_said(source: Path) -> None:
    os.chown(compiled_path(source).parent, 12345, 12345)
    with pytest.raises(UntrustedError, match="SPECGYM_HOME"):
        load_library(source)


def test_a_compiler_that_hangs_is_ended_with_its_children_and_not_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    compiler = programs / "c++"
    compiler.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/child\nwait\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin")
    monkeypatch.setattr(build, "_COMPILERS", ("c++",))
    monkeypatch.setattr(build, "_TIMEOUT", 1)
    find_library.cache_clear()
    with pytest.warns(UserWarning, match="did not end within 1 s and is not tried again"):
        assert find_library(source) is None
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < end:
        if Path(f"/proc/{child}/stat").read_text().split(") ")[1][0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists(), "the compiler's child lives on"
    (tmp_path / "child").unlink()
    find_library.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        assert find_library(source) is None
    assert not (tmp_path / "child").exists(), "the compiler was tried again"
    find_library.cache_clear()
