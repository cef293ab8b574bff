"""Prompts to decode: SpecGym's own set, HumanEval, or a file in the form of Spec-Bench."""

from specgym.env.prompts.reader import BUILTIN_SOURCES, Prompt, load_prompts

__all__ = ["BUILTIN_SOURCES", "Prompt", "load_prompts"]
