"""Plays a case: every text by plain decoding and by the engine, on the same model object."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel

from specgym.env.common.errors import SpecGymError
from tests.fuzz.cases import Case, Text
from tests.fuzz.drawing.arguments import Setting, expected_answer, make_arguments
from tests.fuzz.drawing.controllers import CountingController, Counts, named_controller
from tests.fuzz.drawing.foreign import CHANGES_AND_FOREIGN, FOREIGN, undo
from tests.fuzz.drawing.models import FAMILIES, context_of, make_draft, make_target
from tests.fuzz.entries import Call, Decoders, Entry, Generate
from tests.fuzz.reference import is_tie, plain_text, worst_choice

_ROUNDING = 0.3  # most that rounding to bfloat16 changes [spreads of the logits]


class DifferenceError(AssertionError):
    """A text is not that of plain decoding, or a model is not as it was."""


def play(case: Case) -> Counts:
    """Plays a case.

    Raises:
        DifferenceError: a text differs, or a model is not as it was.
    """
    try:
        return Player(case).play()
    finally:
        undo()


class Player:
    """The models of a case, and the counts of what was done with them.

    Args:
        case: the case.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.counts = case, Counts()
        self.family = FAMILIES[case.family]
        self.model = make_target(self.family, case.dtype, case.seed)
        self.rounded = self.model.dtype is torch.bfloat16
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        self.random = Random(f"{case.seed} changes")
        self.draft = make_draft(case.draft, self.model, case.seed, decoder="decoder" in case.entry)
        for name in case.foreign:
            FOREIGN[name](self.model, self.random)

    def play(self) -> Counts:
        """Plays all texts.

        Raises:
            DifferenceError: a text differs.
        """
        entry = self._entry()
        texts = self.case.texts
        for number in range(0, len(texts), entry.at_once):
            self._play(entry, texts[number : number + entry.at_once])
        for kind in self.case.kinds:
            self.counts.kinds[kind] = len(texts)
        return self.counts

    def _entry(self) -> Entry:
        kind = self.case.entry
        if "decoder" not in kind:
            return Generate(self.model, self.draft, threads="threads" in kind)
        return Decoders(self.model, self.draft, self.random, 2 if "two" in kind else 1, shared="shared" in kind)

    def _play(self, entry: Entry, texts: tuple[Text, ...]) -> None:
        """Plays texts that run at once."""
        for text in texts:
            if text.change:
                CHANGES_AND_FOREIGN[text.change](self.model, self.random)
        expected = [self._plain(text) for text in texts]
        calls = [Call(*self.inputs(text), self._controller(text)) for text in texts]  # objects that have seen no text
        before = state(self.model)
        entry.play(calls)
        if before != (after := state(self.model)):
            raise DifferenceError(f"the model is not as it was: {before} became {after}")
        for text, call, right in zip(texts, calls, expected, strict=True):
            if call.error is not None:
                self._check_refusal(text, call, right)
            elif self.rounded:
                self._judge(call)
            elif right is None:
                raise DifferenceError(f"not refused: {', '.join(text.arguments)}")
            else:
                self._compare(*right, call)

    def _check_refusal(self, text: Text, call: Call, right: tuple[torch.Tensor, Any] | None) -> None:
        """Passes on an error that is no refusal, and refuses a refusal that is late or has no reason."""
        shared = "shared" in self.case.entry
        if not isinstance(call.error, SpecGymError) and not (shared and "Another text was started" in str(call.error)):
            raise call.error or AssertionError("there is an error")
        self.counts.refused += 1
        if right is not None and not all(bool(step.isfinite().any(dim=1).all()) for step in right[1]):
            return  # processors forbid every token, or plain decoding itself computes NaN
        if not shared and (expected_answer(text.arguments) == "equal" or call.controller.started):
            started = "after its text was begun" if call.controller.started else "before anything ran"
            raise DifferenceError(f"refused {started}: {call.error}")

    def _controller(self, text: Text) -> CountingController:
        return CountingController(named_controller(self.case.controller, self.case.seed + text.seed), self.counts)

    def _plain(self, text: Text) -> tuple[torch.Tensor, Any] | None:
        """Returns what plain decoding gives, or None for what must be refused."""
        if expected_answer(text.arguments) == "refused" or self.rounded:
            return None
        return plain_text(self.model, *self.inputs(text))

    def inputs(self, text: Text) -> tuple[dict[str, Any], list[int] | None]:
        """Makes new arguments of `generate`, and the seed of each row's noise; no seeds for greedy decoding."""
        random = Random(f"{text.seed} prompts")
        prompts = [make_prompt(random, length, self.vocabulary) for length in text.prompts]
        longest, context = max(text.prompts), context_of(self.model)
        input_ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        cut = self.family.cut or len(prompts) > 1 or (self.family.changes_beyond and (text.sampled or self.rounded))
        new_tokens = min(text.new_tokens, context - longest) if cut else text.new_tokens
        made: dict[str, Any] = {"input_ids": input_ids, "max_new_tokens": new_tokens, "top_k": 0}
        if len(prompts) > 1:
            made["attention_mask"] = (input_ids != 0).long()
        made |= make_arguments(text.arguments, Setting(random, self.vocabulary, input_ids, new_tokens), text.seed)
        seed, rows = random.randrange(-(2**40), 2**40), len(prompts) * made.get("num_return_sequences", 1)
        return made, [seed + row for row in range(rows)] if text.sampled else None

    def _compare(self, expected: torch.Tensor, scores: Any, call: Call) -> None:
        """Compares the texts of a call, `int64[texts, tokens]`, and the scores if they were wanted."""
        prompt = call.inputs["input_ids"].shape[1]
        made = call.output if isinstance(call.output, torch.Tensor) else call.output.sequences
        if made.shape[1] >= context_of(self.model):
            expected = expected[:, : made.shape[1]]  # the text ends with the context
        for row, (right, text) in enumerate(zip(expected.tolist(), made.tolist(), strict=True)):
            self.counts.texts += 1
            if right == text or any(bool(step.isnan().any()) for step in scores):
                continue  # plain decoding may itself compute NaN for a padded row, which then does not end
            pairs = enumerate(zip(right, text, strict=False))
            number = next((number for number, (one, other) in pairs if one != other), 0)
            if number >= prompt and is_tie(scores[number - prompt][row], right[number], text[number]):
                self.counts.ties += 1
                return
            raise DifferenceError(f"row {row}: expected {right[prompt:]}, got {text[prompt:]}")
        if call.inputs.get("output_scores") and call.seeds is None:
            pairs = zip(scores[: len(call.output.scores)], call.output.scores, strict=True)
            if not all(torch.allclose(one, other, rtol=1e-3, atol=1e-3) for one, other in pairs):
                raise DifferenceError("scores differ")

    def _judge(self, call: Call) -> None:
        """Judges a greedy text in bfloat16, where rounding may choose among tokens that are nearly equally likely."""
        self.counts.rounded += 1
        text, prompt = call.output[0], call.inputs["input_ids"].shape[1]
        if (worst := worst_choice(self.model, text, prompt)) > _ROUNDING:
            raise DifferenceError(f"a token is {worst:.2f} spreads below the likeliest: {text[prompt:].tolist()}")


def make_prompt(random: Random, length: int, vocabulary: int) -> list[int]:
    """Draws a prompt without token 0, which pads. Most prompts repeat themselves, so that lookup finds something."""
    few = [random.randrange(1, vocabulary) for _ in range(random.choice((3, 6, 100)))]
    half = [random.choice(few) for _ in range((length + 1) // 2 if random.random() < 0.5 else length)]
    return (half * 2)[:length]


def state(model: PreTrainedModel) -> list[object]:
    """Returns what a call must leave as it was: attention, modes, hooks and the default precision."""
    modes = [module.training for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return [model.config._attn_implementation, sum(modes), len(modes), hooks, torch.get_default_dtype()]
