"""Sampling: noise that is a function, and samples that have the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from specgym.env.common.arrays import FloatArray
from specgym.env.common.errors import NumericalError, ParameterError
from specgym.env.tree.sampling import GumbelNoise, SamplingSettings, TokenChooser

CPU = torch.device("cpu")
LOGITS = torch.tensor([1.2, 0.3, -0.5, 0.9, -2.0, 0.0])
DRAWS = 4000


def noise(seed: int, positions: list[int], vocabulary: int = 11) -> np.ndarray:
    return rows(GumbelNoise(seed, vocabulary, CPU), positions)


def rows(source: GumbelNoise, positions: list[int]) -> np.ndarray:
    return torch.stack([source.row(position) for position in positions]).numpy()


class TestNoise:
    @given(st.lists(st.integers(0, 200), min_size=1, max_size=150), st.integers(-(2**63), 2**64))
    def test_the_order_of_positions_does_not_matter(self, positions: list[int], seed: int) -> None:
        asked_before = GumbelNoise(seed, 11, CPU)
        rows(asked_before, positions[::-1])
        alone = [noise(seed, [position])[0] for position in positions]
        np.testing.assert_array_equal(rows(asked_before, positions), alone)

    def test_a_larger_vocabulary_leaves_the_common_tokens_noise_as_it_is(self) -> None:
        np.testing.assert_array_equal(noise(5, [3, 9], 50)[:, :11], noise(5, [3, 9], 11))

    def test_another_seed_position_or_token_has_other_noise(self) -> None:
        values = np.concatenate([noise(seed, range(40)).ravel() for seed in (0, 1, 2, -1, 2**32, 2**40)])
        assert len(np.unique(values)) > 0.999 * len(values)  # float32 makes a few of them meet

    @pytest.mark.parametrize("seed", [0, 1, 123_456_789])
    def test_it_is_standard_gumbel(self, seed: int) -> None:
        values = noise(seed, range(60), 500).ravel()
        assert stats.kstest(values, stats.gumbel_r.cdf).pvalue > 0.001
        assert stats.kstest(values + 0.05, stats.gumbel_r.cdf).pvalue < 1e-6, "the test would be vacuous"

    def test_it_is_finite_even_for_a_large_vocabulary(self) -> None:
        assert np.isfinite(noise(0, range(8), 200_000)).all()

    @pytest.mark.parametrize("axis", [0, 1])
    def test_neighbouring_positions_and_tokens_are_uncorrelated(self, axis: int) -> None:
        uniform = np.exp(-np.exp(-noise(3, range(200), 200).astype(np.float64)))
        first, second = np.delete(uniform, -1, axis).ravel(), np.delete(uniform, 0, axis).ravel()
        assert abs(stats.pearsonr(first, second).statistic) < 4 / np.sqrt(first.size)


def exact_distribution(logits: torch.Tensor, settings: SamplingSettings) -> np.ndarray:
    """The probabilities of the tokens, computed in NumPy."""
    odds = np.exp(logits.numpy().astype(np.float64) / settings.temperature)
    descending = np.argsort(-odds)
    kept = np.zeros(len(odds), bool)
    kept[descending[: settings.top_k or len(odds)]] = True
    odds = np.where(kept, odds, 0)
    mass_before = np.cumsum(odds[descending] / odds.sum()) - odds[descending] / odds.sum()
    odds[descending[mass_before >= settings.top_p]] = 0
    return odds / odds.sum()


def draw(settings: SamplingSettings) -> np.ndarray:
    """Tokens chosen at `DRAWS` positions."""
    return TokenChooser(settings, len(LOGITS), CPU).choose(LOGITS.expand(DRAWS, -1), range(DRAWS))


def fit(tokens: np.ndarray, expected: np.ndarray) -> float:
    """The p-value of the tokens under the expected distribution; 0 if an impossible one occurs."""
    counts = np.bincount(tokens, minlength=len(expected))
    if counts[expected == 0].any():
        return 0.0
    possible = expected > 0
    return float(stats.chisquare(counts[possible], expected[possible] * len(tokens)).pvalue)


SETTINGS = [
    SamplingSettings(1.0),
    SamplingSettings(1.0, seed=1),
    SamplingSettings(0.7, seed=2),
    SamplingSettings(1.0, top_k=3, seed=3),
    SamplingSettings(0.7, top_k=1000, seed=4),
    SamplingSettings(1.0, top_p=0.8, seed=5),
    SamplingSettings(0.7, top_k=4, top_p=0.9, seed=6),
]


class TestChoice:
    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_samples_have_exactly_the_processed_distribution(self, settings: SamplingSettings) -> None:
        assert fit(draw(settings), exact_distribution(LOGITS, settings)) > 0.001

    @pytest.mark.parametrize(
        ("drawn", "claimed"),
        [
            (SamplingSettings(1.0), SamplingSettings(0.8)),
            (SamplingSettings(1.0), SamplingSettings(1.0, top_k=5)),
            (SamplingSettings(0.7, top_p=0.9), SamplingSettings(0.7)),
        ],
        ids=str,
    )
    def test_samples_of_other_settings_are_noticed(self, drawn: SamplingSettings, claimed: SamplingSettings) -> None:
        assert fit(draw(drawn), exact_distribution(LOGITS, claimed)) < 1e-6

    def test_many_seeds_at_one_position_have_the_distribution_too(self) -> None:
        tokens = [
            int(TokenChooser(SamplingSettings(1.0, seed=seed), 6, CPU).choose(LOGITS[None], [7])[0])
            for seed in range(1000)
        ]
        assert fit(np.array(tokens), exact_distribution(LOGITS, SETTINGS[0])) > 0.001

    def test_successive_tokens_are_independent(self) -> None:
        tokens = draw(SamplingSettings(1.0))
        table = np.zeros((6, 6))
        np.add.at(table, (tokens[:-1], tokens[1:]), 1)
        assert stats.chi2_contingency(table).pvalue > 0.001

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_greedy_is_the_likeliest_token(self, dtype: torch.dtype) -> None:
        logits = torch.randperm(90, generator=torch.Generator().manual_seed(0)).reshape(3, 30).to(dtype)
        choices = TokenChooser(SamplingSettings(), 30, CPU).choose(logits, [4, 5, 6])
        assert choices.dtype == np.int64
        assert choices.tolist() == [row.tolist().index(max(row.tolist())) for row in logits]

    @pytest.mark.parametrize("settings", [SamplingSettings(), *SETTINGS], ids=str)
    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_a_single_nan_or_infinity_among_the_logits_is_an_error(
        self, settings: SamplingSettings, poison: float
    ) -> None:
        logits = LOGITS.repeat(3, 1)
        logits[1, 4] = poison
        with pytest.raises(NumericalError, match=r"target returned NaN or infinite.*--dtype float32"):
            TokenChooser(settings, 6, CPU).choose(logits, [0, 1, 1])

    def test_a_row_that_forbids_everything_is_an_error_and_one_that_allows_something_is_not(self) -> None:
        chooser = TokenChooser(SamplingSettings(1.0), 3, CPU)
        allowed = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
        assert chooser.choose(allowed, [0]).tolist() == [1]
        with pytest.raises(NumericalError):
            chooser.choose(torch.full((1, 3), -torch.inf), [0])


def as_told(log_probs: FloatArray) -> FloatArray:
    """Log-probabilities in the precision of candidates."""
    return torch.from_numpy(log_probs).bfloat16().double().numpy()


class TestRank:
    def test_greedy_candidates_come_best_first_with_their_log_probabilities(self) -> None:
        candidates = TokenChooser(SamplingSettings(), 6, CPU).rank(LOGITS[None], [3], 4)
        expected = exact_distribution(LOGITS, SamplingSettings(1.0))
        assert candidates.tokens.tolist() == [[0, 3, 1, 5]]
        to_candidates = as_told(np.log(expected[[0, 3, 1, 5]]))
        np.testing.assert_allclose(candidates.log_probs[0], to_candidates, rtol=1e-9)
        np.testing.assert_allclose(candidates.confidence, np.exp(to_candidates[:1]), rtol=1e-9)

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_candidates_survive_a_recording_in_float16_to_the_bit(self, settings: SamplingSettings) -> None:
        logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(4))
        candidates = TokenChooser(settings, 6, CPU).rank(logits, range(50), 4, entropy=True)
        assert candidates.entropy is not None
        for values in (candidates.log_probs, candidates.entropy):
            assert np.array_equal(values, values.astype(np.float16).astype(np.float64))

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_entropy_is_that_of_the_distribution_without_noise(self, settings: SamplingSettings) -> None:
        candidates = TokenChooser(settings, 6, CPU).rank(LOGITS[None], [3], 4, entropy=True)
        likely = exact_distribution(LOGITS, SamplingSettings(1.0) if settings.greedy else settings)
        likely = likely[likely > 0]
        assert candidates.entropy is not None
        assert candidates.entropy[0] == pytest.approx(-(likely * np.log(likely)).sum(), abs=1 / 128)
        assert TokenChooser(settings, 6, CPU).rank(LOGITS[None], [3], 4).entropy is None

    def test_more_candidates_than_tokens_are_all_the_tokens(self) -> None:
        assert TokenChooser(SamplingSettings(), 6, CPU).rank(LOGITS[None], [3], 9).tokens.shape == (1, 6)

    @pytest.mark.parametrize("settings", SETTINGS, ids=str)
    def test_a_draft_with_the_targets_distribution_proposes_the_targets_choice_first(
        self, settings: SamplingSettings
    ) -> None:
        logits, positions = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), list(range(50))
        chooser = TokenChooser(settings, 6, CPU)
        candidates = chooser.rank(logits, positions, 6)
        assert candidates.tokens[:, 0].tolist() == chooser.choose(logits, positions).tolist()
        assert (candidates.tokens[:, 0] != logits.argmax(-1).numpy()).any(), "the test would be vacuous"
        assert (np.diff(candidates.log_probs.clip(-1e9)) <= 0).all()
        exact = chooser.scores(logits, positions).double().log_softmax(-1).sort(descending=True).values
        np.testing.assert_allclose(exact.exp().sum(dim=1), 1, rtol=1e-9)
        np.testing.assert_allclose(candidates.log_probs, as_told(exact.numpy()), rtol=1e-9)

    def test_a_trimmed_vocabulary_is_ranked_by_its_logits_and_the_targets_noise_for_its_tokens(self) -> None:
        token_ids = torch.tensor([17, 2, 30, 9, 21, 4])
        settings = SamplingSettings(0.7, seed=3)
        candidates = TokenChooser(settings, 31, CPU).rank(LOGITS.repeat(20, 1), range(20), 6, token_ids)
        perturbed = LOGITS.numpy() / 0.7 + noise(3, range(20), 31)[:, token_ids.numpy()]
        assert candidates.tokens.tolist() == token_ids.numpy()[np.argsort(-perturbed, axis=1)].tolist()
        assert len(np.unique(candidates.tokens[:, 0])) > 1, "the test would be vacuous"

    def test_a_draft_with_fewer_rows_of_padding_than_the_target_gets_the_targets_noise(self) -> None:
        logits, settings = LOGITS.repeat(20, 1), SamplingSettings(1.0, seed=3)
        narrow, equal = (TokenChooser(settings, width, CPU).rank(logits, range(20), 6) for width in (40, 6))
        assert narrow.tokens.tolist() == equal.tokens.tolist()

    def test_rows_of_one_position_share_its_noise_wherever_they_stand(self) -> None:
        logits, positions = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), [3, 3, 4, 3, 5, 5, 4, 4] * 5
        chooser = TokenChooser(SamplingSettings(1.0), 6, CPU)
        alone = [chooser.choose(logits[row : row + 1], [position])[0] for row, position in enumerate(positions)]
        assert chooser.choose(logits, positions).tolist() == alone

    def test_logits_stay_as_they_are(self) -> None:
        logits = LOGITS.repeat(2, 1)
        for settings in SETTINGS:
            TokenChooser(settings, 6, CPU).choose(logits, [0, 1])
        torch.testing.assert_close(logits, LOGITS.repeat(2, 1), rtol=0, atol=0)

    @pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(1.0)], ids=str)
    def test_nan_in_the_draft_is_an_error(self, settings: SamplingSettings) -> None:
        logits = LOGITS.repeat(2, 1)
        logits[1, 2] = torch.nan
        with pytest.raises(NumericalError, match="draft returned NaN"):
            TokenChooser(settings, 6, CPU).rank(logits, [0, 1], 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be 0 \(greedy\) or a positive number; got -0.1"),
        ({"temperature": float("nan")}, r"temperature .* got nan"),
        ({"temperature": float("inf")}, r"temperature .* got inf"),
        ({"top_k": -1}, r"top_k must be 0 .* got -1"),
        ({"top_p": 0.0}, r"top_p must be over 0 and at most 1; got 0.0"),
        ({"top_p": 1.01}, r"top_p .* got 1.01"),
        ({"top_p": float("nan")}, r"top_p .* got nan"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SamplingSettings(**values)  # type: ignore[arg-type]
