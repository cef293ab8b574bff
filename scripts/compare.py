"""Compares this decoding with other libraries' on the same target and prompts."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable
from specgym.scripts.common import main, say
from specgym.scripts.paired import PairedOptions
from specgym.scripts.progress import waiting


@dataclass(frozen=True)
class CompareOptions(PairedOptions):
    """Compares this decoding with other libraries', prompt by prompt in turn, and writes the results.

    A peer that is not installed or that fails is reported with the reason.
    """

    controllers: str | None = None
    """comma-separated controllers besides autoregressive and goodput, with options as in `specgym benchmark`"""
    peers: str | None = None
    """comma-separated peers, each with its own plain decoding; by default all"""
    assistant: str | None = None
    """small model that peers draft with, as for --target; by default a causal draft that is shipped for the target"""
    python: str | None = None
    """comma-separated interpreters of libraries, as LIBRARY=PATH; by default this Python"""
    peers_python: str | None = None
    """interpreter of every library but transformers; by default this Python"""
    patience: float = 900.0
    """maximum time of a peer for one answer, loading and compiling included [s]"""
    output: Path = Path("runs/compare")
    """folder for the results"""


def compare(options: CompareOptions) -> int:
    """Runs the comparison; returns the exit status."""
    from specgym.controllers.evaluation.live.runners import ControllerRunner, Runner, check_runner, runner_labels
    from specgym.controllers.evaluation.peers import comparison
    from specgym.controllers.evaluation.peers.client import closing
    from specgym.controllers.evaluation.results.provenance import shareable

    _check(options)
    peers, mine = comparison.check_peers(options.peers), comparison.ours(options.controllers)
    for name in mine:
        check_runner(name)
    prompts, sampling = options.load_prompts(), options.sampling.settings()
    pythons = comparison.parse_pythons(options.python, options.peers_python, sys.executable)
    comparison.find_assistant(options.assistant, options.pair.target, None)  # before the target is read
    check_writable(options.output)
    pair = options.pair.load()
    assistant = comparison.find_assistant(options.assistant, options.pair.target, pair.tokenizer)
    limit, decoder = options.max_new_tokens, pair.decoder()
    setup = comparison.make_setup(pair, prompts, max_new_tokens=limit, sampling=sampling, assistant=assistant)
    settings = options.settings(pair, prompts) | {"assistant": options.assistant and shareable(options.assistant)}
    fields = {"kind": "compare", "suite": "peers", "baseline": comparison.OURS, "settings": settings}
    workers = comparison.start_workers(peers, pythons, options.patience)
    with closing(workers), tempfile.TemporaryDirectory() as folder:
        with waiting("Opening the peers") as change:
            opened = comparison.open_peers(
                peers, workers, setup, pair=pair, prompt=prompts[0], folder=Path(folder), progress=change
            )
        for name, facts in opened.facts.items():
            if facts.reason:
                say(f"{name} does not run: {facts.reason}")
        settings["peers"] = {name: dataclasses.asdict(facts) for name, facts in opened.facts.items()}
        versions = {facts.package: facts.version for facts in opened.facts.values() if facts.version}
        labels = runner_labels(mine)
        runners: list[Runner] = [*(ControllerRunner(name, decoder, labels[name]) for name in mine), *opened.runners]
        return options.run(pair, runners, prompts, names=[*labels.values(), *opened.facts], versions=versions, **fields)


def _check(options: CompareOptions) -> None:
    """Refuses what no peer can do, before anything is loaded."""
    from specgym.env.decoding.pair import EIGHT_BITS

    if options.pair.device != "cpu":
        raise ParameterError(f"The peers are compared on a CPU only; got device {options.pair.device!r}.")
    if options.pair.dtype == EIGHT_BITS:
        raise ParameterError(f"The peers have no weights like those of {EIGHT_BITS}; compare in bfloat16 or float32.")
    if not options.patience > 0:
        raise ParameterError(f"patience must be more than 0 s; got {options.patience:g}.")


if __name__ == "__main__":
    main(compare)
