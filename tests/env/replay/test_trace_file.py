"""Trace files: what is written is read, what was cut short is dropped, and nothing else is ever half-read."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specgym.env.common.errors import TraceError
from specgym.env.replay.traces.file import TraceWriter, read_trace
from specgym.env.replay.traces.recorded_trees import RecordedTrees
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.tree.growth import Candidates
from specgym.env.tree.sampling import SamplingSettings

HEADER = TraceHeader(
    target="t0",
    draft="d0",
    draft_kind="causal",
    names=("target", "draft"),
    vocabulary=70_000,
    context_limits=(128, None),
    end_tokens=(2,),
    rule={"floor": 0.05, "columns": 3},
    calibrator=None,
    dtype="float32",
)


def table(seed: int, start: int, positions: int) -> RecordedTrees:
    """A root at every position but one, and a few children."""
    random = np.random.default_rng(seed)
    made = RecordedTrees.empty(3)

    def found(rows: int) -> Candidates:
        log_probs = -np.sort(random.exponential(size=(rows, 3))).astype(np.float16).astype(np.float64)
        log_probs[random.random((rows, 3)) < 0.2] = -np.inf
        entropy = random.exponential(size=rows).astype(np.float16).astype(np.float64)
        return Candidates(random.integers(0, 70_000, (rows, 3)), log_probs, np.empty(rows), entropy=entropy)

    roots = np.delete(np.arange(start, start + positions), 1)
    none = np.full(len(roots), -1)
    rows = made.append(found(len(roots)), none, np.zeros_like(roots), roots)
    ranks = random.integers(0, 3, len(rows))
    made.append(found(len(rows)), rows, ranks, roots)
    return made.by_position()


def make_text(seed: int, answer: int = 9) -> TraceText:
    tokens = tuple(np.random.default_rng(seed).integers(0, 70_000, 5 + answer).tolist())
    guesses = table(seed, 5, answer - 1)
    settings = SamplingSettings(seed / 4, seed=seed)
    return TraceText(f"builtin/{seed}", "code", "train", settings, 5, 9, tokens, lambda: guesses)


def write(path: Path, *seeds: int) -> bytes:
    with TraceWriter(path, HEADER) as writer:
        for seed in seeds:
            writer.write(make_text(seed))
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.sgt"


def same(one: RecordedTrees, other: RecordedTrees) -> bool:
    names = ("tokens", "log_probs", "entropy", "parent", "rank", "position", "child")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


class TestRoundTrip:
    def test_what_is_written_is_read(self, path: Path) -> None:
        write(path, 0, 1, 2)
        trace = read_trace(path)
        assert trace.header == HEADER
        assert trace.texts == [make_text(seed) for seed in (0, 1, 2)]
        for seed, text in enumerate(trace.texts):
            assert same(text.guesses, make_text(seed).guesses)

    def test_a_small_vocabulary_takes_less_room(self, tmp_path: Path) -> None:
        sizes = []
        for vocabulary in (2**16, 2**16 + 1):
            with TraceWriter(tmp_path / str(vocabulary), replace(HEADER, vocabulary=vocabulary)) as writer:
                writer.write(make_text(0))
            sizes.append((tmp_path / str(vocabulary)).stat().st_size)
        assert sizes[1] - sizes[0] == 2 * 3 * len(make_text(0).guesses)

    def test_roots_are_found_by_position_and_others_are_not(self) -> None:
        made = make_text(3).guesses
        rows = made.roots(np.array([4, 5, 6, 7, 13, 99, -1]))
        assert rows.tolist()[0] == rows.tolist()[2] == rows.tolist()[5] == rows.tolist()[6] == -1
        assert made.position[rows[[1, 3]]].tolist() == [5, 7]
        assert (made.parent[rows[[1, 3]]] == -1).all()


class TestGoingOn:
    def test_texts_are_added_behind_those_that_are_there(self, path: Path, tmp_path: Path) -> None:
        write(path, 0)
        with TraceWriter(path, HEADER) as writer:
            assert writer.keys == {make_text(0).key}
            writer.write(make_text(1))
        assert path.read_bytes() == write(tmp_path / "at once", 0, 1)

    @pytest.mark.parametrize("missing", [1, 10, 200])
    def test_half_a_text_is_dropped_with_a_warning(self, path: Path, missing: int) -> None:
        whole = write(path, 0, 1)
        path.write_bytes(whole[:-missing])
        with pytest.warns(UserWarning, match=r"some\.sgt ends within a text, which is left out"):
            assert read_trace(path).texts == [make_text(0)]
        with pytest.warns(UserWarning, match="which is dropped"), TraceWriter(path, HEADER) as writer:
            writer.write(make_text(1))
        assert path.read_bytes() == whole

    def test_a_trace_of_another_pair_is_refused_and_both_are_shown(self, path: Path) -> None:
        before = write(path, 0)
        with pytest.raises(TraceError, match=r"Expected draft=d1, dtype=bfloat16; got draft=d0, dtype=float32"):
            TraceWriter(path, replace(HEADER, draft="d1", dtype="bfloat16"))
        assert path.read_bytes() == before


def frame(kind: bytes, facts: object, arrays: bytes = b"") -> bytes:
    said = json.dumps(facts).encode()
    return struct.pack("<4sIQI", kind, len(said), len(arrays), zlib.crc32(said + arrays)) + said + arrays


class TestBadFiles:
    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else altogether"], ids=["empty", "foreign"])
    def test_what_is_no_trace_is_named(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(TraceError, match=r"some\.sgt"):
            read_trace(path)

    def test_a_missing_file_is_named(self, path: Path) -> None:
        with pytest.raises(TraceError, match=r"Expected a trace at .*some\.sgt; it cannot be read"):
            read_trace(path)

    def test_a_trace_without_texts_is_refused(self, path: Path) -> None:
        write(path)
        with pytest.raises(TraceError, match="holds no text"):
            read_trace(path)

    def test_a_flipped_bit_anywhere_is_found(self, path: Path) -> None:
        whole = write(path, 0, 1)
        frames = 16 + 20  # the magic line and the first frame's head, whose lengths may call for more than there is
        for place in range(frames, len(whole), 37):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    texts = read_trace(path).texts
                except TraceError:
                    continue
            # A length was changed: what it calls for is not there, and the texts before it are left.
            assert warned, f"nobody noticed the flipped bit {place}"
            assert texts == [make_text(0)]

    @pytest.mark.parametrize(
        "tail",
        [
            frame(b"TEXT", {"identifier": "x"}),
            frame(b"TEXT", {"prompt": 1, "max_new_tokens": 1, "tokens": 2, "rows": 0, "split": "test"}, b"12345"),
        ],
        ids=["facts", "arrays"],
    )
    def test_a_frame_of_another_version_is_an_error(self, path: Path, tail: bytes) -> None:
        path.write_bytes(write(path, 0) + tail)
        with pytest.raises(TraceError, match="corrupt or of another version"):
            read_trace(path)

    def test_a_trace_without_header_is_an_error(self, path: Path) -> None:
        path.write_bytes(b"specgym trace 1\n" + frame(b"TEXT", {}))
        with pytest.raises(TraceError, match="first frame to be a header"):
            read_trace(path)
