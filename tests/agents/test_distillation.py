"""A draft learns from the target's own words, computes in training what it computes at work, and is marked honestly."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from agents.distillation.agreement import Agreement, measure_agreement
from agents.distillation.card import export
from agents.distillation.corpus import KINDS, Lesson, TextShard, load_lessons, read_shard, shard_path, write_shard
from agents.distillation.generation import Conversation, GenerationConfig, SelfDialogue
from agents.distillation.openings import OPENINGS, WEIGHTS
from agents.distillation.pipeline import Distillation, DistillationConfig, Graduate
from agents.distillation.rollout import rollout
from agents.distillation.states import TOP, teacher_states
from agents.distillation.training import (
    TrainingConfig,
    collate,
    frequent_tokens,
    new_network,
    plan_batches,
    train,
    trimmed_index,
)
from env.drafts import FeatureDraft
from env.drafts.network import load_network
from env.errors import ModelFileError, ParameterError
from env.growth import Candidates
from env.models.target import TargetModel
from env.sampling import SamplingSettings, TokenChooser
from env.tree import TokenTree
from tests.tiny import VOCABULARY, feature_draft, tiny_network, tiny_target
from tests.tiny_pair import END, tiny_chat_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BEFORE = TOKENIZER.encode("<|im_start|>user\n")
AFTER = TOKENIZER.encode("\n<|im_start|>assistant\n")
NO_NODES = np.empty(0, np.int64)
GENERATION = GenerationConfig(tokens=3000, slots=8, max_user_tokens=10, max_answer_tokens=14, seed=5)

CONFIG = DistillationConfig(
    GenerationConfig(tokens=6000, slots=32, max_user_tokens=12, max_answer_tokens=24),
    TrainingConfig(epochs=3, batch_tokens=256, learning_rate=1e-2, vocabulary=80),
    shard_tokens=4000,
    held_out=8,
)
AGREEMENT = {
    "all": Agreement((0.99999, 0.4567891), (1.0, 0.9), 12345),
    "greedy": Agreement((0.7, 0.0009), (0.8, 0.5), 99),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The tiny chat model, which says its end token wherever it used to say the letter I."""
    model = tiny_chat_model(dtype=torch.float64)
    with torch.no_grad():
        model.lm_head.weight[END] = 1.1 * model.lm_head.weight[TOKENIZER.encode("I")[0]]
    return model


@pytest.fixture(scope="module")
def conversations(model: PreTrainedModel) -> list[Conversation]:
    return list(SelfDialogue(model, TOKENIZER, GENERATION).conversations())


@pytest.fixture(scope="module")
def easy_model() -> PreTrainedModel:
    """A target that goes by its last token alone: learned from 6,000 tokens."""
    model = tiny_chat_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def graduate(easy_model: PreTrainedModel, run_folder: Path) -> Graduate:
    return Distillation(easy_model, TOKENIZER, run_folder, CONFIG).run()


