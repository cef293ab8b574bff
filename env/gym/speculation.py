"""The one Gymnasium environment: steering a decoder round by round, whatever decoder it is."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import LimitError, ParameterError, UnknownNameError
from specgym.env.drafts.merged import LOOK_AHEAD
from specgym.env.gym.features import FEATURES, VERSION, FeatureVector, feature_table, feature_vector
from specgym.env.gym.grid import ParameterGrid
from specgym.env.gym.rendering import Tokenizer, draw_image, draw_text, token_names
from specgym.env.gym.requests import RequestQueue, Requests
from specgym.env.tree.rounds import Decoder, FinishReason, Request, RoundOutcome, measure_plain_step


class SpeculationEnv(gym.Env[FeatureVector, IntArray]):
    """Choose how deep and how wide to speculate, once a round; tokens are reward and time is its price.

    ## Description
    An episode is the generation of one text. Its tokens never depend on the actions, only the time to get them does.
    A step is a round: a token tree is drafted under the chosen parameters, the target verifies it in one forward, and
    the accepted path and one token of the target's own are committed. The forward that reads the prompt and commits
    the first token belongs to `reset`.

    ## Observation
    `Box(0, 1, float32)`, version {version} of these entries:

    {observation}

    ## Action
    `MultiDiscrete`, an index for each dimension of the grid, by default:

    {action}

    Depth 0 is plain decoding, whatever the rest. `deep` lets branches of reach over 0.7 go on to depth 8 at least.
    `branch` 0 gives a node 1, 2 or 4 children by the draft's confidence. See `ParameterGrid`.

    ## Reward
    The sum of two terms:

    | name | value |
    |---|---|
    | `tokens` | tokens committed in the round |
    | `time` | - `lam` x time of the round / time of a plain round |

    With `lam` = 1 that is the time saved against plain decoding, in plain steps. The time is drafting, verification and
    commit, the observation of the draft included, and whatever the policy takes for itself excluded.

    ## Episode end
    Terminated by an end-of-sequence token; truncated by the request's token limit or the target's context.

    ## Info
    `observation` and `parameters` are what rule-based controllers see and choose: with ``controller.act(
    info["observation"])`` put through ``grid.index`` they act here. Besides, `request`, `outcome` and
    `plain_step_seconds`, and of a step `tokens`, `accepted`, `drafted`, `depth`, `levels` (draft forwards),
    `tree_size` (with the root), `seconds` by part, and `reward_terms`. After `reset`, `outcome` is the prompt's and
    there are no `parameters`.

    ## Arguments
    Args:
        decoder: drives the rounds; nobody else may use it during an episode.
        requests: what to generate. `reset` takes the next one, in an order that its seed decides, or the one in its
            options: ``{{"request": request}}``, or its index in the list.
        grid: what actions stand for; `ParameterGrid()` if None.
        lam: price of time [tokens per plain step].
        plain_step_seconds: time of a plain round [s], or a function that tells what one would take now, asked before
            every round; if None it is measured once, in a few plain rounds at the beginning of the first request.
        observes_draft: whether observations hold the draft's opinion of the root, at the price of a draft forward
            every round, which rounds that leave the draft model out pay in vain.
        tokenizer: for the texts of tokens in pictures.
        render_mode: ``"ansi"`` for the last round's tree as text, ``"rgb_array"`` for a picture of it.

    Raises:
        LimitError: there are no requests.
        ParameterError: a value outside its range, or a grid whose trees are too wide for `observes_draft`.

    ## Version history
    - v0: first version
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}  # noqa: RUF012 as in gym.Env

    def __init__(
        self,
        decoder: Decoder,
        requests: Requests,
        *,
        grid: ParameterGrid | None = None,
        lam: float = 1.0,
        plain_step_seconds: float | Callable[[], float] | None = None,
        observes_draft: bool = True,
        tokenizer: Tokenizer | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.grid = ParameterGrid() if grid is None else grid
        check_price(lam)
        _check(self.grid, plain_step_seconds, observes_draft, render_mode)
        self.decoder, self.queue = decoder, RequestQueue(requests)
        self.lam, self.plain_step_seconds, self.observes_draft = lam, plain_step_seconds, observes_draft
        self.token_name, self.render_mode = token_names(tokenizer), render_mode
        self.observation_space = gym.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gym.spaces.MultiDiscrete(self.grid.nvec)
        self.outcome: RoundOutcome | None = None
        self._request: Request | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FeatureVector, dict[str, Any]]:
        """Starts the next request, or the one of the options; those that end with their first token are passed over.

        Raises:
            UnknownNameError: an option that there is none of.
            ParameterError: the option `request` is neither a request nor an index of one.
            LimitError: a request that does not fit the decoder's context, or none that has a round to steer.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.queue.restart()
        for name in options or {}:
            if name != "request":
                raise UnknownNameError("option of reset", name, ["request"])
        wanted = self.queue.pick(options["request"]) if options else None
        self.outcome = None
        if self.plain_step_seconds is None:
            # With a generator of its own: whether time is measured must not move the order.
            request = wanted or RequestQueue(self.queue.requests).draw(np.random.default_rng(seed))
            self.plain_step_seconds = measure_plain_step(self.decoder, request)
        return self._seen(self._start(wanted))

    def step(self, action: npt.ArrayLike) -> tuple[FeatureVector, float, bool, bool, dict[str, Any]]:
        """Plays a round.

        Raises:
            ParameterError: an action that is not on the grid.
            ResetNeeded: there is no episode, or it has ended.
            RuntimeError: somebody else started a request on the decoder meanwhile.
            NumericalError: a model returned NaN or infinite logits; the episode cannot go on.
        """
        parameters = self.grid.parameters(action)
        if self.outcome is None or self.outcome.finished is not None:
            raise ResetNeeded("There is no episode under way: call reset() before step().")
        if self.decoder.request is not self._request:
            raise RuntimeError(
                "Somebody else started a request on this decoder. Give every environment a decoder and models of its "
                "own, and call reset()."
            )
        self.outcome = None  # until the round is whole: after an error the text cannot go on
        plain = self._plain_step()
        outcome = self.decoder.round(parameters)
        terms = {
            "tokens": float(len(outcome.tokens)),
            "time": -self.lam * outcome.seconds.total / plain,
        }
        vector, info = self._seen(outcome)
        info |= {
            "parameters": parameters,
            "tokens": len(outcome.tokens),
            "accepted": outcome.accepted,
            "drafted": outcome.drafted,
            "depth": outcome.depth,
            "levels": len(outcome.level_rows),
            "tree_size": outcome.drafted + 1,
            "seconds": dataclasses.asdict(outcome.seconds) | {"total": outcome.seconds.total},
            "reward_terms": terms,
        }
        terminated = outcome.finished is FinishReason.END_OF_SEQUENCE
        truncated = outcome.finished is not None and not terminated
        return vector, sum(terms.values()), terminated, truncated, info

    def render(self) -> Any:
        """The last round's tree, as `render_mode` says.

        Raises:
            ParameterError: the environment was made without a `render_mode`.
            ResetNeeded: there is no episode.
        """
        if self.render_mode is None:
            raise ParameterError("This environment was made to draw nothing: make it with render_mode='ansi'.")
        if self.outcome is None:
            raise ResetNeeded("There is nothing to draw yet: call reset() before render().")
        draw = draw_text if self.render_mode == "ansi" else draw_image
        return draw(self.decoder.tree, self.decoder.accepted, self.outcome, self.token_name)

    def _seen(self, outcome: RoundOutcome) -> tuple[FeatureVector, dict[str, Any]]:
        observation = self.decoder.observe(self.observes_draft)
        self.outcome = outcome
        info = {
            "observation": observation,
            "request": self._request,
            "outcome": outcome,
            "plain_step_seconds": self._plain_step(),
        }
        return feature_vector(observation), info

    def _plain_step(self) -> float:
        """Time of a plain round at the root [s]."""
        step = self.plain_step_seconds
        assert step is not None, "reset() has measured it"
        return step() if callable(step) else step

    def _start(self, wanted: Request | None) -> RoundOutcome:
        draws = 1 if wanted else self.queue.draws
        for _ in range(draws):
            # The copy is this episode's own: by it the decoder's user is known.
            self._request = dataclasses.replace(wanted or self.queue.draw(self.np_random))
            outcome = self.decoder.start(self._request)
            if outcome.finished is None:
                return outcome
        raise LimitError(
            f"Expected a request with a round to steer; got {draws} in a row that end with the first token. "
            "Raise max_new_tokens, or give other prompts."
        )


if SpeculationEnv.__doc__:  # python -OO leaves none
    SpeculationEnv.__doc__ = SpeculationEnv.__doc__.format(
        version=VERSION,
        observation=textwrap.indent(feature_table(), "    ").strip(),
        action=textwrap.indent(ParameterGrid().table(), "    ").strip(),
    )


def check_price(lam: float) -> None:
    """Refuses a price of time that cannot be. Raises `ParameterError`."""
    if not 0 <= lam < math.inf:
        raise ParameterError(f"lam must be 0 or a positive number of tokens per plain step; got {lam}.")


def check_observable(grid: ParameterGrid) -> None:
    """Refuses a grid of trees that are too wide where the draft is observed. Raises `ParameterError`."""
    widest = max(grid.base.max_branch, *grid.branch)
    if widest > LOOK_AHEAD:
        raise ParameterError(
            f"With observes_draft a node may have at most {LOOK_AHEAD} children; the grid has trees of {widest}. "
            "Leave them out, or set observes_draft=False."
        )


def _check(
    grid: ParameterGrid,
    plain_step_seconds: float | Callable[[], float] | None,
    observes_draft: bool,
    render_mode: str | None,
) -> None:
    if isinstance(plain_step_seconds, int | float) and not 0 < plain_step_seconds < math.inf:
        raise ParameterError(f"plain_step_seconds must be a positive time; got {plain_step_seconds}.")
    if render_mode not in (None, *SpeculationEnv.metadata["render_modes"]):
        raise UnknownNameError("render_mode", str(render_mode), SpeculationEnv.metadata["render_modes"])
    if observes_draft:
        check_observable(grid)
