"""Work on several cores has the results and the errors of work on one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specgym.env.common.errors import UnknownNameError
from specgym.env.common.processes import map_on_cores, usable_cores


def test_results_come_in_the_order_of_the_items_from_several_processes() -> None:
    base = 7
    results = list(map_on_cores(lambda item: (base * item, os.getpid()), range(20), workers=2))
    assert [value for value, _ in results] == [base * item for item in range(20)]
    assert os.getpid() not in {process for _, process in results}, "the test would be vacuous"


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_that_of_the_first_item_that_fails(workers: int) -> None:
    def work(item: int) -> int:
        if item > 2:
            raise UnknownNameError("item", f"number {item}", [])  # cannot be pickled
        return item

    results = map_on_cores(work, range(6), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UnknownNameError, match="number 3"):
        next(results)


def test_one_item_needs_no_process() -> None:
    assert list(map_on_cores(lambda item: os.getpid(), ["item"])) == [os.getpid()]
    assert usable_cores() >= 1


def test_processes_end_with_the_one_that_started_them() -> None:
    script = (
        "import os, time\n"
        "from specgym.env.common.processes import map_on_cores\n"
        "def work(item):\n"
        "    os.write(1, f'{os.getpid()}\\n'.encode())  # one write, so that lines do not mix\n"
        "    time.sleep(600)\n"
        "next(map_on_cores(work, range(3), workers=3))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = [int(parent.stdout.readline()) for _ in range(3)]
    parent.kill()
    parent.wait()
    for _ in range(300):
        processes = [process for process in processes if _runs(process)]
        if not processes:
            break
        time.sleep(0.1)
    assert processes == []


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", maxsplit=1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, but not yet waited for