class TestSelfDialogue:
    @staticmethod
    def answer(conversation: Conversation) -> list[int]:
        return list(conversation.tokens[conversation.answer_start :].tolist())

    def test_all_tokens_asked_for_are_written(self, model: PreTrainedModel, conversations: list[Conversation]) -> None:
        written = sum(len(conversation.tokens) for conversation in conversations)
        longest = max(len(conversation.tokens) for conversation in conversations)
        assert GENERATION.tokens <= written < GENERATION.tokens + longest
        told: list[int] = []
        list(SelfDialogue(model, TOKENIZER, replace(GENERATION, tokens=200)).conversations(told.append))
        assert sum(told) >= 200

    def test_every_conversation_follows_the_template(self, conversations: list[Conversation]) -> None:
        for conversation in conversations:
            tokens, start = conversation.tokens.tolist(), conversation.answer_start
            assert tokens[: len(BEFORE)] == BEFORE
            assert tokens[start - len(AFTER) : start] == AFTER
            assert tokens[start - len(AFTER) - 1] == END, "the user's turn ends"
            assert tokens[-1] == END, "the answer ends"
            assert END not in tokens[start:-1]
            assert tokens[: start - 1].count(END) == 1

    def test_the_users_turn_goes_on_after_an_opening_of_its_kind(self, conversations: list[Conversation]) -> None:
        for conversation in conversations:
            turn = conversation.tokens[len(BEFORE) : conversation.answer_start - len(AFTER) - 1]
            text = TOKENIZER.decode(turn)
            own = [
                len(turn) - len(TOKENIZER.encode(opening))
                for opening in OPENINGS[conversation.kind]
                if text.startswith(opening)
            ]
            assert own
            assert min(own) < GENERATION.max_user_tokens, "the end mark is the last of these tokens"
        assert {conversation.kind for conversation in conversations} == set(KINDS) == set(WEIGHTS)

    def test_answers_keep_their_limit_and_some_end_before_it(self, conversations: list[Conversation]) -> None:
        lengths = {len(self.answer(conversation)) for conversation in conversations}
        assert max(lengths) == GENERATION.max_answer_tokens
        assert len(lengths) > 3

    def test_greedy_answers_are_the_models_own(self, model: PreTrainedModel, conversations: list[Conversation]) -> None:
        greedy = [conversation for conversation in conversations if conversation.temperature == 0]
        ended = 0
        for conversation in greedy:
            start = conversation.answer_start
            prompt = torch.from_numpy(conversation.tokens[None, :start].astype(np.int64))
            output = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=GENERATION.max_answer_tokens - 1
            )
            own = output[0, start:].tolist()
            ended += own[-1] == END
            assert self.answer(conversation) == [*own, *[END] * (own[-1] != END)]
        assert 0 < ended < len(greedy), "the test would miss a case"

    def test_sampled_answers_are_not_greedy(self, model: PreTrainedModel, conversations: list[Conversation]) -> None:
        (sampled, *_) = [conversation for conversation in conversations if conversation.temperature == 1]
        prompt = torch.from_numpy(sampled.tokens[None, : sampled.answer_start].astype(np.int64))
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5)
        assert output[0, sampled.answer_start :].tolist() != self.answer(sampled)[:5]

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_the_share_of_greedy_answers_is_as_asked(self, model: PreTrainedModel, share: float) -> None:
        config = replace(GENERATION, greedy_share=share)
        temperatures = [each.temperature for each in SelfDialogue(model, TOKENIZER, config).conversations()]
        assert temperatures.count(0.0) / len(temperatures) == pytest.approx(share, abs=0.2 * (share == 0.5))
        assert set(temperatures) <= {0.0, 1.0}

    def test_a_seed_gives_its_conversations_again(
        self, model: PreTrainedModel, conversations: list[Conversation]
    ) -> None:
        def text(seed: int) -> list[list[int]]:
            config = replace(GENERATION, seed=seed)
            return [each.tokens.tolist() for each in SelfDialogue(model, TOKENIZER, config).conversations()]

        assert text(GENERATION.seed) == [each.tokens.tolist() for each in conversations] != text(GENERATION.seed + 1)


def make_conversation(length: int, seed: int, answer_start: int = 1) -> Conversation:
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)
    return Conversation(tokens, min(answer_start, length - 1), 0.0, KINDS[seed % len(KINDS)])


def make_lessons(target: TargetModel, conversations: list[Conversation], folder: Path) -> list[Lesson]:
    """Conversations as the pipeline turns them into lessons, with `target` as the teacher."""
    shard = TextShard.of(conversations)
    write_shard(shard_path(folder, "text", 0), shard.tensors())
    with target.lent() as model:
        write_shard(shard_path(folder, "states", 0), teacher_states(model, shard))
    return list(load_lessons(folder))


