"""Runs the fuzz on several processes and reports: ``python -m tests.fuzz --rounds 100000 --seed 0``.

Case n has the seed `seed + n`. A failure prints one line; ``make fuzz SEED=… ROUNDS=1`` plays that case again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.crew import run
from tests.fuzz.verdict import complaints, summary_line


def main() -> int:
    """Runs the command; returns 0 if nothing differs and the cases were not vacuous."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100_000, help="least number of rounds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz.txt"), help="file that gets the summary")
    options = parser.parse_args()
    started = time.monotonic()
    counts, failures = run(options.seed, options.rounds, options.workers)
    line = summary_line(counts, len(failures), options.seed, time.monotonic() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", encoding="utf-8") as file:
        file.writelines(text + "\n" for text in (*failures, line))
    vacuous = complaints(counts, options.rounds)
    print("\n".join([*vacuous, line]))
    return 1 if failures or vacuous else 0


if __name__ == "__main__":
    sys.exit(main())
