"""The bandits try every arm and come to play the best one."""

from __future__ import annotations

from specgym.controllers.registry import make_controller
from specgym.controllers.rules.bandits import BanditController
from tests.support.made_rounds import CHEAP, EXPENSIVE, FIRST, after, play


class TestBandits:
    def bandit(self, exploration: float = 0.3) -> BanditController:
        bandit = make_controller(f"banditspec:exploration={exploration}")
        assert isinstance(bandit, BanditController)
        return bandit

    def test_every_arm_is_played_once_before_any_is_played_again(self) -> None:
        bandit = self.bandit()
        played = play(bandit, len(bandit.arms), accepted=1, **CHEAP)
        assert len(set(played)) == len(bandit.arms) == 6

    def test_banditspec_learns_to_play_the_arm_of_most_tokens_per_time(self) -> None:
        deep = [choice.base_depth for choice in play(self.bandit(), 400, accepted=10, **CHEAP)]
        plain = [choice.base_depth for choice in play(self.bandit(), 400, accepted=0, **EXPENSIVE)]
        assert max(set(deep[200:]), key=deep[200:].count) == 8
        assert plain[200:].count(0) > 150

    def test_it_keeps_exploring_unless_exploration_is_zero(self) -> None:
        assert len(set(play(self.bandit(1.0), 400, accepted=2, **CHEAP)[300:])) > 2
        assert len(set(play(self.bandit(0.0), 400, accepted=10, **CHEAP)[300:])) == 1

    def test_nothing_is_random_and_nothing_is_forgotten_between_requests(self) -> None:
        first, second = self.bandit(), self.bandit()
        assert play(first, 100, accepted=2, **CHEAP) == play(second, 100, accepted=2, **CHEAP)
        first.reset()
        assert sum(first.rounds) == 99, "the last round of a request is never observed"
        again = play(first, 20, accepted=2, **CHEAP)
        assert again != play(self.bandit(), 20, accepted=2, **CHEAP)

    def test_a_round_that_a_guard_made_plain_counts_for_no_arm(self) -> None:
        bandit = self.bandit()
        bandit.act(FIRST)
        assert bandit.act(after(0, 0)).speculates
        assert sum(bandit.rounds) == 1, "the first arm is plain decoding itself"
        bandit.act(after(0, 0))
        assert sum(bandit.rounds) == 1

    def test_tapout_chooses_among_rules_that_end_a_chain(self) -> None:
        rule = make_controller("tapout")
        assert isinstance(rule, BanditController)
        choices = play(rule, 4, accepted=3)
        assert len({(choice.min_confidence > 0, choice.max_entropy) for choice in choices}) == 4
        assert {choice.max_branch for choice in choices} == {1}
