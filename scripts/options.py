"""Options that several commands share: the model pair and the sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, TypeAlias

import tyro

from specgym.env.common.errors import LimitError, check_limit
from specgym.scripts.common import say
from specgym.scripts.progress import waiting

if TYPE_CHECKING:
    from specgym.env.decoding.pair import ModelPair
    from specgym.env.tree.sampling import SamplingSettings

TARGET = "smollm2-135m-instruct"
"""the default target, `env.decoding.pair.DEFAULT_TARGET`, which cannot be imported without torch"""

NO_TEMPLATE = "no chat template: prompts are continued as plain text, which a chat model may not answer"
MOST_THREADS = 1024
"""no machine uses more in one operation, and starting many more would crash"""


@dataclass(frozen=True)
class RunOptions:
    """Options of a command whose results say when it began."""

    started: datetime = field(init=False, default_factory=lambda: datetime.now(timezone.utc))


@dataclass(frozen=True)
class PairOptions:
    """Which models are used, and how they run."""

    target: str = TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    draft: str | None = None
    """draft: "lookup", one that is shipped for the target ("feature" or "standalone"), the .safetensors file of a
    feature draft, or a model as for --target; by default the best shipped draft, else lookup"""
    dtype: str = "bfloat16"
    """precision of both models: bfloat16, float16, float32, or int8 (linear weights in 8 bits, the rest in bfloat16)"""
    device: str = "cpu"
    """device of both models: cpu or cuda"""
    threads: int | None = None
    """threads of one operation; by default torch's own choice"""

    def load(self, *, chat: bool = True) -> ModelPair:
        """Loads the pair, and says so if `chat` is wanted and the target has no template for it.

        Raises as `load_pair` does.
        """
        from specgym.env.decoding.pair import load_pair

        with waiting("Loading the models"):
            set_threads(self.threads)
            pair = load_pair(self.target, self.draft, self.dtype, self.device)
        if chat and not pair.tokenizer.chat_template:
            say(f"{self.target}: {NO_TEMPLATE}.")
        return pair


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temperature: float = 0.0
    """0 decodes greedily; more than 0 samples"""
    top_k: int = 0
    """sample among this many most probable tokens; 0 for all"""
    top_p: float = 1.0
    """sample among the most probable tokens that together hold this probability"""
    seed: int = 0
    """seed of the sampling noise"""

    def settings(self) -> SamplingSettings:
        """Returns the settings. Raises `ParameterError` for a value outside its range."""
        from specgym.env.tree.sampling import SamplingSettings

        return SamplingSettings(self.temperature, self.top_k, self.top_p, self.seed)


Pair: TypeAlias = Annotated[PairOptions, tyro.conf.arg(name="")]
"""options of the pair among those of a command, without a prefix"""
Sampling: TypeAlias = Annotated[SamplingOptions, tyro.conf.arg(name="")]
"""options of the sampling among those of a command, without a prefix"""


def set_threads(threads: int | None) -> None:
    """Sets the threads of one operation; None leaves torch's own choice. Raises `LimitError`."""
    import torch

    if threads is not None:
        check_limit("threads", threads)
        if threads > MOST_THREADS:
            raise LimitError(f"threads must be at most {MOST_THREADS}; got {threads}.")
        torch.set_num_threads(threads)
