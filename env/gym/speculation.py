"""The Gymnasium environment, which chooses tree parameters for any decoder, round by round."""

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
from specgym.env.gym.grid import ActionSpace, ParameterGrid
from specgym.env.gym.rendering import Tokenizer, draw_image, draw_text, token_names
from specgym.env.gym.requests import RequestQueue, Requests
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Decoder, FinishReason, Request, RoundOutcome, RoundSeconds, measure_plain_step

_KEPT_ACTIONS = 2**14
_SECONDS = (*(field.name for field in dataclasses.fields(RoundSeconds)), "total")


class SpeculationEnv(gym.Env[FeatureVector, IntArray]):
    """Choose how deep and how wide to speculate, once a round: tokens are the reward, time is the cost.

    ## Description
    An episode is the generation of one text. Its tokens never depend on the actions; only the time to get them does.
    A step is a round. A token tree is drafted under the chosen parameters and the target verifies it in one forward.
    The accepted path and one token of the target's own are committed. `reset` reads the prompt and commits
    the first token.

    ## Observation
    `Box(0, 1, ({entries},), float32)`, version {version} of these features:

    {observation}

    ## Action
    `MultiDiscrete`, an index for each dimension of the grid. By default:

    {action}

    Depth 0 is plain decoding, whatever the rest. `deep` lets branches of reach over 0.7 go on to depth 8 at least.
    `branch` 0 gives a node 1, 2 or 4 children by the draft's confidence. See `ParameterGrid`.

    ## Reward
    The sum of two terms:

    | name | value |
    |---|---|
    | `tokens` | tokens committed in the round |
    | `time` | - `lam` x time of the round / time of a plain round |

    With `lam` = 1 the reward is the time saved against plain decoding, in plain steps. The time includes drafting,
    verification, commit and the observation of the draft. It excludes the time that the policy takes to act.

    ## Episode end
    Terminated by an end-of-sequence token. Truncated by the request's token limit or the target's context.

    ## Info
    `observation` and `parameters` are what rule-based controllers read and choose. A controller acts here by
    ``grid.index(controller.act(info["observation"]))``. Every info also holds `request`, `outcome` and
    `plain_step_seconds`. The info of a step adds `tokens`, `accepted`, `drafted`, `depth`, `levels` (draft forwards),
    `tree_size` (with the root), `seconds` by part, and `reward_terms`. After `reset`, `outcome` is the prompt's and
    there are no `parameters`.

    ## Arguments
    Args:
        decoder: plays the rounds; nothing else may use it during an episode.
        requests: texts to generate. `reset` takes the next one, in an order that its seed decides, or the one in its
            options: ``{{"request": request}}``, or its index in the list.
        grid: the tree parameters that actions stand for; `ParameterGrid()` if None.
        lam: price of time [tokens per plain step].
        plain_step_seconds: time of a plain round [s], or a function that returns it, called in every round. If None,
            it is measured once, in a few plain rounds at the beginning of the first request.
        observes_draft: whether observations hold the draft's probabilities at the root. They cost a draft forward in
            every round, which is lost in rounds that do not use the draft model.
        tokenizer: gives the texts of tokens in pictures.
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
        check_time_price(lam)
        if isinstance(plain_step_seconds, int | float) and not 0 < plain_step_seconds < math.inf:
            raise ParameterError(f"plain_step_seconds must be a positive time; got {plain_step_seconds}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UnknownNameError("render_mode", str(render_mode), self.metadata["render_modes"])
        if observes_draft:
            check_observable(self.grid)
        self.decoder, self.queue = decoder, RequestQueue(requests)
        self.lam, self.plain_step_seconds, self.observes_draft = lam, plain_step_seconds, observes_draft
        self.token_name, self.render_mode = token_names(tokenizer), render_mode
        self.observation_space = gym.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gym.spaces.MultiDiscrete(self.grid.nvec)
        self._made: dict[Any, TreeParameters] = {}  # by action
        self.outcome: RoundOutcome | None = None
        self._request: Request | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FeatureVector, dict[str, Any]]:
        """Starts the next request, or the one of the options. Requests that end with their first token are skipped.

        Raises:
            UnknownNameError: an unknown option.
            ParameterError: the option `request` is neither a request nor an index of one.
            LimitError: a request that does not fit the decoder's context, or no request with a round to steer.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.queue.restart()
        for name in options or {}:
            if name != "request":
                raise UnknownNameError("option of reset", name, ["request"])
        chosen = self.queue.pick(options["request"]) if options else None
        self.outcome = None
        if self.plain_step_seconds is None:
            # Measuring draws from a generator of its own, so that it does not change the order of requests.
            request = chosen or RequestQueue(self.queue.requests).draw(np.random.default_rng(seed))
            self.plain_step_seconds = measure_plain_step(self.decoder, request)
        return self._observe(self._start(chosen))

    def step(self, action: npt.ArrayLike) -> tuple[FeatureVector, float, bool, bool, dict[str, Any]]:
        """Plays a round.

        Raises:
            ParameterError: an action that is not on the grid.
            ResetNeeded: there is no episode, or it has ended.
            RuntimeError: another user started a request on the decoder since `reset`.
            NumericalError: a model returned NaN or infinite logits; the episode cannot go on.
        """
        parameters = self._parameters(np.asarray(action))
        if self.outcome is None or self.outcome.finished is not None:
            raise ResetNeeded("No episode is running: call reset() before step().")
        if self.decoder.request is not self._request:
            raise RuntimeError(
                "Somebody else started a request on this decoder. Give every environment a decoder and models of its "
                "own, and call reset()."
            )
        self.outcome = None  # stays None if the round fails: after an error the text cannot go on
        plain = self._plain_step()
        outcome = self.decoder.round(parameters)
        terms = {"tokens": float(len(outcome.tokens)), "time": -self.lam * outcome.seconds.total / plain}
        vector, info = self._observe(outcome)
        info |= {
            "parameters": parameters,
            "tokens": len(outcome.tokens),
            "accepted": outcome.accepted,
            "drafted": outcome.drafted,
            "depth": outcome.depth,
            "levels": len(outcome.level_rows),
            "tree_size": outcome.drafted + 1,
            "seconds": {name: getattr(outcome.seconds, name) for name in _SECONDS},
            "reward_terms": terms,
        }
        terminated = outcome.finished is FinishReason.END_OF_SEQUENCE
        truncated = outcome.finished is not None and not terminated
        return vector, sum(terms.values()), terminated, truncated, info

    def render(self) -> Any:
        """Returns the last round's tree in the form of `render_mode`.

        Raises:
            ParameterError: the environment was made without a `render_mode`.
            ResetNeeded: there is no episode.
        """
        if self.render_mode is None:
            raise ParameterError("This environment was made without a render_mode: make it with render_mode='ansi'.")
        if self.outcome is None:
            raise ResetNeeded("There is nothing to draw yet: call reset() before render().")
        draw = draw_text if self.render_mode == "ansi" else draw_image
        return draw(self.decoder.tree, self.decoder.accepted, self.outcome, self.token_name)

    def _observe(self, outcome: RoundOutcome) -> tuple[FeatureVector, dict[str, Any]]:
        observation = self.decoder.observe(self.observes_draft)
        self.outcome = outcome
        info = {"observation": observation, "request": self._request, "outcome": outcome}
        return feature_vector(observation), info | {"plain_step_seconds": self._plain_step()}

    def _parameters(self, action: npt.NDArray[Any]) -> TreeParameters:
        """Returns the parameters of an action, which are checked and made once. Raises `ParameterError`."""
        key = action.dtype, action.shape, action.tobytes()
        if key not in self._made:
            if len(self._made) >= _KEPT_ACTIONS:
                self._made.clear()
            self._made[key] = self.grid.parameters(action)
        return self._made[key]

    def _plain_step(self) -> float:
        """Returns the time of a plain round at the root [s]."""
        seconds = self.plain_step_seconds
        assert seconds is not None, "reset() has measured it"
        return seconds() if callable(seconds) else seconds

    def _start(self, chosen: Request | None) -> RoundOutcome:
        draws = 1 if chosen else self.queue.draws
        for _ in range(draws):
            # The request is copied, so that its identity tells whether the decoder still belongs to this episode.
            self._request = dataclasses.replace(chosen or self.queue.draw(self.np_random))
            outcome = self.decoder.start(self._request)
            if outcome.finished is None:
                return outcome
        raise LimitError(
            f"Expected a request with a round to steer; got {draws} in a row that end with the first token. "
            "Raise max_new_tokens, or give other prompts."
        )


if SpeculationEnv.__doc__:  # python -OO strips docstrings
    SpeculationEnv.__doc__ = SpeculationEnv.__doc__.format(
        version=VERSION,
        entries=len(FEATURES),
        observation=textwrap.indent(feature_table(), "    ").strip(),
        action=textwrap.indent(ParameterGrid().table(), "    ").strip(),
    )


def check_time_price(lam: float) -> None:
    """Refuses a price of time that is negative or not finite. Raises `ParameterError`."""
    if not 0 <= lam < math.inf:
        raise ParameterError(f"lam must be 0 or a positive number of tokens per plain step; got {lam}.")


def check_observable(grid: ActionSpace) -> None:
    """Refuses a grid of trees that are too wide where the draft is observed. Raises `ParameterError`."""
    if grid.widest > LOOK_AHEAD:
        raise ParameterError(
            f"With observes_draft a node may have at most {LOOK_AHEAD} children; the grid has trees of {grid.widest}. "
            "Leave them out, or set observes_draft=False."
        )
