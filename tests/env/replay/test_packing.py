"""Packed traces: the same trace in less room, unpacked once, and named if they are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgym.env.common.errors import TraceError
from specgym.env.replay.sources import find_trace
from specgym.env.replay.traces.file import read_trace
from specgym.env.replay.traces.packing import pack_trace, unpack_trace
from tests.support.tiny_trace import save_tiny_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_trace(tmp_path_factory.mktemp("trace") / "tiny.sgt")


@pytest.fixture
def packed(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    path = tmp_path / "tiny.sgt.xz"
    pack_trace(trace, path)
    return path


def test_what_was_packed_is_read_as_it_was(trace: Path, packed: Path) -> None:
    assert packed.stat().st_size < trace.stat().st_size
    assert unpack_trace(packed).read_bytes() == trace.read_bytes()
    assert len(find_trace(packed).texts) == len(read_trace(trace).texts)


def test_it_is_unpacked_once(packed: Path) -> None:
    first = unpack_trace(packed).stat()
    assert unpack_trace(packed).stat() == first


def test_another_trace_of_the_same_name_is_another_file(packed: Path, tmp_path: Path) -> None:
    before = unpack_trace(packed)
    pack_trace(save_tiny_trace(tmp_path / "other.sgt", prompts=2), packed)
    assert unpack_trace(packed) != before


@pytest.mark.parametrize("length", [0, 100, -8])
def test_a_broken_one_is_named_and_leaves_nothing_behind(packed: Path, tmp_path: Path, length: int) -> None:
    packed.write_bytes(packed.read_bytes()[:length])
    with pytest.raises(TraceError, match=r"Expected a packed trace at .*tiny.sgt.xz; it cannot be unpacked"):
        unpack_trace(packed)
    assert not list((tmp_path / "home").rglob("*.sgt"))


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"Expected a packed trace at .*none.sgt.xz"):
        find_trace(tmp_path / "none.sgt.xz")