class TestTeacher:
    def test_its_states_are_those_of_a_forward_over_each_conversation_alone(self) -> None:
        lengths = [1, 2, 120, *range(40, 120, 2), 7, 120]  # several batches, none of equal lengths
        shard = TextShard.of([make_conversation(length, seed) for seed, length in enumerate(lengths)])
        target = tiny_target()
        told: list[int] = []
        with target.lent() as model, torch.inference_mode():
            states = teacher_states(model, shard, told.append)
            for start, end in itertools.pairwise(shard.starts.tolist()):
                output = model(shard.tokens[None, start:end].long(), output_hidden_states=True)
                features, best = output.hidden_states[-1][0], output.logits[0].float().log_softmax(-1).topk(VOCABULARY)
                assert states["features"][start:end].equal(features.bfloat16())
                assert states["teacher_ids"][start:end].equal(best.indices.int())
                torch.testing.assert_close(
                    states["teacher_log_probs"][start:end].float(), best.values, rtol=1e-3, atol=1e-3
                )
        assert len(told) > 1, "the test would miss batching"
        assert sum(told) == sum(lengths)

    def test_only_the_most_probable_tokens_are_kept_of_a_large_vocabulary(self) -> None:
        target = tiny_target(vocab_size=2 * TOP)
        with target.lent() as model:
            states = teacher_states(model, TextShard.of([make_conversation(9, 0)]))
        assert states["teacher_ids"].shape == (9, TOP)
        assert (states["teacher_log_probs"].diff(dim=1) <= 0).all()
        assert (states["teacher_log_probs"].float().exp().sum(1) < 1).all()


class TestShards:
    def test_lessons_are_the_conversations_in_order(self, tmp_path: Path) -> None:
        conversations = [make_conversation(length, seed, 2) for seed, length in enumerate((5, 9, 3, 4, 8, 6))]
        lessons = make_lessons(tiny_target(), conversations, tmp_path)
        for conversation, lesson in zip(conversations, lessons, strict=True):
            assert lesson.tokens.tolist() == conversation.tokens.tolist()
            assert lesson.features.shape == (len(conversation.tokens), 32)
            assert (lesson.answer_start, lesson.temperature, lesson.kind) == (
                conversation.answer_start,
                conversation.temperature,
                conversation.kind,
            )

    @pytest.mark.parametrize("what", ["text", "states"])
    @pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"{" * len(data)])
    def test_a_corrupt_shard_is_named(self, tmp_path: Path, what: str, damage: object) -> None:
        make_lessons(tiny_target(), [make_conversation(9, 0)], tmp_path)
        path = shard_path(tmp_path, what, 0)
        path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
        with pytest.raises(ModelFileError, match=f"{path} is corrupt .* Delete it and run the command again"):
            list(load_lessons(tmp_path))

    def test_a_lost_shard_is_not_made_up_for_by_another(self, tmp_path: Path) -> None:
        shard = TextShard.of([make_conversation(9, 0)])
        target = tiny_target()
        for number in range(3):
            write_shard(shard_path(tmp_path, "text", number), shard.tensors())
            with target.lent() as model:
                write_shard(shard_path(tmp_path, "states", number), teacher_states(model, shard))
        shard_path(tmp_path, "text", 1).unlink()
        with pytest.raises(ModelFileError, match="text-0001"):
            list(load_lessons(tmp_path))


class ChainAtWork:
    """A feature draft as `LiveDecoder` uses it, on text that the target accepts token by token."""

    def __init__(self, draft: FeatureDraft, tokens: list[int], features: torch.Tensor) -> None:
        self.draft, self.tokens, self.features = draft, tokens, features
        self.committed = 0
        draft.start(TokenChooser(SamplingSettings(), VOCABULARY, features.device))

    def commit(self, until: int) -> None:
        """Settles the text before `until`; the features are the target's before each token, the first has none."""
        fresh = self.tokens[self.committed : until]
        self.draft.commit(fresh, self.features[max(self.committed - 1, 0) : until - 1], NO_NODES)
        self.committed = until

    def guesses(self, steps: int) -> list[Candidates]:
        """All candidates after the root and after each token of the text that follows it, as nodes of a chain."""
        tree = TokenTree(self.tokens[self.committed - 1])
        node = np.zeros(1, np.int64)
        made = []
        for step in range(steps):
            made.append(self.draft.expand(tree, node, VOCABULARY))
            following = self.tokens[self.committed + step : self.committed + step + 1]
            node = tree.add(node, np.array(following, np.int64), np.zeros(1))
        return made


