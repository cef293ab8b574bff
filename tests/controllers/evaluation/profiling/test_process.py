"""Memory is measured in bytes, with or without pages of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from specgym.controllers.evaluation.profiling.process import (
    forget_peak,
    library_pages,
    memory_held,
    memory_peak,
)

CPU = torch.device("cpu")


def test_memory_is_measured_in_bytes() -> None:
    """Written memory is held, and the peak includes it."""
    forget_peak(CPU)
    before, size = memory_held(CPU), 2**27
    held = torch.ones(size // 4)
    after = memory_held(CPU)
    del held
    peak = memory_peak(CPU)
    if before is None or after is None or peak is None:
        pytest.skip("this system does not tell")
    assert after - before > 0.9 * size
    libraries = library_pages()
    assert libraries is not None
    assert 2**20 < libraries < after - size  # torch's own are some of all that is held
    assert peak - before > 0.9 * size


def test_pages_of_files_are_held_but_are_not_the_processes_own(tmp_path: Path) -> None:
    size = 2**26
    (tmp_path / "file").write_bytes(bytes(size))
    before, own = memory_held(CPU), memory_held(CPU, files=False)
    mapped = np.memmap(tmp_path / "file", np.uint8, mode="r")
    assert mapped.max() == 0  # looks at all of it
    after, own_after = memory_held(CPU), memory_held(CPU, files=False)
    if before is None or after is None or own is None or own_after is None:
        pytest.skip("this system does not tell")
    assert after - before > 0.9 * size
    assert own_after - own < 0.1 * size
    made = np.ones(size, np.uint8)
    last = memory_held(CPU, files=False)
    assert last is not None
    assert last - own_after > 0.9 * made.nbytes
