"""The first things that a user types: `specgym.load()` and `pair.generate(text)`."""

from __future__ import annotations

from dataclasses import dataclass

from specgym.controllers.controller import Controller
from specgym.controllers.registry import DEFAULT, make_controller
from specgym.controllers.run import run
from specgym.env.decoding.pair import DEFAULT_TARGET, ModelPair, encode_chat, load_pair
from specgym.env.tree.sampling import SamplingSettings


@dataclass(frozen=True)
class Pair(ModelPair):
    """A loaded target and draft that answer texts."""

    def generate(
        self,
        text: str,
        controller: str | Controller = DEFAULT,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        raw: bool = False,
    ) -> str:
        """Returns the answer to a text, token for token the target's own.

        Args:
            text: the user's turn; if `raw`, the text to continue.
            controller: a registered name with options, a policy's file, or a controller.
            max_new_tokens: most tokens of the answer [tokens].
            temperature: 0 decodes greedily.
            top_k: samples among this many likeliest tokens only; 0 for all.
            top_p: samples among the likeliest tokens that hold this much probability.
            seed: seed of the sampling noise.
            raw: whether to continue the text as it is, without the chat template.

        Raises:
            LimitError: an empty text, or one that does not fit the target's context.
            ParameterError, UnknownNameError: a setting or a controller that does not exist.
            NumericalError: a model returned NaN or infinite logits.
        """
        sampling = SamplingSettings(temperature, top_k, top_p, seed)
        chosen = make_controller(controller) if isinstance(controller, str) else controller
        prompt = tuple(self.tokenizer.encode(text)) if raw else encode_chat(self.tokenizer, [text])
        generation = run(self.decoder(), chosen, self.request(prompt, max_new_tokens, sampling))
        return str(self.tokenizer.decode(generation.tokens, skip_special_tokens=True))


def load(target: str = DEFAULT_TARGET, draft: str | None = None, dtype: str = "bfloat16", device: str = "cpu") -> Pair:
    """Loads a target and a draft; for arguments and errors see `specgym.env.decoding.pair.load_pair`."""
    return Pair(**vars(load_pair(target, draft, dtype, device)))