class TestRollout:
    """The most important promise: what is trained and measured is what runs."""

    @settings(max_examples=40)
    @given(st.data())
    def test_every_step_is_what_the_draft_computes_at_work(self, data: st.DataObject) -> None:
        target = tiny_target(data.draw(st.integers(0, 3), "target"))
        draft = feature_draft(target, data.draw(st.integers(0, 3), "draft"))
        assert next(draft.network.parameters()).dtype == torch.float64
        steps = data.draw(st.integers(1, 5), "steps")
        token = st.integers(0, VOCABULARY - 1)
        tokens = data.draw(st.lists(token, min_size=steps + 2, max_size=30), "tokens")
        commits = sorted(data.draw(st.sets(st.integers(2, len(tokens) - steps), min_size=1, max_size=4), "commits"))
        with torch.inference_mode():
            features = self.features(target, tokens)
            embedded = draft.embedding(torch.tensor(tokens[1:]))[None]
            outputs = list(rollout(draft.network, embedded, features[None, :-1], steps))
            work = ChainAtWork(draft, tokens, features)
            for until in commits:
                work.commit(until)
                for step, guess in enumerate(work.guesses(steps)):
                    # Row r holds token r + 1: the root is in row `until` - 2.
                    expected = draft.network.head(outputs[step][0, until - 2 + step]).log_softmax(-1)
                    made = dict(zip(guess.tokens[0].tolist(), guess.log_probs[0].tolist(), strict=True))
                    assert [made[token] for token in draft.network.token_ids.tolist()] == pytest.approx(
                        expected.tolist(), abs=1e-5
                    )

    @staticmethod
    def features(target: TargetModel, tokens: list[int]) -> torch.Tensor:
        target.cache.reset()
        target.show_features(True)
        target.extend(tokens)
        assert target.features is not None
        return target.features

    def test_later_steps_differ_from_the_first(self) -> None:
        target = tiny_target()
        draft = feature_draft(target)
        tokens = list(range(12))
        with torch.inference_mode():
            features = self.features(target, tokens)
            embedded = draft.embedding(torch.tensor(tokens[1:]))[None]
            first, *later = rollout(draft.network, embedded, features[None, :-1], 4)
        for step, output in enumerate(later, start=1):
            assert (output - first)[0, step:].abs().amax(-1).min() > 1e-3, "the test above would be vacuous"

    def test_padding_on_the_right_changes_nothing(self) -> None:
        network = tiny_network().double()
        tokens, features = torch.randn(2, 1, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        padded = [torch.cat([each, torch.full((1, 4, 32), 7.0)], dim=1) for each in (tokens, features)]
        with torch.inference_mode():
            pairs = zip(rollout(network, tokens, features, 3), rollout(network, *padded, 3), strict=True)
            for step, (alone, beside) in enumerate(pairs):
                torch.testing.assert_close(beside[:, step:9], alone[:, step:])


class TestAgreement:
    @pytest.mark.parametrize("steps", [1, 4])
    def test_it_counts_what_the_draft_guesses_at_work(self, tmp_path: Path, steps: int) -> None:
        target = tiny_target()
        draft = feature_draft(target)
        conversations = [make_conversation(14, 1, 6), make_conversation(20, 2, 1), make_conversation(10, 3, 5)]
        lessons = make_lessons(target, conversations, tmp_path)
        train_a_little(draft, lessons)
        hits, seen = torch.zeros(steps, 2), torch.zeros(steps)
        for lesson in lessons:
            tokens, features = lesson.tokens.tolist(), lesson.features.double()
            for position, step in itertools.product(range(lesson.answer_start, len(tokens)), range(steps)):
                if position - step < 2:  # a draft needs a token with a feature before it
                    continue
                work = ChainAtWork(draft, tokens, features)
                work.commit(position - step)
                with torch.inference_mode():
                    guess = work.guesses(step + 1)[-1].tokens[0].tolist()
                best = int(lesson.teacher_ids[position - 1, 0])
                hits[step] += torch.tensor([guess[0] == best, best in guess[:4]])
                seen[step] += 1
        agreement = measure_agreement(draft.network, draft.embedding, lessons, steps)
        assert agreement.positions == seen[0]
        assert agreement.top1 == pytest.approx((hits[:, 0] / seen).tolist())
        assert agreement.top4 == pytest.approx((hits[:, 1] / seen).tolist())
        assert 0 < agreement.top1[0] < agreement.top4[0] < 0.9, "the test would be vacuous"

    def test_a_network_that_has_learned_its_lessons_by_heart_agrees_with_nearly_all(self, tmp_path: Path) -> None:
        target = tiny_target(dtype=torch.float32)
        lessons = make_lessons(target, [make_conversation(24, seed) for seed in range(3)], tmp_path)
        with target.lent() as model:
            network = new_network(model, torch.arange(VOCABULARY), 0)
        embedding = target.model.get_input_embeddings()
        assert measure_agreement(network, embedding, lessons, 3).top1[0] < 0.3, "the test would be vacuous"
        train(network, embedding, lessons, TrainingConfig(epochs=300, learning_rate=1e-2), lambda *_: None)
        assert min(measure_agreement(network, embedding, lessons, 3).top1) > 0.95


def train_a_little(draft: FeatureDraft, lessons: list[Lesson]) -> None:
    """So that the draft is right now and then."""
    embedding = torch.nn.Embedding.from_pretrained(draft.embedding.weight.detach().float())
    train(draft.network.float(), embedding, lessons, TrainingConfig(epochs=15, learning_rate=5e-3), lambda *_: None)
    draft.network.double().eval()


class TestTraining:
    @given(st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1), st.integers(1, 10))
    def test_frequent_tokens_are_the_most_frequent_and_their_coverage_is_exact(
        self, texts: list[list[int]], size: int
    ) -> None:
        nothing = torch.empty(0)
        lessons = [Lesson(torch.tensor(text), nothing, nothing, nothing, 0, 0.0, KINDS[0]) for text in texts]
        chosen, coverage = frequent_tokens(lessons, 10, size)
        counts = Counter(itertools.chain.from_iterable(texts))
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == size
        best = [count for _, count in counts.most_common(size)]
        assert sum(counts[token] for token in chosen.tolist()) == sum(best)
        assert coverage == pytest.approx(sum(best) / sum(counts.values()))

    @given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(64, 1024), st.integers(0, 9))
    def test_every_conversation_is_in_one_batch_of_the_size_asked_for(
        self, lengths: list[int], batch_tokens: int, seed: int
    ) -> None:
        plan = plan_batches(lengths, batch_tokens, seed)
        assert sorted(itertools.chain.from_iterable(plan)) == list(range(len(lengths)))
        for group in plan:
            # Conversations are sorted by length with a jitter of 24 tokens.
            assert len(group) == 1 or len(group) * (max(lengths[index] for index in group) - 24) <= batch_tokens

    def test_a_batch_teaches_what_the_teacher_said_within_the_trimmed_vocabulary(self, tmp_path: Path) -> None:
        lessons = make_lessons(tiny_target(), [make_conversation(4, 0), make_conversation(7, 1)], tmp_path)
        token_ids = torch.arange(1, VOCABULARY, 2)
        batch = collate(lessons, trimmed_index(token_ids, VOCABULARY))
        assert batch.tokens.shape == (2, 6)
        assert batch.features.shape == (2, 6, 32)
        for row, lesson in enumerate(lessons):
            rows = len(lesson.tokens) - 1
            assert batch.tokens[row, :rows].equal(lesson.tokens[1:])
            assert batch.features[row, :rows].equal(lesson.features[:-1].float())
            assert (batch.teacher_probs[row, rows:] == 0).all(), "padding teaches nothing"
            for place, column in itertools.product(range(rows), range(VOCABULARY)):
                token = int(lesson.teacher_ids[place + 1, column])
                probability = batch.teacher_probs[row, place, column]
                if token % 2:
                    assert token_ids[batch.teacher_ids[row, place, column]] == token
                    assert probability == lesson.teacher_log_probs[place + 1, column].float().exp()
                else:
                    assert probability == 0


