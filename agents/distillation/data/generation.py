"""Text written by the target itself, from which a draft learns.

A conversation is one stream of tokens: the chat template's beginning, a user turn that the target samples (after an
opening, see `prompt_templates`), and the answer, greedy or sampled. Many streams decode together. A stream that ends
makes room for the next one at once, so no row waits for the longest.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from specgym.agents.distillation.data.prompt_templates import Turn, draw_turn
from specgym.agents.distillation.distillation_config import GenerationConfig
from specgym.env.common.errors import PairError
from specgym.env.models.attention import use_tree_attention
from specgym.env.models.hub.chat import render_chat
from specgym.env.models.slots import SlotCache

_REFILL = 16  # conversations begin when this part of the slots is free: a forward for each would take too long
_READ_TOKENS = 16_384  # tokens that are read in one forward, padding included


@dataclass(frozen=True)
class Conversation:
    """A finished conversation."""

    tokens: np.ndarray
    """token ids, template included, `int32[length]`"""
    answer_start: int
    """index of the answer's first token"""
    temperature: float
    """temperature of the answer"""
    kind: str
    """kind of task that the user turn began as"""
    prompt_hash: int
    """hash of the text that the task is about, or else of the user turn: equal for prompts that must not be split"""


@dataclass
class _Stream:
    """An unfinished conversation. Its `forced` tokens are fed before the model's own choices count."""

    turn: Turn
    temperature: float
    max_turn_tokens: int  # tokens that the target may write of the user's turn
    forced: list[int]
    tokens: list[int] = field(default_factory=list)
    own_start: int = 0  # index of the first token that the target chose in this turn or answer
    answer_start: int = 0  # 0 as long as the user's turn lasts

    def conversation(self, before: int, after: int) -> Conversation:
        """Returns the conversation; so many tokens of the template stand before and after the user's turn."""
        tokens = np.array(self.tokens, np.int32)
        subject = self.turn.subject.encode() or tokens[before : self.answer_start - after].tobytes()
        return Conversation(tokens, self.answer_start, self.temperature, self.turn.kind, zlib.crc32(subject))


