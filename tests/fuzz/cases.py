"""Cases of the fuzz: what is tried, as plain values that all derive from one seed.

A field at its default is the plainest choice. So a description leaves it out, and a failing case is made smaller by
setting field after field to its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from random import Random
from typing import Any, TypeVar

from tests.fuzz.drawing.arguments import ARGUMENTS
from tests.fuzz.drawing.foreign import CHANGES_AND_FOREIGN, FOREIGN
from tests.fuzz.drawing.models import DRAFTS, FAMILIES

ENTRIES = {
    "generate": 10,
    "decoder": 3,
    "two decoders": 1,
    "two decoders, shared": 1,
    "two threads": 2,
}
"""ways into the engine, with their weights"""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Text:
    """One call: one text, or a batch of texts."""

    seed: int
    """seed of the prompt and of the values of the arguments"""
    prompts: tuple[int, ...] = (8,)
    """length of each prompt; several are one batch, padded on the left [tokens]"""
    new_tokens: int = 16
    """most new tokens [tokens]"""
    sampled: bool = False
    """whether tokens are sampled"""
    arguments: tuple[str, ...] = ()
    """names in `ARGUMENTS`"""
    change: str = ""
    """a name in `CHANGES_AND_FOREIGN`: how weights change before this text; empty for no change"""


@dataclass(frozen=True)
class Case:
    """A target with its draft, and the texts that it continues one after another."""

    seed: int
    """seed of the models and the trees"""
    family: str = "llama"
    """a name in `FAMILIES`"""
    dtype: str = "float64"
    """precision of target and draft"""
    draft: str = "lookup"
    """a name in `DRAFTS`"""
    controller: str = "random"
    """random trees, or the name of a registered controller"""
    entry: str = "generate"
    """a name in `ENTRIES`"""
    foreign: tuple[str, ...] = ()
    """names in `FOREIGN`: what is done to the target before its first text"""
    texts: tuple[Text, ...] = ()
    """the texts in their order"""

    @property
    def kinds(self) -> frozenset[str]:
        """Names of everything that this case tries."""
        names = {self.family, self.dtype, f"draft {self.draft}", f"controller {self.controller}", self.entry}
        for text in self.texts:
            names |= {*text.arguments, "sampled" if text.sampled else "greedy", text.change}
            names |= {"batch"} if len(text.prompts) > 1 else set()
        return frozenset(names | set(self.foreign)) - {""}


CONTROLLERS = ("history", "goodput", "fixed_tree:branch=3:depth=3", "eagle2", "opt_tree", "svip", "banditspec", "ppo")


def draw_case(seed: int) -> Case:
    """Draws a case. Equal seeds give equal cases."""
    random = Random(seed)
    entry = _weighted(random, ENTRIES)
    dtype = _weighted(random, {"float64": 3, "float32": 3, "bfloat16": 1})
    texts = tuple(_draw_text(random, entry) for _ in range(random.randint(1, 5)))
    if dtype == "bfloat16":  # only greedy texts can be judged up to rounding
        texts = tuple(replace(text, prompts=text.prompts[:1], sampled=False, arguments=()) for text in texts)
    family = _weighted(random, {name: family.weight for name, family in FAMILIES.items()})
    return Case(
        seed,
        family,
        dtype,
        _weighted(random, DRAFTS),
        random.choice(CONTROLLERS) if random.random() < 0.25 else "random",
        entry,
        tuple(random.sample(sorted(FOREIGN), random.choice((1, 1, 2)))) if FOREIGN and random.random() < 0.3 else (),
        texts,
    )


def _draw_text(random: Random, entry: str) -> Text:
    sampled, many = random.random() < 0.5, "decoder" not in entry
    possible = [name for name, argument in ARGUMENTS.items() if many or argument.decoder]
    possible = [name for name in possible if sampled or not ARGUMENTS[name].sampled]
    arguments = random.sample(possible, random.choice((0, 0, 1, 1, 2, 3)))
    texts = random.choice((2, 3)) if many and random.random() < 0.1 else 1
    return Text(
        random.randrange(2**32),
        tuple(random.randint(1, 20) for _ in range(texts)),
        random.choice((random.randint(1, 8), random.randint(9, 48))),
        sampled,
        tuple(arguments),
        random.choice(sorted(CHANGES_AND_FOREIGN)) if random.random() < 0.25 else "",
    )


def _weighted(random: Random, weights: dict[str, int]) -> str:
    return random.choices([*weights], [*weights.values()])[0]


def describe(value: Case | Text) -> str:
    """Returns a case as the code that makes it, without fields at their default."""
    parts = []
    for field in fields(value):
        content = getattr(value, field.name)
        if content != field.default:
            items = (
                [describe(item) if isinstance(item, Text) else repr(item) for item in content]
                if (isinstance(content, tuple))
                else []
            )
            parts.append(f"{field.name}=({', '.join(items)},)" if items else f"{field.name}={content!r}")
    return f"{type(value).__name__}({', '.join(parts)})"


def smaller(case: Case, fails: Callable[[Case], bool], attempts: int = 80) -> Case:
    """Makes a failing case smaller as long as it fails.

    Args:
        case: the case.
        fails: whether a case fails.
        attempts: most cases that are tried.
    """
    found = True
    while found and attempts > 0:
        found = False
        for candidate in _simpler(case):
            attempts -= 1
            if fails(candidate):
                case, found = candidate, True
                break
            if attempts <= 0:
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Yields cases that are a step simpler, the largest steps first."""
    for texts in _shorter(case.texts):
        yield replace(case, texts=texts)
    yield from _plainer(case)
    for number, text in enumerate(case.texts):
        for change in _plainer(text):
            yield replace(case, texts=(*case.texts[:number], change, *case.texts[number + 1 :]))
        if text.new_tokens > 1:
            shorter = replace(text, new_tokens=text.new_tokens // 2)
            yield replace(case, texts=(*case.texts[:number], shorter, *case.texts[number + 1 :]))


def _plainer(value: Any) -> Iterator[Any]:
    """Yields a case or a text with one field closer to its default."""
    for field in fields(value):
        content = getattr(value, field.name)
        if field.default is MISSING or content == field.default or field.name == "texts":
            continue
        yield replace(value, **{field.name: field.default})
        if isinstance(content, tuple):
            for fewer in _shorter(content):
                yield replace(value, **{field.name: fewer})


def _shorter(values: Sequence[Value]) -> Iterator[tuple[Value, ...]]:
    """Yields the values without one of them, if something is left."""
    if len(values) > 1:
        for number in range(len(values)):
            yield (*values[:number], *values[number + 1 :])