class TestDistillation:
    def test_training_raises_the_agreement_on_text_it_has_not_seen(
        self, easy_model: PreTrainedModel, run_folder: Path, graduate: Graduate
    ) -> None:
        held_out = list(load_lessons(run_folder))[:: CONFIG.held_out]
        beginner = new_network(easy_model, graduate.network.token_ids.clone(), CONFIG.training.seed)
        chance = measure_agreement(beginner, easy_model.get_input_embeddings(), held_out)
        assert chance.top1[0] < 0.15
        assert min(graduate.agreement["all"].top1) > 0.8
        assert graduate.agreement["all"].positions == chance.positions

    def test_agreement_is_told_for_all_greedy_and_sampled_answers(self, graduate: Graduate) -> None:
        parts = graduate.agreement
        assert set(parts) == {"all", "greedy", "sampled"}
        assert parts["all"].positions == parts["greedy"].positions + parts["sampled"].positions
        hits = [parts[name].positions * parts[name].top1[0] for name in ("all", "greedy", "sampled")]
        assert hits[0] == pytest.approx(hits[1] + hits[2], abs=0.01)

    def test_what_is_held_out_is_not_trained_on(self, run_folder: Path, graduate: Graduate) -> None:
        lessons = list(load_lessons(run_folder))
        seen = [lesson for index, lesson in enumerate(lessons) if index % CONFIG.held_out]
        assert graduate.training_tokens == sum(len(lesson.tokens) for lesson in seen)
        assert graduate.network.token_ids.equal(frequent_tokens(seen, len(TOKENIZER), 80)[0])
        assert 0.5 < graduate.coverage < 1

    def test_a_shard_is_the_same_whenever_it_is_made(
        self, easy_model: PreTrainedModel, run_folder: Path, graduate: Graduate, tmp_path: Path
    ) -> None:
        paths = sorted(run_folder.glob("text-*.safetensors"))
        assert [path.name for path in paths] == ["text-0000.safetensors", "text-0001.safetensors"]
        write_shard(shard_path(tmp_path, "text", 0), read_shard(paths[0]))  # as if interrupted after the first
        Distillation(easy_model, TOKENIZER, tmp_path, CONFIG).write_text()
        assert not read_shard(paths[0])["tokens"][:1000].equal(read_shard(paths[1])["tokens"][:1000])
        assert (tmp_path / paths[1].name).read_bytes() == paths[1].read_bytes()

    def test_too_little_text_is_refused(self, easy_model: PreTrainedModel, tmp_path: Path) -> None:
        config = replace(CONFIG, generation=replace(CONFIG.generation, tokens=1, slots=1))
        with pytest.raises(ParameterError, match="Expected 8 conversations or more; got 1"):
            Distillation(easy_model, TOKENIZER, tmp_path, config).run()


