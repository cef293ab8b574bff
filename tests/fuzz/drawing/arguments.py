"""Arguments of `generate` that the fuzz passes: limits, ends, criteria, processors, settings of sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, TypeAlias

import torch
from transformers import EosTokenCriteria, GenerationConfig, MaxLengthCriteria, WatermarkingConfig
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper

from tests.fuzz.drawing import processors as own

Answer: TypeAlias = Literal["equal", "either", "refused"]


@dataclass(frozen=True)
class Setting:
    """The call that arguments are made for."""

    random: Random
    """for the values; equal for equal texts"""
    vocabulary: int
    """number of tokens of the target"""
    input_ids: torch.Tensor
    """the prompts, `int64[batch, tokens]`"""
    new_tokens: int
    """most new tokens [tokens]"""

    def tokens(self, most: int) -> list[int]:
        """Draws one to `most` different tokens other than 0."""
        return self.random.sample(range(1, self.vocabulary), self.random.randint(1, most))

    def length(self) -> int:
        """Draws a length of the whole text [tokens]."""
        return self.input_ids.shape[1] + self.random.randint(1, self.new_tokens + 2)


Maker: TypeAlias = Callable[[Setting], dict[str, Any]]


@dataclass(frozen=True)
class Argument:
    """Arguments of `generate` that belong together."""

    make: Maker
    """makes the values"""
    sampled: bool = False
    """whether only sampled texts may have it"""
    decoder: bool = False
    """whether a request of a decoder has it too"""
    answer: Answer = "equal"
    """whether the text must be plain decoding's, may be refused by name, or must be refused"""


def _one_of(name: str, *values: Any, **options: Any) -> Argument:
    return Argument(lambda setting: {name: setting.random.choice(values)}, **options)


def _processor(make: Callable[[Setting], Any]) -> Argument:
    return Argument(lambda setting: {"logits_processor": [make(setting)]}, decoder=True)


def _criterion(make: Callable[[Setting], Any]) -> Argument:
    return Argument(lambda setting: {"stopping_criteria": [make(setting)]})


def _end_tokens(setting: Setting) -> dict[str, Any]:
    ends = setting.tokens(8)
    return {"eos_token_id": setting.random.choice((ends, ends[0], torch.tensor(ends), torch.tensor(ends[0])))}


def _with_ends(make: Callable[[Setting], dict[str, Any]]) -> Argument:
    return Argument(lambda setting: _end_tokens(setting) | make(setting), decoder=True)


def _n_grams(setting: Setting) -> list[list[int]]:
    """Draws short sequences, half of them from the prompt."""
    row, random = setting.input_ids[0].tolist(), setting.random
    starts = [random.randrange(len(row)) for _ in range(3)]
    return [row[start : start + random.randint(1, 2)] for start in starts] + [setting.tokens(3)]


def _biases(setting: Setting) -> dict[tuple[int, ...], float]:
    return {tuple(tokens): setting.random.choice((-4.0, 2.0)) for tokens in _n_grams(setting)}


def _allowed(setting: Setting) -> Callable[[int, torch.Tensor], list[int]]:
    step = setting.random.choice((2, 3))
    return lambda row, text: [*range((int(text[-1]) + row) % step, setting.vocabulary, step)]


def _hidden_token(setting: Setting) -> dict[str, Any]:
    mask = torch.ones_like(setting.input_ids)
    mask[:, -1] = 0
    return {"attention_mask": mask}


def _shifted_positions(setting: Setting) -> dict[str, Any]:
    return {"position_ids": torch.arange(setting.input_ids.shape[1]).expand(setting.input_ids.shape) + 1}


