"""The most important promise: training and measuring compute what decoding computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgym.agents.distillation.model.students import rollout
from tests.support.distilling import FEATURE_SHAPES, ChainAtWork, target_features
from tests.support.tiny_models import VOCABULARY, feature_draft, tiny_network, tiny_target


@pytest.mark.parametrize(("layers", "feature_layers"), FEATURE_SHAPES)
class TestRollout:
    @settings(max_examples=20)
    @given(data=st.data())
    def test_every_step_is_what_the_draft_computes_in_decoding(
        self, layers: int, feature_layers: tuple[int, ...], data: st.DataObject
    ) -> None:
        target = tiny_target(data.draw(st.integers(0, 3), "target"))
        draft = feature_draft(target, data.draw(st.integers(0, 3), "draft"), layers, feature_layers)
        assert next(draft.network.parameters()).dtype == torch.float64
        steps = data.draw(st.integers(1, 5), "steps")
        token = st.integers(0, VOCABULARY - 1)
        tokens = data.draw(st.lists(token, min_size=steps + 2, max_size=30), "tokens")
        commits = sorted(data.draw(st.sets(st.integers(2, len(tokens) - steps), min_size=1, max_size=4), "commits"))
        with torch.inference_mode():
            features = target_features(target, tokens, feature_layers)
            embedded = draft.embedding(torch.tensor(tokens[1:]))[None]
            outputs = list(rollout(draft.network, embedded, features[None, :-1], steps))
            work = ChainAtWork(draft, tokens, features)
            for until in commits:
                work.commit(until)
                for step, guess in enumerate(work.guesses(steps)):
                    # Row r holds token r + 1: the root is in row `until` - 2.
                    logits = draft.network.head(outputs[step][0, until - 2 + step])
                    expected = logits.float().log_softmax(-1).bfloat16()  # the precision of candidates
                    assert [guess[token] for token in draft.network.token_ids.tolist()] == pytest.approx(
                        expected.tolist(), abs=1e-5
                    )

    def test_later_steps_differ_from_the_first(self, layers: int, feature_layers: tuple[int, ...]) -> None:
        target = tiny_target()
        draft = feature_draft(target, layers=layers, feature_layers=feature_layers)
        tokens = list(range(12))
        with torch.inference_mode():
            features = target_features(target, tokens, feature_layers)
            embedded = draft.embedding(torch.tensor(tokens[1:]))[None]
            first, *later = rollout(draft.network, embedded, features[None, :-1], 4)
        for step, output in enumerate(later, start=1):
            assert (output - first)[0, step:].abs().amax(-1).min() > 1e-3, "the test above would be vacuous"

    def test_padding_on_the_right_changes_nothing(self, layers: int, feature_layers: tuple[int, ...]) -> None:
        network = tiny_network(layers=layers, feature_layers=feature_layers).double()
        generator = torch.Generator().manual_seed(0)
        tokens, features = (
            torch.randn(1, 9, width, dtype=torch.float64, generator=generator)
            for width in (32, network.config.feature_width)
        )
        padded = [torch.cat([each, torch.full((1, 4, each.shape[2]), 7.0)], dim=1) for each in (tokens, features)]
        with torch.inference_mode():
            pairs = zip(rollout(network, tokens, features, 3), rollout(network, *padded, 3), strict=True)
            for step, (alone, beside) in enumerate(pairs):
                torch.testing.assert_close(beside[:, step:9], alone[:, step:])
