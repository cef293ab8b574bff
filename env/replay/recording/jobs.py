"""Records many texts of a pair into a trace, without those that the trace has already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from specgym.env.common.errors import PairError, PromptError
from specgym.env.common.files import write_text
from specgym.env.decoding.own_settings import warn_of_own_settings
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.drafts import CausalDraft, FeatureDraft
from specgym.env.models.hub.loading import fingerprint
from specgym.env.models.target import CachedModel
from specgym.env.prompts import Prompt
from specgym.env.replay.recording.answers import write_answers
from specgym.env.replay.recording.recorder import Recorder, SupersetRule
from specgym.env.replay.traces.file import TraceWriter
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

Progress = Callable[[str, int], None]
"""`progress(stage, positions)`: so many further positions are done"""


_SALT = "869"  # with it, three to five of the built-in prompts of every kind are in each of the two smaller splits


def split_of(identifier: str) -> str:
    """Returns the split of a prompt, by its identifier: 60 % train, 20 % validation, 20 % test."""
    share = int.from_bytes(hashlib.sha256(f"{_SALT}:{identifier}".encode()).digest()[:4]) / 2**32
    return "train" if share < 0.6 else "validation" if share < 0.8 else "test"


@dataclass(frozen=True)
class RecordingJob:
    """A text to record."""

    identifier: str
    category: str
    request: Request

    @property
    def key(self) -> tuple[object, ...]:
        """See `TraceText.key`."""
        return (self.identifier, *asdict(self.request.sampling).values())


def plan_jobs(
    pair: ModelPair, prompts: Sequence[Prompt], settings: Sequence[SamplingSettings], max_new_tokens: int
) -> list[RecordingJob]:
    """Returns a job for the first turn of every prompt with every setting.

    Replay knows no logits processors. So the target's own settings, such as penalties, are left out, with a warning.

    Raises:
        LimitError: a prompt is empty, or `max_new_tokens` is not positive.
        PromptError: two prompts have one name.
    """
    warn_of_own_settings(pair.target)
    jobs: dict[tuple[object, ...], RecordingJob] = {}
    for prompt in prompts:
        tokens = encode_chat(pair.tokenizer, prompt.turns[:1])
        for sampling in settings:
            job = RecordingJob(prompt.identifier, prompt.category, Request(tokens, max_new_tokens, sampling))
            if jobs.setdefault(job.key, job).request.prompt != tokens:
                raise PromptError(f"Two prompts are called {prompt.identifier}; rename one of their files.")
    return list(jobs.values())


def trace_header(pair: ModelPair, rule: SupersetRule) -> TraceHeader:
    """Returns the header of all traces of a pair by a rule.

    Raises:
        PairError: the pair's draft is prompt lookup, which needs no recording.
    """
    draft = pair.draft
    if not isinstance(draft, CausalDraft | FeatureDraft):
        raise PairError(f"Expected a draft model to record, feature or causal; got a draft of kind {draft.kind!r}.")
    return TraceHeader(
        target=_fingerprint(pair.target),
        draft=fingerprint(draft.network) if isinstance(draft, FeatureDraft) else _fingerprint(draft.model),
        draft_kind=draft.kind,
        names=(Path(pair.target_name).name, Path(pair.draft_name).name),  # of folders the last part only
        vocabulary=pair.target.vocabulary,
        context_limits=(pair.target.context_limit, draft.context_limit),
        end_tokens=tuple(sorted(pair.target.end_tokens)),
        rule=json.loads(json.dumps(asdict(rule) | {"fixed": [tree.record() for tree in rule.fixed]})),
        calibrator=None if draft.calibrator is None else draft.calibrator.record(),
        dtype=pair.target.precision,
    )


def _fingerprint(model: CachedModel) -> str:
    with model.lent() as loaded:
        return fingerprint(loaded)


def record_texts(
    pair: ModelPair,
    jobs: Sequence[RecordingJob],
    rule: SupersetRule,
    writer: TraceWriter,
    *,
    slots: int = 32,
    progress: Progress = lambda stage, positions: None,
) -> None:
    """Lets the target answer and records the draft's guesses along the answers, for all jobs that the trace lacks.

    Args:
        pair: target and draft.
        jobs: what to record; jobs that are in the trace are left out.
        rule: for the guesses that are recorded.
        writer: the trace; an interruption loses the text being recorded. Its batch is noted in a file beside the trace
            and answered again as a whole, since the last bits of a text depend on its company.
        slots: answers written at a time.
        progress: called as work is done.

    Raises:
        LimitError: a text is too long for the pair.
        NumericalError: a model returned NaN.
        OSError: the trace could not be written.
    """
    recorder = Recorder(pair.target, pair.draft, rule)
    pair.target.show_features(pair.draft.feature_layers)
    note = writer.path.with_name(f"{writer.path.name}.batch")
    for batch in _batches(jobs, writer.keys, _interrupted(note), slots):
        write_text(note, json.dumps([job.key for job in batch]))
        answers = write_answers(
            pair.target, [job.request for job in batch], slots, lambda tokens: progress("answering", tokens)
        )
        for answer in sorted(answers, key=lambda answer: answer.number):
            job = batch[answer.number]
            if job.key not in writer.keys:
                writer.write(record_text(recorder, job, answer.tokens, partial(progress, "recording"), answer.features))
        note.unlink()


def _batches(
    jobs: Sequence[RecordingJob], recorded: Collection[tuple[object, ...]], begun: set[str], slots: int
) -> Iterator[Sequence[RecordingJob]]:
    """Yields jobs to answer together: an interrupted batch as it was, then all others that are not recorded.

    Args:
        jobs: all jobs.
        recorded: keys of jobs that are done.
        begun: keys, as JSON, of the jobs of an interrupted batch.
        slots: most jobs of a batch.
    """
    first = [job for job in jobs if json.dumps(job.key) in begun]
    waiting = [job for job in jobs if job.key not in recorded]
    if len(first) == len(begun) <= slots and any(job in first for job in waiting):
        yield first
        waiting = [job for job in waiting if job not in first]
    for start in range(0, len(waiting), slots):
        yield waiting[start : start + slots]


def _interrupted(note: Path) -> set[str]:
    """Returns the keys, as JSON, of the batch that an interruption left unfinished, or an empty set."""
    try:
        return set(map(json.dumps, json.loads(note.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):  # without the note, only the last bits of some numbers differ
        return set()


def record_text(
    recorder: Recorder,
    job: RecordingJob,
    tokens: tuple[int, ...],
    progress: Callable[[int], None] = lambda positions: None,
    features: torch.Tensor | None = None,
) -> TraceText:
    """Returns the recording of a text that the target has written for a job.

    Args:
        recorder: of the pair.
        job: the request.
        tokens: prompt and answer [token ids].
        progress: called with the number of further positions that are done.
        features: see `Recorder.record`.

    Raises:
        LimitError: the text is too long for the pair.
        NumericalError: a model returned NaN.
    """
    identifier, request, prompt = job.identifier, job.request, len(job.request.prompt)
    table = recorder.record(tokens, prompt, request.sampling, progress, features)
    facts = identifier, job.category, split_of(identifier), request.sampling, prompt, request.max_new_tokens
    return TraceText(*facts, tokens, lambda: table)