class TestCard:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        graduate = Graduate(tiny_network(), 0.98765, 654321, AGREEMENT)
        export(graduate, DistillationConfig(held_out=13), "a-target", "python -m scripts.distill", tmp_path)
        return tmp_path

    def test_its_figures_are_the_measured_ones_cut_and_never_rounded_up(self, folder: Path) -> None:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
        for line in (
            "| all | 12,345 | top-1 | 0.999 | 0.456 |",
            "| all | 12,345 | top-4 | 1.000 | 0.900 |",
            "| greedy | 99 | top-1 | 0.700 | 0.000 |",
            "| greedy | 99 | top-4 | 0.800 | 0.500 |",
        ):
            assert line in lines
        card = "\n".join(lines)
        parameters = sum(parameter.numel() for parameter in tiny_network().parameters())
        for fact in (
            "a-target",
            "98.7 %",
            "654,321 tokens",
            "Every 13th",
            f"{parameters:,} parameters",
            "scripts.distill",
        ):
            assert fact in card

    def test_the_record_holds_the_figures_in_full(self, folder: Path) -> None:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        made = {
            name: Agreement(tuple(part["top1"]), tuple(part["top4"]), part["positions"])
            for name, part in record["agreement"].items()
        }
        assert made == AGREEMENT
        assert (record["vocabulary_coverage"], record["training_tokens"]) == (0.98765, 654321)
        assert record["config"]["training"]["epochs"] == DistillationConfig().training.epochs

    def test_the_weights_beside_it_are_the_graduates(self, folder: Path) -> None:
        network = load_network(folder / "draft.safetensors")
        for name, tensor in tiny_network().state_dict().items():
            assert network.state_dict()[name].equal(tensor if tensor.dtype == torch.int64 else tensor.bfloat16())
