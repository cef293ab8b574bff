"""Compiled functions are built once, rebuilt when damaged, and give the results of torch's operators."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from specgym.env.kernels import build as compiled_module
from specgym.env.kernels import choosing, moving
from specgym.env.kernels.build import compile_seconds, compiled_path, find_library, load_library
from specgym.env.kernels.choosing import best, gumbel, ranked, to_candidates
from specgym.env.kernels.moving import move_rows

SOURCE = Path(choosing.__file__).with_name("choosing.cpp")
CPU = torch.device("cpu")
KEY = 0x9E3779B97F4A7C15

MOVING = Path(moving.__file__).with_name("moving.cpp")

compiled = pytest.mark.skipif(find_library(SOURCE) is None, reason="this machine compiles nothing")


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes everything use torch's operators."""
    caches = find_library, choosing._functions, moving._functions
    monkeypatch.setenv("SPECGYM_NATIVE", "0")
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file to compile, and an empty cache folder."""
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    return Path(shutil.copy(SOURCE, tmp_path / "some.cpp"))


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="no g++ on Linux")
@pytest.mark.parametrize("path", [SOURCE, MOVING], ids=lambda path: path.stem)
def test_what_is_for_any_processor_compiles(path: Path) -> None:  # a mistake in it would only be slow
    assert load_library(path)


@compiled
def test_how_long_compiling_took_is_known_where_it_was_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled_module, "_SOURCES", (SOURCE, MOVING))
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    assert compile_seconds() is None
    clock = iter([10.0, 11.5, 20.0, 20.25])  # before and after each compiler run
    monkeypatch.setattr(compiled_module.time, "perf_counter", lambda: next(clock))
    for source, seconds in ((SOURCE, 1.5), (MOVING, 1.75)):
        compiled_path(source)
        assert compile_seconds() == seconds
    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: None)
    assert compile_seconds() is None


@compiled
def test_a_file_is_compiled_once_and_again_when_it_has_changed(source: Path) -> None:
    load_library(source)
    path = compiled_path(source)
    written = path.stat().st_mtime_ns
    load_library(source)
    assert [found.stat().st_mtime_ns for found in path.parent.glob("*.so")] == [written]
    source.write_text(source.read_text() + "// more\n")
    assert compiled_path(source) != path


@compiled
def test_a_file_is_compiled_again_when_a_header_beside_it_has_changed(source: Path) -> None:
    header = source.with_name("some.hpp")
    header.write_text("// one\n")
    path = compiled_path(source)
    header.write_text("// other\n")
    assert compiled_path(source) != path


@compiled
def test_a_broken_library_is_compiled_anew(source: Path) -> None:
    path = compiled_path(source)
    path.write_bytes(b"half a library")
    assert load_library(source).specgym_gumbel


def test_what_cannot_be_compiled_is_not_found(source: Path) -> None:
    source.write_text("this is no C++")
    assert find_library(source) is None


def logits_of_five_rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    logits = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1] = logits[1, 0]  # all the same: the first is meant
    logits[2, : width // 2] = -torch.inf
    return logits


def noise_of(rows: int, tokens: int) -> list[torch.Tensor]:
    return [gumbel(KEY + row // 2, tokens, CPU) for row in range(rows)]


@compiled
def test_noise_has_the_bits_of_torchs_operators(request: pytest.FixtureRequest) -> None:
    found = [gumbel(key, 49_155, CPU) for key in (0, 1, KEY)]
    request.getfixturevalue("by_torch")
    for noise, key in zip(found, (0, 1, KEY), strict=True):
        assert torch.equal(noise, gumbel(key, 49_155, CPU))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 63, 64, 1000])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_best_are_those_of_torchs_operators(
    dtype: torch.dtype, width: int, noisy: bool, request: pytest.FixtureRequest
) -> None:
    logits, noise = logits_of_five_rows(width, dtype), noise_of(5, width) if noisy else None
    found, few = best(logits, noise), ranked(logits, min(8, width), noise)
    request.getfixturevalue("by_torch")
    expected, expected_few = best(logits, noise), ranked(logits, min(8, width), noise)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    torch.testing.assert_close(few[0], expected_few[0], rtol=1e-5, atol=1e-5)
    assert few[2] is None
    told_apart = [row for row in range(5) if noisy or row != 1]
    if dtype == torch.float32:  # bfloat16 has equal ones, of which torch takes any
        assert torch.equal(few[1][told_apart], expected_few[1][told_apart])


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 63, 64, 1000])
@pytest.mark.parametrize("noisy", [False, True])
def test_entropies_are_those_of_torchs_operators_without_noise(
    dtype: torch.dtype, width: int, noisy: bool, request: pytest.FixtureRequest
) -> None:
    logits, noise = 3 * logits_of_five_rows(width, dtype), noise_of(5, width) if noisy else None
    logits[3] -= 200 * torch.arange(width).to(dtype)  # nearly all of them impossible
    *few, found = ranked(logits, 1, noise, entropy=True)
    assert found is not None
    assert math.isclose(found[1].item(), math.log(width), abs_tol=1e-4)
    for part, alone in zip(few, ranked(logits, 1, noise), strict=False):
        assert alone is not None
        assert torch.equal(part, alone)
    request.getfixturevalue("by_torch")
    torch.testing.assert_close(found, ranked(logits, 1, noise, entropy=True)[2], rtol=1e-4, atol=1e-5)


@compiled
def test_a_row_that_is_no_number_has_no_entropy(request: pytest.FixtureRequest) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 70] = torch.nan
    found = ranked(logits, 1, entropy=True)[2]
    request.getfixturevalue("by_torch")
    torch.testing.assert_close(found, ranked(logits, 1, entropy=True)[2], equal_nan=True)


@compiled
def test_entries_of_a_trimmed_vocabulary_get_the_noise_of_their_tokens(request: pytest.FixtureRequest) -> None:
    logits, ids = torch.randn(3, 40), torch.randperm(200)[:40]
    noise = noise_of(3, 200)
    found = ranked(logits, 4, noise, ids)
    request.getfixturevalue("by_torch")
    expected = ranked(logits, 4, noise, ids)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@compiled
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("trimmed", [False, True])
def test_log_probabilities_are_told_as_torch_rounds_them(k: int, trimmed: bool, request: pytest.FixtureRequest) -> None:
    random = -torch.logspace(-10, 6, 8 * 5_000) * (
        1 + torch.rand(8 * 5_000, generator=torch.Generator().manual_seed(0))
    )
    odd = torch.tensor([0.0, -0.0, -torch.inf, -65_504.0, -65_519.9, -65_520.0, -(2.0**-14), -(2.0**-25)])
    values = torch.cat([random, odd]).view(-1, 8)
    entries = torch.arange(values.numel()).view(-1, 8)
    ids = torch.arange(values.numel()).flip(0) if trimmed else None
    found = to_candidates(values, entries, k, ids)
    request.getfixturevalue("by_torch")
    expected = to_candidates(values, entries, k, ids)
    assert found[2] is None
    for part, expected_part, dtype in zip(found, expected, (np.float64, np.int64), strict=False):
        assert part.dtype == dtype
        np.testing.assert_array_equal(part, expected_part)


@compiled
def test_entropies_are_told_as_torch_rounds_them(request: pytest.FixtureRequest) -> None:
    values, entries, nats = torch.randn(3, 4), torch.arange(12).view(3, 4), torch.tensor([0.1234567, 2.0, 10.7])
    found = to_candidates(values, entries, 2, nats=nats)
    request.getfixturevalue("by_torch")
    expected = to_candidates(values, entries, 2, nats=nats)
    for part, expected_part in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, expected_part)
    np.testing.assert_array_equal(found[2], nats.half().double())


def test_what_is_no_number_is_told_as_none() -> None:
    log_probs, *_ = to_candidates(
        torch.tensor([[0.0, torch.nan]]), torch.zeros(1, 2, dtype=torch.int64), 2, torch.tensor([5])
    )
    assert np.isnan(log_probs).tolist() == [[False, True]]


@pytest.mark.parametrize("spoiled", [0, 70, 129])
def test_what_is_no_number_shows(spoiled: int) -> None:
    for nan in (torch.nan, -torch.nan):
        logits = torch.zeros(2, 130)
        logits[1, spoiled] = nan
        assert np.isnan(best(logits)[0]).tolist() == [False, True]
        assert ranked(logits, 3)[0].isnan().all(dim=1).tolist() == [False, True]


@pytest.mark.parametrize("way", ["compiled", "by_torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_move_in_all_buffers_and_no_others_change(
    way: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if way == "by_torch":
        request.getfixturevalue("by_torch")
    buffers = [torch.randn(1, 3, 9, 4).to(dtype) for _ in range(4)]
    before = [buffer.clone() for buffer in buffers]
    move_rows(buffers, 2, np.array([3, 4, 7]))
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer[:, :, 2:5], old[:, :, [3, 4, 7]])
        assert torch.equal(buffer[:, :, :2], old[:, :, :2])
        assert torch.equal(buffer[:, :, 5:], old[:, :, 5:])


def test_rows_of_unlike_buffers_move_too() -> None:
    buffers = [torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 6)]
    expected = [buffer[:, :, 5].clone() for buffer in buffers]
    move_rows(buffers, 1, np.array([5]))
    for buffer, row in zip(buffers, expected, strict=True):
        assert torch.equal(buffer[:, :, 1], row)
