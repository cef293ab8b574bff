"""Stops commands at random moments by random signals, and compares what they end with; run by `make interruptions`.

Each trial starts a command and sends SIGKILL, SIGTERM or SIGINT after a random time, up to three times. Then the
command runs to its end. It has to write what an undisturbed run writes, except for measured times.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.scripts.test_distill import distill_arguments
from tests.scripts.test_record_evaluate import recording
from tests.scripts.test_train import arguments as train_arguments
from tests.support.commands import finish, start, write_prompts
from tests.support.tiny_pair import TinyFolders, save_tiny_folders
from tests.support.tiny_trace import save_tiny_trace

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUSES = {-signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}
TEXTS = [f"say {letter * 3} again" for letter in "abcdefgh"]

Line = list[object]
Results = dict[str, object]


def commands(folder: Path) -> dict[str, tuple[Callable[[Path], Line], Callable[[Path], Results]]]:
    """Returns for each command its line for a run folder, and what it wrote there."""
    folders, prompts = save_tiny_folders(folder / "models"), write_prompts(folder / "prompts.jsonl", TEXTS)
    trace = save_tiny_trace(folder / "tiny.sgt")
    return {
        "record": (lambda run: record_line(folders, run, prompts), lambda run: {"trace": (run / "a.sgt").read_bytes()}),
        "train": (lambda run: [*train_arguments(trace, run), "--seeds", 1], trained),
        "distill": (lambda run: distill_arguments(folders, run), distilled),
        "benchmark": (lambda run: benchmark_line(folders, run, prompts), measured),
    }


def record_line(folders: TinyFolders, run: Path, prompts: Path) -> Line:
    run.mkdir(exist_ok=True)
    return [*recording(folders, run / "a.sgt", prompts), "--slots", 4]


def benchmark_line(folders: TinyFolders, run: Path, prompts: Path) -> Line:
    pair = ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32", "--prompts", prompts]
    return [*pair, "--controllers", "fixed_tree,history", "--max-new-tokens", 12, "--output", run]


def trained(run: Path) -> Results:
    return {f"{path.relative_to(run)}": path.read_bytes() for path in run.rglob("policy.safetensors")}


def distilled(run: Path) -> Results:
    names = ("draft.safetensors", "calibrator.json")
    return {name: (run / "feature" / name).read_bytes() for name in names}


def measured(run: Path) -> Results:
    record = json.loads((run / "results.json").read_text(encoding="utf-8"))
    rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in record["rows"]]
    return {"rows": rows, "complete": record["complete"], "failures": record["failures"]}


def trial(line: Line, command: str, folder: Path, chance: random.Random, whole_seconds: float) -> tuple[str, int]:
    """Runs a command to its end with up to three stops. Returns a problem, if any, and how often it was stopped."""
    stops = 0
    for _ in range(chance.randint(1, 3)):
        process, stop = start(command, *line, home=folder / "home"), chance.choice(SIGNALS)
        time.sleep(chance.uniform(0.0, whole_seconds))
        alive = process.poll() is None
        ended = finish(process, stop if alive else None)
        stops += ended.status != 0
        if ended.status not in STATUSES | {0}:
            return f"{stop.name}: status {ended.status}: {ended.err[-500:]}", stops
        if "Traceback" in ended.err:
            return f"{stop.name}: traceback: {ended.err[-1500:]}", stops
        if ended.status == 0:
            break
    ended = finish(start(command, *line, home=folder / "home"))
    return "" if ended.status == 0 else f"the next run: status {ended.status}: {ended.err[-500:]}", stops


def main() -> int:
    """Runs the trials. Returns 1 if any of them went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of each command")
    parser.add_argument("--commands", default="record,train,distill,benchmark")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = commands(folder)
        for command in options.commands.split(","):
            line_for, results_of = known[command]
            began = time.perf_counter()
            ended = finish(start(command, *line_for(folder / f"{command}-whole"), home=folder / "home"))
            assert ended.status == 0, ended.err
            seconds, expected = time.perf_counter() - began, results_of(folder / f"{command}-whole")
            assert expected, "the comparison would be vacuous"
            chance, counts = random.Random(f"{command} {options.seed}"), Counter[str]()
            for number in range(options.trials):
                run = folder / f"{command}-{number}"
                problem, stops = trial(line_for(run), command, folder, chance, seconds)
                if not problem and results_of(run) != expected:
                    problem = "other results"
                left = [path.name for path in run.rglob("*") if re.search(r"\.tmp$|\.lock$", path.name)]
                counts["stops"] += stops
                counts["equal"] += not problem
                counts["left files"] += bool(left)
                if problem:
                    print(f"{command}, trial {number}: {problem}", flush=True)
            wrong += options.trials - counts["equal"]
            print(
                f"{command}: {counts['equal']} of {options.trials} trials have the results of an undisturbed run; "
                f"{counts['stops']} stops; {counts['left files']} left temporary files",
                flush=True,
            )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
