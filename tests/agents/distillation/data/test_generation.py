"""Every conversation of the target with itself follows the template, keeps its limits and is the target's own text."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from specgym.agents.distillation.data.generation import Conversation, SelfDialogue
from specgym.agents.distillation.data.prompt_templates import INSTRUCTIONS, KINDS, OPENINGS, functions, passages
from specgym.agents.distillation.distillation_config import GenerationConfig
from specgym.env.common.errors import LimitError, PairError, ParameterError
from tests.support.distilling import AFTER, BEFORE, TOKENIZER
from tests.support.tiny_pair import END, tiny_chat_model, tiny_tokenizer


def answer(conversation: Conversation) -> list[int]:
    return list(conversation.tokens[conversation.answer_start :].tolist())


def user_turn(conversation: Conversation) -> str:
    end = conversation.answer_start - len(AFTER) - 1
    return decode(conversation.tokens[len(BEFORE) : end].tolist())


def subject(conversation: Conversation) -> str:
    """Returns the given text that the conversation is about, or an empty one."""
    turn = user_turn(conversation)
    return max((text for text in given_texts(conversation.kind) if text in turn), key=len, default="")


@functools.cache
def given_texts(kind: str) -> tuple[str, ...]:
    """Returns texts that conversations of a kind are about, as the tiny tokenizer reads them: it knows ASCII only."""
    texts = {"summarisation": passages, "reading": passages, "editing": functions}.get(kind, tuple)()
    return tuple(decode(tokens) for tokens in TOKENIZER(list(texts))["input_ids"]) if texts else ()


def decode(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(tokens, clean_up_tokenization_spaces=False))


def own_words(conversation: Conversation) -> int:
    """Returns how many tokens of the user's turn the target wrote, after an opening or an instruction."""
    turn, given = user_turn(conversation), subject(conversation)
    beginnings = OPENINGS[conversation.kind]
    if given:
        beginnings = tuple(template.replace("{text}", given) for template in INSTRUCTIONS[conversation.kind])
    own = [len(TOKENIZER.encode(turn[len(beginning) :])) for beginning in beginnings if turn.startswith(beginning)]
    assert own, "the turn begins as its kind does"
    return min(own)


def write(model: PreTrainedModel, config: GenerationConfig) -> list[Conversation]:
    return list(SelfDialogue(model, TOKENIZER, config).conversations())


class TestConversations:
    @pytest.mark.parametrize("count", [1, 8, 21])
    def test_as_many_are_written_as_configured(
        self, model: PreTrainedModel, generation: GenerationConfig, count: int
    ) -> None:
        assert len(write(model, dataclasses.replace(generation, conversations=count))) == count

    def test_every_one_follows_the_template(self, conversations: list[Conversation]) -> None:
        for conversation in conversations:
            tokens, start = conversation.tokens.tolist(), conversation.answer_start
            assert tokens[: len(BEFORE)] == BEFORE
            assert tokens[start - len(AFTER) : start] == AFTER
            assert tokens[start - len(AFTER) - 1] == END, "the user's turn ends"
            assert tokens[-1] == END, "the answer ends"
            assert END not in tokens[start:-1]
            assert tokens[: start - 1].count(END) == 1

    def test_every_kind_of_task_is_there(self, conversations: list[Conversation]) -> None:
        assert {conversation.kind for conversation in conversations} == set(KINDS)
        with_text = {conversation.kind for conversation in conversations if subject(conversation)}
        assert with_text == set(INSTRUCTIONS)

    def test_a_seed_gives_its_conversations_again(
        self, model: PreTrainedModel, conversations: list[Conversation], generation: GenerationConfig
    ) -> None:
        again = write(model, generation)
        for one, other in zip(again, conversations, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert dataclasses.replace(one, tokens=other.tokens) == other
        other = write(model, dataclasses.replace(generation, seed=generation.seed + 1))
        assert [each.tokens.tolist() for each in other] != [each.tokens.tolist() for each in again]


class TestUserTurns:
    def test_the_target_continues_an_opening_up_to_the_limit(
        self, conversations: list[Conversation], generation: GenerationConfig
    ) -> None:
        short = [own_words(each) for each in conversations if subject(each) or each.kind not in INSTRUCTIONS]
        assert max(short) == generation.max_user_tokens - 1, "the end mark is the last of these tokens"

    def test_a_text_that_the_target_writes_itself_may_be_longer(
        self, conversations: list[Conversation], generation: GenerationConfig
    ) -> None:
        long = [own_words(each) for each in conversations if each.kind in INSTRUCTIONS and not subject(each)]
        assert max(long) == generation.max_text_tokens - 1

    def test_a_complete_turn_is_left_as_it_is_and_an_open_one_is_continued(
        self, conversations: list[Conversation]
    ) -> None:
        written: dict[bool, set[bool]] = {True: set(), False: set()}
        for conversation in filter(subject, conversations):
            turn, given = user_turn(conversation), subject(conversation)
            (template,) = [
                each for each in INSTRUCTIONS[conversation.kind] if turn.startswith(each.replace("{text}", given))
            ]
            complete = template.endswith((".", "{text}", "```"))
            written[complete].add(own_words(conversation) > 0)
        assert written == {True: {False}, False: {True}}


class TestAnswers:
    def test_they_keep_their_limit_and_some_end_before_it(
        self, conversations: list[Conversation], generation: GenerationConfig
    ) -> None:
        lengths = {len(answer(conversation)) for conversation in conversations}
        assert max(lengths) == generation.max_answer_tokens
        assert len(lengths) > 3

    def test_greedy_ones_are_the_models_own(
        self, model: PreTrainedModel, conversations: list[Conversation], generation: GenerationConfig
    ) -> None:
        plain = copy.deepcopy(model)
        plain.set_attn_implementation("sdpa")
        greedy = [conversation for conversation in conversations if conversation.temperature == 0]
        ended = 0
        for conversation in greedy:
            own = continued(plain, conversation, generation.max_answer_tokens - 1)
            ended += own[-1] == END
            assert answer(conversation) == [*own, *[END] * (own[-1] != END)]
        assert 0 < ended < len(greedy), "the test would miss a case"

    def test_sampled_ones_are_not_greedy(self, model: PreTrainedModel, conversations: list[Conversation]) -> None:
        sampled = [conversation for conversation in conversations if conversation.temperature == 1][:10]
        assert any(continued(model, each, 5) != answer(each)[:5] for each in sampled)

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_as_many_are_greedy_as_configured(
        self, model: PreTrainedModel, generation: GenerationConfig, share: float
    ) -> None:
        config = dataclasses.replace(generation, greedy_share=share, max_user_tokens=1, max_answer_tokens=1)
        temperatures = [each.temperature for each in write(model, config)]
        assert temperatures.count(0.0) / len(temperatures) == pytest.approx(share, abs=0.2 * (share == 0.5))
        assert set(temperatures) <= {0.0, 1.0}


def continued(model: PreTrainedModel, conversation: Conversation, tokens: int) -> list[int]:
    """Returns the model's own greedy answer."""
    start = conversation.answer_start
    prompt = torch.from_numpy(conversation.tokens[None, :start].astype(np.int64))
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens)
    return list(output[0, start:].tolist())


