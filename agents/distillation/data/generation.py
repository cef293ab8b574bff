"""Text written by the target itself, the material a draft learns from.

Each conversation is one stream of tokens: the chat template's beginning, a user turn that the target samples
(after an opening, see `openings`), and the answer, greedy or sampled. Many streams decode together; a slot
that finishes takes the next conversation at once, so no row ever waits for the longest one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from specgym.agents.distillation.data.prompt_templates import Turn, draw_turn
from specgym.env.common.errors import PairError, ParameterError
from specgym.env.models.attention import ATTENTION
from specgym.env.models.slots import SlotCache
from specgym.env.tree.rounds import check_limit

_REFILL = 16  # conversations are begun when this share of the slots is free: a forward for each would take long
_READ_TOKENS = 16_384  # tokens that are read in one forward, padding included


@dataclass(frozen=True)
class GenerationConfig:
    """What text to write and how much of it.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: a share outside 0 and 1, or a negative temperature.
    """

    conversations: int = 1_500
    """conversations to write in all; one has about 300 tokens"""
    slots: int = 96
    """conversations decoded together [rows]"""
    max_user_tokens: int = 80
    """longest user turn, a given text not counted [tokens]"""
    max_text_tokens: int = 256
    """longest user turn where the target writes the text that the task is about [tokens]"""
    max_answer_tokens: int = 256
    """longest answer [tokens]"""
    user_temperature: float = 0.8
    """temperature of the user turns; at 1 a small model's questions fall apart"""
    greedy_share: float = 0.5
    """share of the answers decoded at temperature 0; the others are sampled at temperature 1"""
    given_share: float = 0.6
    """share of the tasks about a text that get one from this machine's Python; the target writes the other texts"""
    seed: int = 1000
    """seed of openings, temperatures and sampling"""

    def __post_init__(self) -> None:
        for name in ("conversations", "slots", "max_user_tokens", "max_text_tokens", "max_answer_tokens"):
            check_limit(f"generation.{name}", getattr(self, name))
        for name in ("greedy_share", "given_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"generation.{name} must be within 0 and 1; got {getattr(self, name)}.")
        if self.user_temperature < 0:
            raise ParameterError(f"generation.user_temperature must be 0 or more; got {self.user_temperature}.")


@dataclass(frozen=True)
class Conversation:
    """One finished stream."""

    tokens: np.ndarray
    """token ids, template included, `int32[length]`"""
    answer_start: int
    """index of the answer's first token"""
    temperature: float
    """temperature that the answer was decoded at"""
    kind: str
    """kind of task that the user turn was opened as"""
    prompt_hash: int
    """hash of the text that the task is about, or else of the user turn: equal for prompts that must not be split"""


@dataclass
class _Stream:
    """A conversation under way: `forced` tokens are fed before the model's own choices count."""

    turn: Turn
    temperature: float
    longest_turn: int  # tokens that the target may write of the user's turn
    forced: list[int]
    tokens: list[int] = field(default_factory=list)
    given: int = 0  # where the target began to write the turn or the answer
    turn_start: int = 0
    answer_start: int = -1

    @property
    def answering(self) -> bool:
        return self.answer_start >= 0

    def conversation(self, template: int) -> Conversation:
        """The conversation; `template` tokens stand between the user's turn and the answer."""
        tokens = np.array(self.tokens, np.int32)
        said = tokens[self.turn_start : self.answer_start - template].tobytes()
        subject = self.turn.subject.encode() or said
        return Conversation(tokens, self.answer_start, self.temperature, self.turn.kind, zlib.crc32(subject))


class SelfDialogue:
    """Lets a chat model hold conversations with itself.

    The model object is switched to the attention function of `specgym.env.models.attention`.

    Args:
        model: the target, a causal language model on the CPU or a GPU.
        tokenizer: its tokenizer, with a chat template.
        config: what to write.

    Raises:
        PairError: the tokenizer has no chat template.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig) -> None:
        self.before_user, self.after_user = _template_parts(tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.random = np.random.default_rng(config.seed)
        self.torch_random = torch.Generator(model.device).manual_seed(config.seed)
        self.end = int(tokenizer.eos_token_id)
        model.set_attn_implementation(ATTENTION)

    def conversations(self, progress: Callable[[int], None] = lambda tokens: None) -> Iterator[Conversation]:
        """Yields `config.conversations` conversations as they finish, telling `progress` how many tokens each has."""
        yield from self._decode([self._draw() for _ in range(self.config.conversations)], progress)

    def answers(
        self, turns: Sequence[Turn], progress: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[Conversation]:
        """Yields conversations with greedy answers to given turns, as they finish."""
        yield from self._decode([self._open(turn, 0.0) for turn in turns], progress)

    def _decode(self, waiting: list[_Stream], progress: Callable[[int], None]) -> Iterator[Conversation]:
        waiting.sort(key=_longest)
        streams: list[_Stream] = []
        longest = _longest(waiting[-1]) + 1 + len(self.after_user) + self.config.max_answer_tokens
        cache = SlotCache(self.model, self.config.slots, longest)
        least = max(1, self.config.slots // _REFILL)
        while waiting or streams:
            # Conversations of like length together: attention is as wide as the longest.
            free = self.config.slots - len(streams)
            while waiting and (free >= least or not streams):
                begun = self._next(waiting, free)
                self._prefill(begun, cache)
                streams += begun
                free -= len(begun)
            chosen = self._step(cache, streams)
            over = [row for row, stream in enumerate(streams) if not self._take(stream, chosen[row])]
            for row in over:
                progress(len(streams[row].tokens))
                yield streams[row].conversation(len(self.after_user) + 1)
            if over:
                streams = [streams[row] for row in cache.remove(over)]

    @staticmethod
    def _next(waiting: list[_Stream], free: int) -> list[_Stream]:
        """Takes as many of those that wait as there is room for and one forward reads."""
        begun, widest = [waiting.pop()], 0
        while waiting and len(begun) < free:
            widest = max(widest, len(begun[-1].forced), len(waiting[-1].forced))
            if (len(begun) + 1) * widest > _READ_TOKENS:
                break
            begun.append(waiting.pop())
        return begun

    @torch.inference_mode()
    def _prefill(self, streams: list[_Stream], cache: SlotCache) -> None:
        """Reads all that is given of users' turns, but their last tokens, which go with the next step."""
        read = [torch.tensor(stream.forced[:-1], dtype=torch.long) for stream in streams]
        batch = pad_sequence(read, batch_first=True).to(self.model.device)
        states = DynamicCache()
        if batch.shape[1]:
            self.model.get_decoder()(batch, past_key_values=states, use_cache=True)
        cache.add(states, [len(tokens) for tokens in read])
        for stream in streams:
            stream.tokens, stream.forced = stream.forced, []
            stream.given = len(stream.tokens)
            if not stream.turn.open:
                self._end_turn(stream)

    @torch.inference_mode()
    def _step(self, cache: SlotCache, streams: list[_Stream]) -> list[int]:
        """Feeds each stream's token and returns the token each of them would choose next."""
        device = self.model.device
        fed = [stream.tokens[length] for stream, length in zip(streams, cache.held, strict=True)]
        tokens = torch.tensor(fed, device=device)
        logits = self.model(
            tokens[:, None],
            attention_mask=cache.mask(self.model.dtype),
            position_ids=cache.lengths[:, None],
            past_key_values=cache,
        ).logits[:, 0]
        cache.advance()
        temperatures = [s.temperature if s.answering else self.config.user_temperature for s in streams]
        heat = torch.tensor(temperatures, device=device)
        cumulative = (logits.float() / heat.clamp(min=0.1)[:, None]).softmax(-1).cumsum(-1)
        draws = torch.rand(len(streams), 1, generator=self.torch_random, device=device)
        sampled = torch.searchsorted(cumulative, draws * cumulative[:, -1:])[:, 0].clamp_(max=logits.shape[-1] - 1)
        choice: list[int] = torch.where(heat == 0, logits.argmax(-1), sampled).tolist()
        return choice

    def _draw(self) -> _Stream:
        turn = draw_turn(self.random, self.config.given_share)
        return self._open(turn, 0.0 if self.random.random() < self.config.greedy_share else 1.0)

    def _open(self, turn: Turn, temperature: float) -> _Stream:
        config = self.config
        given = [*self.before_user, *self.tokenizer.encode(turn.text, add_special_tokens=False)]
        longest = (config.max_text_tokens if turn.long else config.max_user_tokens) if turn.open else 0
        return _Stream(turn, temperature, longest, given, turn_start=len(self.before_user))

    def _take(self, stream: _Stream, chosen: int) -> bool:
        """Adds the token that the stream takes next; False when the conversation is over."""
        if stream.forced:
            stream.tokens.append(stream.forced.pop(0))
            stream.given = len(stream.tokens)
            return True
        limit = self.config.max_answer_tokens if stream.answering else stream.longest_turn
        over = chosen == self.end or len(stream.tokens) - stream.given >= limit - 1
        if not over:
            stream.tokens.append(chosen)
            return True
        if stream.answering:
            stream.tokens.append(self.end)
            return False
        self._end_turn(stream)
        return self._take(stream, chosen)

    def _end_turn(self, stream: _Stream) -> None:
        stream.forced = [self.end, *self.after_user]
        stream.answer_start = len(stream.tokens) + len(stream.forced)


def _longest(stream: _Stream) -> int:
    """Most tokens of a stream before its answer, but for the template's."""
    return len(stream.forced) + stream.longest_turn


def _template_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The chat template's tokens before a user turn, and those from after its end mark to the answer."""
    if not tokenizer.chat_template:
        raise PairError("The target cannot talk to itself: its tokenizer needs a chat template, and has none.")
    marker = "USER TURN"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(text).split(marker)
    after = after.removeprefix(str(tokenizer.eos_token))
    return tokenizer.encode(before, add_special_tokens=False), tokenizer.encode(after, add_special_tokens=False)
