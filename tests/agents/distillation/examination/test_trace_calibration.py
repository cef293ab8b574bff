"""A calibrator's examples are the target's choices in a trace, and its errors are measured on other texts."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from specgym.agents.distillation.examination.calibration import DEPTHS, RANKS, fit_on_trace, trace_examples
from specgym.env.common.errors import TraceError
from specgym.env.replay.sources import find_trace
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.traces.records import TraceText
from tests.support.tiny_trace import save_tiny_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("texts") / "tiny.sgt"
    save_tiny_trace(path, prompts=12)
    trace = find_trace(path)
    seen: Counter[float] = Counter()
    texts = []
    for text in trace.texts:  # one in four of each mode is for the test
        seen[text.settings.temperature] += 1
        split = "test" if seen[text.settings.temperature] % 4 == 0 else "train"
        texts.append(dataclasses.replace(text, split=split))
    return Trace(path, trace.header, texts)


class TestExamples:
    @pytest.mark.parametrize("kind", ["feature", "causal"])
    def test_they_are_the_children_of_nodes_that_the_target_reached(self, kind: str, tmp_path: Path) -> None:
        save_tiny_trace(tmp_path / "tiny.sgt", kind, prompts=12)
        trace, expected = find_trace(tmp_path / "tiny.sgt"), []
        for text in trace.texts:
            table = text.guesses
            for position in range(text.prompt - 1, len(text.tokens) - 1):
                row = int(table.roots(np.array([position]))[0])
                for depth, wanted in zip(range(1, DEPTHS + 1), text.tokens[position + 1 :], strict=False):
                    if row < 0:
                        break
                    candidates = table.tokens[row].tolist()
                    hits = [token == wanted for token in candidates]
                    expected.append((depth, hits[:RANKS], table.log_probs[row, :RANKS].tolist()))
                    child = int(table.child[row, candidates.index(wanted)]) if any(hits) else -1
                    if kind == "causal" and any(hits) and position + depth < len(text.tokens) - 1:
                        root = int(table.roots(np.array([position + depth]))[0])
                        assert child < 0 or table.log_probs[child].tolist() == table.log_probs[root].tolist()
                        child = root
                    row = child
        found = trace_examples(trace.texts, trace.header)
        seen = zip(found.depth.tolist(), found.accepted.tolist(), found.log_probs.tolist(), strict=True)
        assert sorted(seen) == sorted(expected)
        assert len({depth for depth, _, _ in expected}) > 3, "the test would be vacuous"

    def test_the_test_split_is_measured_on_and_never_fitted_on(self, trace: Trace) -> None:
        found = fit_on_trace(trace)
        for mode, greedy in (("greedy", True), ("sampled", False)):
            texts = [text for text in trace.texts if (text.settings.temperature == 0) == greedy]
            judged = trace_examples([text for text in texts if text.split == "test"], trace.header)
            assert sum(error.children for error in found.errors[mode]) == judged.accepted.size
        others = [text for text in trace.texts if text.split != "test"]
        again = fit_on_trace(Trace(trace.path, trace.header, [*others, *_swapped(trace)]))
        assert again.calibrator.record() == found.calibrator.record()
        assert again.errors != found.errors, "the test would be vacuous"

    @pytest.mark.parametrize(("greedy", "split"), list(itertools.product((True, False), ("test", "train"))))
    def test_texts_that_are_missing_are_named(self, trace: Trace, greedy: bool, split: str) -> None:
        texts = [
            text
            for text in trace.texts
            if (text.settings.temperature == 0) != greedy or (text.split == "test") != (split == "test")
        ]
        message = f"{'greedy' if greedy else 'sampled'} texts in the {'test split' if split == 'test' else 'other'}"
        with pytest.raises(TraceError, match=message):
            fit_on_trace(Trace(trace.path, trace.header, texts))


def _swapped(trace: Trace) -> list[TraceText]:
    """Returns the texts of the test split, each with the guesses of the next text of its mode."""
    made = []
    for greedy in (True, False):
        texts = [text for text in trace.texts if text.split == "test" and (text.settings.temperature == 0) == greedy]
        made += [
            dataclasses.replace(text, load=other.load) for text, other in zip(texts, texts[1:] + texts[:1], strict=True)
        ]
    return made