class TestCompany:
    CONFIG = GenerationConfig(
        conversations=30, max_user_tokens=10, max_answer_tokens=14, user_temperature=0.0, greedy_share=1.0, seed=5
    )

    @pytest.fixture(scope="class")
    @staticmethod
    def alone(model: PreTrainedModel) -> list[list[int]]:
        """Texts in the order in which they were written one by one."""
        return [each.tokens.tolist() for each in write(model, dataclasses.replace(TestCompany.CONFIG, slots=1))]

    @pytest.mark.parametrize("slots", [2, 7, 64])
    def test_a_text_does_not_depend_on_those_that_are_decoded_with_it(
        self, model: PreTrainedModel, alone: list[list[int]], slots: int
    ) -> None:
        config = dataclasses.replace(self.CONFIG, slots=slots)
        together = [each.tokens.tolist() for each in write(model, config)]
        assert sorted(together) == sorted(alone)
        assert together != alone, "some end before others that were begun earlier: slots are taken anew"
        assert len({len(text) for text in alone}) > 10, "the test would be vacuous"


class TestPromptHash:
    @pytest.fixture(scope="class")
    @staticmethod
    def many(model: PreTrainedModel) -> list[Conversation]:
        """Conversations of which some begin alike: they have the same given text, or only an opening."""
        config = GenerationConfig(
            conversations=400, slots=50, max_user_tokens=1, max_text_tokens=1, max_answer_tokens=1, given_share=0.8
        )
        return write(model, config)

    def test_it_is_equal_for_one_subject_and_different_for_others(self, many: list[Conversation]) -> None:
        self.assert_one_hash_each([(subject(each), each.prompt_hash) for each in many if subject(each)])

    def test_without_a_subject_it_depends_on_the_users_turn(self, many: list[Conversation]) -> None:
        self.assert_one_hash_each([(user_turn(each), each.prompt_hash) for each in many if not subject(each)])

    @staticmethod
    def assert_one_hash_each(pairs: list[tuple[str, int]]) -> None:
        hashes = defaultdict(set)
        for text, hashed in pairs:
            hashes[text].add(hashed)
        assert all(len(each) == 1 for each in hashes.values())
        assert len(set().union(*hashes.values())) == len(hashes)
        assert 5 < len(hashes) < len(pairs), "the test would be vacuous"

    def test_the_answer_does_not_count(self, model: PreTrainedModel) -> None:
        config = GenerationConfig(conversations=60, slots=60, max_user_tokens=1, max_text_tokens=1, max_answer_tokens=9)
        by_turn = defaultdict(list)
        for conversation in write(model, config):
            by_turn[user_turn(conversation)].append(conversation)
        pairs = [pair for group in by_turn.values() for pair in itertools.combinations(group, 2)]
        assert any(answer(one) != answer(other) for one, other in pairs), "the test would be vacuous"
        assert all(one.prompt_hash == other.prompt_hash for one, other in pairs)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("conversations", 0, LimitError),
            ("slots", -1, LimitError),
            ("max_user_tokens", 0, LimitError),
            ("max_text_tokens", 0, LimitError),
            ("max_answer_tokens", 0, LimitError),
            ("greedy_share", 1.1, ParameterError),
            ("given_share", -0.1, ParameterError),
            ("user_temperature", -1.0, ParameterError),
        ],
    )
    def test_a_setting_outside_its_range_is_named(self, name: str, value: float, error: type[Exception]) -> None:
        with pytest.raises(error, match=rf"^generation\.{name} must be .*; got {value}\.$"):
            GenerationConfig(**{name: value})  # type: ignore[arg-type]

    def test_a_tokenizer_without_a_chat_template_is_refused(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        with pytest.raises(PairError, match="its tokenizer needs a chat template"):
            SelfDialogue(tiny_chat_model(), tokenizer, GenerationConfig())