class SelfDialogue:
    """Lets a chat model hold conversations with itself.

    The model object is switched to the attention function of `specgym.env.models.attention`.

    Args:
        model: the target, a causal language model on the CPU or a GPU.
        tokenizer: its tokenizer, with a chat template.
        config: amount and kind of the text.

    Raises:
        PairError: the tokenizer has no chat template.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig) -> None:
        self.before_user, self.after_user = _template_parts(tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.random = np.random.default_rng(config.seed)
        self.torch_random = torch.Generator(model.device).manual_seed(config.seed)
        self.end = int(tokenizer.eos_token_id)
        use_tree_attention(model)

    def conversations(self) -> Iterator[Conversation]:
        """Yields `config.conversations` conversations as they finish."""
        turns = (draw_turn(self.random, self.config.given_share) for _ in range(self.config.conversations))
        greedy = self.config.greedy_share
        yield from self._decode([self._open(turn, float(self.random.random() >= greedy)) for turn in turns])

    def answers(self, turns: Sequence[Turn]) -> Iterator[Conversation]:
        """Yields conversations with greedy answers to given turns, as they finish."""
        yield from self._decode([self._open(turn, 0.0) for turn in turns])

    def _decode(self, waiting: list[_Stream]) -> Iterator[Conversation]:
        # Attention is as wide as the longest row, so conversations of similar length decode together.
        waiting.sort(key=_prompt_bound)
        streams: list[_Stream] = []
        longest = _prompt_bound(waiting[-1]) + 1 + len(self.after_user) + self.config.max_answer_tokens
        cache = SlotCache(self.model, self.config.slots, longest)
        refill = max(1, self.config.slots // _REFILL)
        while waiting or streams:
            free = self.config.slots - len(streams)
            while waiting and (free >= refill or not streams):
                begun = self._next(waiting, free)
                self._prefill(begun, cache)
                streams += begun
                free -= len(begun)
            choices = self._step(cache, streams)
            finished = [row for row, stream in enumerate(streams) if not self._take(stream, choices[row])]
            for row in finished:
                yield streams[row].conversation(len(self.before_user), len(self.after_user) + 1)
            if finished:
                streams = [streams[row] for row in cache.remove(finished)]

    @staticmethod
    def _next(waiting: list[_Stream], free: int) -> list[_Stream]:
        """Takes as many waiting streams as there are free slots and as one forward reads."""
        begun, widest = [waiting.pop()], 0
        while waiting and len(begun) < free:
            widest = max(widest, len(begun[-1].forced), len(waiting[-1].forced))
            if (len(begun) + 1) * widest > _READ_TOKENS:
                break
            begun.append(waiting.pop())
        return begun

    @torch.inference_mode()
    def _prefill(self, streams: list[_Stream], cache: SlotCache) -> None:
        """Reads the given part of users' turns, except its last token, which belongs to the next step."""
        prompts = [torch.tensor(stream.forced[:-1], dtype=torch.long) for stream in streams]
        batch = pad_sequence(prompts, batch_first=True).to(self.model.device)
        states = DynamicCache()
        if batch.shape[1]:
            self.model.get_decoder()(batch, past_key_values=states, use_cache=True)
        cache.add(states, [len(tokens) for tokens in prompts])
        for stream in streams:
            stream.tokens, stream.forced = stream.forced, []
            stream.own_start = len(stream.tokens)
            if not stream.turn.open:
                self._end_turn(stream)

    @torch.inference_mode()
    def _step(self, cache: SlotCache, streams: list[_Stream]) -> list[int]:
        """Feeds each stream's last token and returns the model's choice of each next token."""
        device = self.model.device
        tokens = [[stream.tokens[length]] for stream, length in zip(streams, cache.held, strict=True)]
        batch, places = torch.tensor(tokens, device=device), cache.lengths[:, None]
        with cache.reading():
            output = self.model(batch, position_ids=places, past_key_values=cache)
        logits = output.logits[:, 0]
        cache.advance()
        temperatures = [s.temperature if s.answer_start else self.config.user_temperature for s in streams]
        heat = torch.tensor(temperatures, device=device)
        cumulative = (logits.float() / heat.clamp(min=0.1)[:, None]).softmax(-1).cumsum(-1)
        draws = torch.rand(len(streams), 1, generator=self.torch_random, device=device)
        sampled = torch.searchsorted(cumulative, draws * cumulative[:, -1:])[:, 0].clamp_(max=logits.shape[-1] - 1)
        choice: list[int] = torch.where(heat == 0, logits.argmax(-1), sampled).tolist()
        return choice

    def _open(self, turn: Turn, temperature: float) -> _Stream:
        given = [*self.before_user, *self.tokenizer.encode(turn.text, add_special_tokens=False)]
        own_tokens = turn.open * (self.config.max_text_tokens if turn.long else self.config.max_user_tokens)
        return _Stream(turn, temperature, own_tokens, given)

    def _take(self, stream: _Stream, choice: int) -> bool:
        """Adds the stream's next token. Returns False when the conversation is over."""
        if stream.forced:
            stream.tokens.append(stream.forced.pop(0))
            stream.own_start = len(stream.tokens)
            return True
        limit = self.config.max_answer_tokens if stream.answer_start else stream.max_turn_tokens
        if choice != self.end and len(stream.tokens) - stream.own_start < limit - 1:
            stream.tokens.append(choice)
            return True
        if stream.answer_start:
            stream.tokens.append(self.end)
            return False
        self._end_turn(stream)
        return self._take(stream, choice)

    def _end_turn(self, stream: _Stream) -> None:
        stream.forced = [self.end, *self.after_user]
        stream.answer_start = len(stream.tokens) + len(stream.forced)


def _prompt_bound(stream: _Stream) -> int:
    """Returns the most tokens that a stream can have before its answer, the template's not counted."""
    return len(stream.forced) + stream.max_turn_tokens


def _template_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Returns the chat template's tokens before a user turn, and those between its end mark and the answer."""
    if not tokenizer.chat_template:
        raise PairError("The target cannot talk to itself: its tokenizer needs a chat template, and has none.")
    marker = "USER TURN"
    turns = [{"role": "user", "content": marker}]
    before, found, after = render_chat(tokenizer, turns).partition(marker)
    if not found or marker in after:
        raise PairError("The target cannot talk to itself: its chat template does not repeat a user's turn once.")
    after = after.removeprefix(str(tokenizer.eos_token))
    return tokenizer.encode(before, add_special_tokens=False), tokenizer.encode(after, add_special_tokens=False)