LIMITS = {
    "end tokens": Argument(_end_tokens, decoder=True),
    "max_length": Argument(
        lambda setting: {"max_new_tokens": None, "max_length": setting.input_ids.shape[1] + setting.new_tokens}
    ),
    "min_length": _with_ends(lambda setting: {"min_length": setting.length()}),
    "min_new_tokens": _with_ends(lambda setting: {"min_new_tokens": setting.random.randint(1, setting.new_tokens)}),
    "forced end": _with_ends(lambda setting: {"forced_eos_token_id": 0}),
    "decay of length": _with_ends(lambda setting: {"exponential_decay_length_penalty": (2, 1.3)}),
    "own criterion: length": _criterion(lambda setting: own.StopAtLength(setting.length())),
    "own criterion: sum": _criterion(lambda setting: own.StopAtSum(setting.random.randint(5, 30))),
    "own criterion: calls": _criterion(
        lambda setting: own.StopAfterCalls(setting.random.randint(1, setting.new_tokens))
    ),
    "criterion MaxLength": _criterion(lambda setting: MaxLengthCriteria(setting.length())),
    "criterion EosToken": _criterion(lambda setting: EosTokenCriteria(setting.tokens(6))),
    "max_time": _one_of("max_time", 1e6),
}
PROCESSORS = {
    "repetition_penalty": _one_of("repetition_penalty", 0.8, 1.1, 1.5, decoder=True),
    "encoder_repetition_penalty": _one_of("encoder_repetition_penalty", 0.8, 1.5, decoder=True),
    "no_repeat_ngram_size": _one_of("no_repeat_ngram_size", 1, 2, 3, decoder=True),
    "encoder_no_repeat_ngram_size": _one_of("encoder_no_repeat_ngram_size", 1, 2, decoder=True),
    "bad_words_ids": Argument(lambda setting: {"bad_words_ids": _n_grams(setting)}, decoder=True),
    "sequence_bias": Argument(lambda setting: {"sequence_bias": _biases(setting)}, decoder=True),
    "suppress_tokens": Argument(lambda setting: {"suppress_tokens": setting.tokens(20)}, decoder=True),
    "begin_suppress_tokens": Argument(lambda setting: {"begin_suppress_tokens": setting.tokens(20)}, decoder=True),
    "forced_bos_token_id": Argument(lambda setting: {"forced_bos_token_id": 0}, decoder=True),
    "prefix_allowed_tokens_fn": Argument(lambda setting: {"prefix_allowed_tokens_fn": _allowed(setting)}),
    "remove_invalid_values": _one_of("remove_invalid_values", True, decoder=True),
    "renormalize_logits": _one_of("renormalize_logits", True, decoder=True),
    "watermark": Argument(lambda setting: {"watermarking_config": WatermarkingConfig(bias=1.0)}),
    "own processor: neighbours": _processor(lambda setting: own.ForbidNeighbours()),
    "own processor: calls": _processor(lambda setting: own.CountCalls()),
    "own processor: momentum": _processor(lambda setting: own.Momentum()),
    "own processor: in place": _processor(lambda setting: own.InPlace()),
    "own processor: temperature": _processor(lambda setting: own.OwnTemperature(0.7)),
    "own processor: top-k": _processor(lambda setting: own.OwnTopK(3)),
    "own processor: function": _processor(lambda setting: own.favour_first_tokens),
    "given warpers": Argument(
        lambda setting: {"logits_processor": [TopKLogitsWarper(5, min_tokens_to_keep=2), TemperatureLogitsWarper(0.8)]},
        decoder=True,
    ),
}
SAMPLING = {
    "temperature": _one_of("temperature", 0.3, 0.7, 1.5, sampled=True, decoder=True),
    "top_k": _one_of("top_k", 1, 3, 10, sampled=True, decoder=True),
    "top_p": _one_of("top_p", 0.2, 0.7, 0.95, sampled=True, decoder=True),
    "min_p": _one_of("min_p", 0.05, 0.3, sampled=True, decoder=True),
    "typical_p": _one_of("typical_p", 0.3, 0.9, sampled=True, decoder=True),
    "epsilon_cutoff": _one_of("epsilon_cutoff", 0.01, 0.1, sampled=True, decoder=True),
    "eta_cutoff": _one_of("eta_cutoff", 0.01, 0.1, sampled=True, decoder=True),
    "top_h": _one_of("top_h", 0.3, 0.7, sampled=True, decoder=True),
    "num_return_sequences": _one_of("num_return_sequences", 2, 3, sampled=True),
}
FORMS = {
    "as a dictionary": _one_of("return_dict_in_generate", True),
    "one beam": _one_of("num_beams", 1),
    "mask of ones": Argument(lambda setting: {"attention_mask": torch.ones_like(setting.input_ids)}),
    "own configuration": Argument(
        lambda setting: {"generation_config": GenerationConfig(pad_token_id=0, bos_token_id=1)}
    ),
    "use_cache": _one_of("use_cache", False, True),
    "cache_implementation": _one_of("cache_implementation", "dynamic", "static", answer="either"),
    "scores": Argument(
        lambda setting: {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}, answer="either"
    ),
    "states": Argument(
        lambda setting: {"return_dict_in_generate": True, "output_hidden_states": True}, answer="either"
    ),
}
REFUSED = {
    "beams": _one_of("num_beams", 2, 3, answer="refused"),
    "penalty_alpha": Argument(lambda setting: {"penalty_alpha": 0.6, "top_k": 4}, answer="refused"),
    "dola_layers": _one_of("dola_layers", "low", "high", answer="refused"),
    "guidance_scale": _one_of("guidance_scale", 1.5, answer="refused"),
    "shifted positions": Argument(_shifted_positions, answer="refused"),
    "hidden token": Argument(_hidden_token, answer="refused"),
}
ARGUMENTS: dict[str, Argument] = LIMITS | PROCESSORS | SAMPLING | FORMS | REFUSED
"""what texts may ask for, by name"""


def make_arguments(names: Sequence[str], setting: Setting, seed: int) -> dict[str, Any]:
    """Makes the arguments of one call, with new objects.

    Args:
        names: names in `ARGUMENTS`.
        setting: the call.
        seed: seed of the values. Each name has values of its own, whatever the other names are.
    """
    made: dict[str, Any] = {}
    for name in sorted(names, key=REFUSED.__contains__):  # these last, so that others do not replace them
        values = ARGUMENTS[name].make(replace(setting, random=Random(f"{seed} {name}")))
        for key, value in values.items():
            joined = key in made and key in ("logits_processor", "stopping_criteria")
            made[key] = made[key] + value if joined else value
    return made


def expected_answer(names: Sequence[str]) -> Answer:
    """Returns what must come of a call with these arguments, by their names in `ARGUMENTS`."""
    answers = {ARGUMENTS[name].answer for name in names}
    return "refused" if "refused" in answers else "either" if "either" in answers else "equal"
