"""What the scripts share: how they end, and the options of a model pair."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import tyro
from rich.console import Console
from rich.markup import escape

from specgym.agents.policies.policy_controller import register_shipped
from specgym.env.common.errors import SpecGymError
from specgym.env.decoding.pair import DEFAULT_TARGET, ModelPair, load_pair
from specgym.env.tree.rounds import check_limit
from specgym.env.tree.sampling import SamplingSettings

INTERRUPTED = 130
"""exit status after Ctrl-C, by the shells' convention"""

console = Console(stderr=True)

register_shipped()  # every command finds policies where it finds controllers

Options = TypeVar("Options")


@dataclass(frozen=True)
class PairOptions:
    """Which models, and how they run."""

    target: str = DEFAULT_TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    draft: str | None = None
    """draft: "lookup", one shipped for the target ("feature" or "standalone"), a feature draft's .safetensors file, or
    a model as for --target; by default the best one shipped, else lookup"""
    dtype: str = "bfloat16"
    """precision of both: bfloat16, float16, float32, or int8 (weights of linear layers; the rest is in bfloat16)"""
    device: str = "cpu"
    """where they run: cpu or cuda"""
    threads: int | None = None
    """threads of one operation; torch's own choice by default"""

    def load(self) -> ModelPair:
        """Loads the pair. Raises as `load_pair` does."""
        set_threads(self.threads)
        return load_pair(self.target, self.draft, self.dtype, self.device)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temperature: float = 0.0
    """0 decodes greedily, more samples"""
    top_k: int = 0
    """sample among this many likeliest tokens only; 0 for all"""
    top_p: float = 1.0
    """sample among the likeliest tokens that hold this much probability"""
    seed: int = 0
    """seed of the sampling noise"""

    def settings(self) -> SamplingSettings:
        """The settings. Raises `ParameterError` for a value outside its range."""
        return SamplingSettings(self.temperature, self.top_k, self.top_p, self.seed)


def set_threads(threads: int | None) -> None:
    """Sets the threads of one operation; torch's own choice if None. Raises `LimitError`."""
    if threads is not None:
        check_limit("threads", threads)
        torch.set_num_threads(threads)


def main(options: type[Options], body: Callable[[Options], int]) -> None:
    """Parses the command line into `options`, runs `body` and exits with its status.

    An error that the user can set right is printed as one message, with status 2; Ctrl-C ends with status 130.
    """
    try:
        status = body(_parse(options))
    except SpecGymError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        status = 2
    except KeyboardInterrupt:
        console.print("Interrupted.")
        status = INTERRUPTED
    sys.exit(status)


def _parse(options: type[Options]) -> Options:
    """The options of the command line. What they refuse themselves is raised: tyro would frame it and break the lines.

    Raises:
        SpecGymError: a value outside its range.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(options)
    except SystemExit as ended:
        cause: BaseException | None = ended
        while cause is not None:
            if isinstance(cause, SpecGymError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(shown.getvalue())
        raise
