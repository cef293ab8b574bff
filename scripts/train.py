"""Trains policies by reinforcement learning on recorded texts, and keeps the best one."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from specgym.agents.learning.config import LearningPlan
from specgym.env.common.errors import check_limit
from specgym.env.common.files import check_writable, written_alone
from specgym.scripts.common import main, say, show
from specgym.scripts.options import set_threads
from specgym.scripts.progress import progress

if TYPE_CHECKING:
    from specgym.agents.learning.setup import TrainingSetup
    from specgym.agents.learning.training_history import TrainingHistory


@dataclass(frozen=True)
class TrainOptions:
    """Trains policies on recorded texts. Run it again after an interruption: finished work is not repeated."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profiles: tuple[str, ...] = ()
    """latency profiles to learn on, drawn for every episode: files of `specgym measure-latency`, or names of shipped
    profiles and of parametric families; by default all names"""
    held_out: tuple[str, ...] = ()
    """names of profiles among them that nothing is learned on; policies are only evaluated on them"""
    temperatures: tuple[float, ...] | None = None
    """temperatures of the texts to learn from; by default all"""
    seeds: int = 5
    """number of policies that are trained, each from its own seed, beginning with 0"""
    output: Path = Path("runs/train")
    """folder for checkpoints, policies and results"""
    push: str | None = None
    """owner/name on the Hugging Face hub that the best policy is pushed to"""
    threads: int | None = None
    """threads of one operation; by default torch's own choice"""
    plan: Annotated[LearningPlan, tyro.conf.arg(name="")] = field(default_factory=LearningPlan)


def train(options: TrainOptions) -> int:
    """Trains, evaluates and writes; returns the exit status."""
    from specgym.agents.learning.setup import TrainingSetup
    from specgym.agents.learning.training_history import RESULTS, best_seed, keep_best, seed_table, speed, write_report
    from specgym.agents.policies.policy_file import SETTINGS
    from specgym.agents.policies.policy_hub import check_pushable, push_policy

    started = datetime.datetime.now(datetime.timezone.utc)
    check_limit("seeds", options.seeds)
    set_threads(options.threads)
    if options.push is not None:
        check_pushable(options.push)
    check_writable(options.output)
    setup = TrainingSetup(
        options.traces, options.profiles, options.plan, options.held_out, temperatures=options.temperatures
    )
    with written_alone(options.output):
        courses = _train(options, setup)
        keep_best(options.output, options.output / f"seed-{best_seed(courses)}")
        write_report(options.output, courses, options.plan, _facts(options, setup.names), started)
    show(seed_table(courses, setup.names))
    medians = speed(list(courses.values()))
    say(
        f"{medians['steps_per_second']:,.0f} rounds a second, updates included; within 2 % of the last throughput "
        f"after {medians['minutes_to_within_2_percent']:.1f} minutes (medians over the seeds)."
    )
    say(f"Written to {options.output}/: {SETTINGS}, {RESULTS}")
    if options.push is not None:
        say(f"Pushed to {push_policy(options.output, options.push)}")
    return 0


def _train(options: TrainOptions, setup: TrainingSetup) -> dict[int, TrainingHistory]:
    """Trains the policies that are not finished. Returns how each went, by its seed."""
    from specgym.agents.learning.learner import Learner

    learners = [Learner(setup, seed, options.output / f"seed-{seed}") for seed in range(options.seeds)]
    courses: dict[int, TrainingHistory] = {}
    with progress() as stages:
        setup.envs.envs.tabulate_all(lambda done, total: stages("tabulating", done, total))
        for seed, learner in enumerate(learners):

            def advance(steps: int, course: TrainingHistory, seed: int = seed) -> None:
                score = f", throughput {course.last.score:.3f}" if course.evaluations else ""
                stages(f"seed {seed}{score}", steps, options.plan.part * options.plan.evaluations)

            courses[seed] = learner.run(advance)
    return courses


def _facts(options: TrainOptions, profiles: Sequence[str]) -> dict[str, object]:
    from specgym.controllers.evaluation.results.provenance import shareable

    facts = {"held_out": list(options.held_out), "temperatures": list(options.temperatures or ())}
    return {
        "traces": [shareable(str(path)) for path in options.traces],
        "profiles": list(profiles),
        **{name: value for name, value in facts.items() if value},
    }


if __name__ == "__main__":
    main(train)
