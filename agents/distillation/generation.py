"""Text written by the target itself, the material a draft learns from.

Each conversation is one stream of tokens: the chat template's beginning, a user turn that the target samples
(after an opening, see `openings`), and the answer, greedy or sampled. Hundreds of streams decode together; a slot
that finishes starts the next conversation at once, so no row ever waits for the longest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer

from agents.distillation.openings import OPENINGS, WEIGHTS

__all__ = ["Conversation", "GenerationConfig", "SelfDialogue"]


@dataclass(frozen=True)
class GenerationConfig:
    """What text to write and how much of it."""

    tokens: int = 640_000
    """tokens to write in all [tokens]"""
    slots: int = 160
    """conversations decoded together [rows]"""
    max_user_tokens: int = 80
    """longest user turn [tokens]"""
    max_answer_tokens: int = 224
    """longest answer [tokens]"""
    user_temperature: float = 0.8
    """temperature of the user turns; at 1 a small model's questions fall apart"""
    greedy_share: float = 0.55
    """share of the answers decoded at temperature 0; the others are sampled at temperature 1"""
    seed: int = 0
    """seed of openings, temperatures and sampling"""


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


@dataclass
class _Stream:
    """A conversation under way: `forced` tokens are fed before the model's own choices count."""

    kind: str
    temperature: float
    forced: list[int]
    tokens: list[int] = field(default_factory=list)
    turn_start: int = 0
    answer_start: int = -1

    @property
    def answering(self) -> bool:
        return self.answer_start >= 0

    def finished(self) -> Conversation:
        return Conversation(np.array(self.tokens, np.int32), self.answer_start, self.temperature, self.kind)


class _SlotLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values `[slots, heads, capacity, dim]`; every slot is at a length of its own."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, cache: _SlotCache) -> None:
        super().__init__()
        self.cache = cache
        self.is_initialized = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            slots, heads, _, dim = key_states.shape
            shape = (slots, heads, self.cache.capacity, dim)
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
            self.is_initialized = True
        lengths, rows = self.cache.lengths, self.cache.rows
        self.keys[rows, :, lengths] = key_states[:, :, 0]
        self.values[rows, :, lengths] = value_states[:, :, 0]
        return self.keys[:, :, : self.cache.width], self.values[:, :, : self.cache.width]


class _SlotCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """A cache whose rows advance independently; `lengths` says where each row writes next."""

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])
        self.capacity = capacity
        self.lengths = torch.zeros(slots, dtype=torch.long)
        self.rows = torch.arange(slots)

    @property
    def width(self) -> int:
        """Columns in use, the step under way included."""
        return int(self.lengths.max()) + 1


class SelfDialogue:
    """Lets a chat model hold conversations with itself.

    Args:
        model: the target, a causal language model on the CPU or a GPU.
        tokenizer: its tokenizer, with a chat template.
        config: what to write.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.random = np.random.default_rng(config.seed)
        self.torch_random = torch.Generator(model.device).manual_seed(config.seed)
        self.before_user, self.after_user = _template_parts(tokenizer)
        self.end = int(tokenizer.eos_token_id)

    def conversations(self, progress: Callable[[int], None] = lambda tokens: None) -> Iterator[Conversation]:
        """Yields conversations as they finish until `config.tokens` tokens are written."""
        config, slots = self.config, self.config.slots
        template = len(self.before_user) + len(self.after_user)
        longest = template + self._longest_opening() + config.max_user_tokens + config.max_answer_tokens
        cache = _SlotCache(self.model.config.num_hidden_layers, slots, longest)
        device = self.model.device
        cache.lengths, cache.rows = cache.lengths.to(device), cache.rows.to(device)
        streams = [self._open() for _ in range(slots)]
        tokens = torch.tensor([self._feed(stream, None) for stream in streams], device=device)
        written = 0
        while written < config.tokens:
            chosen = self._step(cache, tokens, streams)
            cache.lengths += 1
            feed: list[int] = []
            for slot, stream in enumerate(streams):
                following = self._feed(stream, chosen[slot])
                if following is None:
                    yield stream.finished()
                    written += len(stream.tokens)
                    progress(len(stream.tokens))
                    cache.lengths[slot] = 0
                    streams[slot] = self._open()
                    following = self._feed(streams[slot], None)
                assert following is not None, "a new stream has tokens to feed"
                feed.append(following)
            tokens = torch.tensor(feed, device=device)

    @torch.inference_mode()
    def _step(self, cache: _SlotCache, tokens: torch.Tensor, streams: list[_Stream]) -> list[int]:
        """One forward over all slots; the token each of them would choose next."""
        columns = torch.arange(cache.width, device=tokens.device)
        visible = columns[None, :] <= cache.lengths[:, None]  # [slots, width]
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=tokens.device)
        mask.masked_fill_(~visible, torch.finfo(self.model.dtype).min)
        logits = self.model(
            tokens[:, None],
            attention_mask=mask[:, None, None, :],
            position_ids=cache.lengths[:, None],
            past_key_values=cache,
        ).logits[:, 0]
        greedy = logits.argmax(-1)
        temperatures = [s.temperature if s.answering else self.config.user_temperature for s in streams]
        heat = torch.tensor(temperatures, device=tokens.device)
        cumulative = (logits.float() / heat.clamp(min=0.1)[:, None]).softmax(-1).cumsum(-1)
        draws = torch.rand(len(streams), 1, generator=self.torch_random, device=tokens.device)
        sampled = torch.searchsorted(cumulative, draws * cumulative[:, -1:])[:, 0].clamp_(max=logits.shape[-1] - 1)
        choice: list[int] = torch.where(heat == 0, greedy, sampled).tolist()
        return choice

    def _longest_opening(self) -> int:
        openings = chain.from_iterable(OPENINGS.values())
        return max(len(self.tokenizer.encode(opening, add_special_tokens=False)) for opening in openings)

    def _open(self) -> _Stream:
        kinds = list(WEIGHTS)
        kind = kinds[self.random.choice(len(kinds), p=list(WEIGHTS.values()))]
        openings = OPENINGS[kind]
        opening = openings[self.random.integers(len(openings))]
        temperature = 0.0 if self.random.random() < self.config.greedy_share else 1.0
        forced = [*self.before_user, *self.tokenizer.encode(opening, add_special_tokens=False)]
        return _Stream(kind, temperature, forced)

    def _feed(self, stream: _Stream, chosen: int | None) -> int | None:
        """The token that the stream takes next, or None when the conversation is over."""
        if stream.forced:
            token = stream.forced.pop(0)
            stream.turn_start = len(stream.tokens)
            stream.tokens.append(token)
            return token
        assert chosen is not None, "a stream starts with forced tokens"
        limit = self.config.max_answer_tokens if stream.answering else self.config.max_user_tokens
        over = chosen == self.end or len(stream.tokens) - stream.turn_start >= limit
        if over and stream.answering:
            stream.tokens.append(self.end)
            return None
        if over:
            stream.forced = list(self.after_user)
            stream.answer_start = len(stream.tokens) + 1 + len(self.after_user)
            chosen = self.end
        stream.tokens.append(chosen)
        return chosen


def _template_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The chat template's tokens before a user turn, and those from after its end mark to the answer."""
    marker = "USER TURN"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(text).split(marker)
    after = after.removeprefix(str(tokenizer.eos_token))
    return tokenizer.encode(before, add_special_tokens=False), tokenizer.encode(after, add_special_tokens=False)
