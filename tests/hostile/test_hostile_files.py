"""A malformed file of any format is refused by one clear error, or read as something harmless: no crash, no hang."""

from __future__ import annotations

import copy
import json
import lzma
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from specgym.agents.policies.policy_file import load_policy, save_policy
from specgym.env.common.checkpoint import load_tensors, save_tensors
from specgym.env.common.errors import SpecGymError
from specgym.env.drafts.calibrator import load_calibrator
from specgym.env.drafts.network import load_network, save_network
from specgym.env.latency.latency_profile import load_profile
from specgym.env.models.hub.compatibility import check_target
from specgym.env.models.hub.loading import check_folder, load_tokenizer, open_model
from specgym.env.models.hub.store import locate_model
from specgym.env.prompts import load_prompts
from specgym.env.replay.traces.file import read_trace
from specgym.env.replay.traces.packing import pack_trace, unpack_trace
from tests.env.replay.test_recording import CALIBRATOR
from tests.support.commands import write_prompts
from tests.support.policies import correcting_policy
from tests.support.tiny_models import tiny_network
from tests.support.tiny_pair import save_tiny_folders
from tests.support.tiny_trace import save_tiny_world

SECONDS = 10
MEMORY = 2**30  # bytes of address space that reading one file may add
CUTS, FLIPS, VALUES = 10, 20, 45
WRONG = [None, "x", [], {}, -1, 0, 2**40, 10**400, 1e308, float("nan"), float("-inf"), True, "\x1b[31m", [[[]]] * 3]


class Format:
    """A kind of file: an example, and a reader that may raise `SpecGymError` alone."""

    def __init__(self, path: Path, read: Callable[[Path], Any], is_json: bool = False) -> None:
        self.path, self.read, self.is_json = path, read, is_json

    def malformed(self) -> Iterator[tuple[str, bytes]]:
        """Yields malformed contents, and how each was made, always the same ones."""
        content, chance = self.path.read_bytes(), random.Random(self.path.name)
        yield "empty", b""
        yield "zeros", bytes(len(content))
        yield "other bytes", chance.randbytes(500)
        yield "doubled", content * 2
        for cut in sorted(chance.sample(range(1, len(content)), min(CUTS, len(content) - 1))):
            yield f"cut to {cut}", content[:cut]
        for _ in range(FLIPS):
            flipped, place = bytearray(content), chance.randrange(len(content))
            flipped[place] ^= 1 << chance.randrange(8)
            yield f"byte {place} flipped", bytes(flipped)
        if self.is_json:
            yield "nested", b"[" * 100_000
            for _ in range(VALUES):
                record = json.loads(content)
                where, value = chance.choice(list(places(record))), chance.choice(WRONG)
                yield f"{where} is {value!r:.30}", json.dumps(replaced(record, where, value)).encode()


def places(record: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of every value in a JSON record."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in items:
        yield (*where, key)
        yield from places(value, (*where, key))


def replaced(record: Any, where: tuple[Any, ...], value: Any) -> Any:
    """Returns a record with another value at a place."""
    record = copy.deepcopy(record)
    part = record
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    return record


def read_model(path: Path) -> None:
    """Reads a model as every command does."""
    folder = locate_model(str(path.parent))
    check_folder(folder, check_target)
    load_tokenizer(folder)
    open_model(folder, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Format]:
    folder = tmp_path_factory.mktemp("formats")
    save_tiny_world(folder)
    pack_trace(folder / "tiny.sgt", folder / "tiny.sgt.xz")
    model = save_tiny_folders(folder).target
    save_network(tiny_network(), folder / "draft.safetensors", {})
    (folder / "calibrator.json").write_text(json.dumps(CALIBRATOR.record()), encoding="utf-8")
    save_tensors(folder / "checkpoint.safetensors", {"weight": torch.ones(3, 4)}, {"settings": "{}"})
    prompts = Path(write_prompts(folder / "prompts.jsonl", ["hello", "why?"]))
    policy = save_policy(correcting_policy(), folder / "policy")
    record = folder / "policy" / "policy.json"
    assert policy.parent == record.parent
    return {
        "trace": Format(folder / "tiny.sgt", read_trace),
        "packed trace": Format(folder / "tiny.sgt.xz", lambda path: read_trace(unpack_trace(path))),
        "profile": Format(folder / "dear.json", load_profile, is_json=True),
        "draft": Format(folder / "draft.safetensors", load_network),
        "calibrator": Format(folder / "calibrator.json", load_calibrator, is_json=True),
        "checkpoint": Format(folder / "checkpoint.safetensors", load_tensors),
        "prompts": Format(prompts, lambda path: load_prompts(str(path))),
        "policy": Format(record, load_policy, is_json=True),
        "policy weights": Format(
            next((folder / "policy").glob("*.safetensors")), lambda path: load_policy(path.parent / "policy.json")
        ),
        "model settings": Format(model / "config.json", read_model, is_json=True),
        "model weights": Format(model / "model.safetensors", read_model),
        "tokenizer": Format(model / "tokenizer.json", read_model, is_json=True),
        "tokenizer settings": Format(model / "tokenizer_config.json", read_model, is_json=True),
    }


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Ends a test that takes more memory than it may."""
    monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def hang(number: int, frame: object) -> None:
    raise AssertionError(f"reading took over {SECONDS} s")


@pytest.mark.parametrize(
    "name",
    [
        *("trace", "packed trace", "profile", "draft", "calibrator", "checkpoint", "prompts", "policy"),
        *("policy weights", "model settings", "model weights", "tokenizer", "tokenizer settings"),
    ],
)
def test_malformed_files_are_one_clear_error(name: str, formats: dict[str, Format], tmp_path: Path) -> None:
    kind = formats[name]
    folder = Path(shutil.copytree(kind.path.parent, tmp_path / "copy"))
    path = folder / kind.path.name
    kind.read(path)  # else the test would be vacuous
    refused, wrong = 0, []
    before = signal.signal(signal.SIGALRM, hang)
    try:
        for how, content in kind.malformed():
            path.write_bytes(content)
            signal.alarm(SECONDS)
            try:
                kind.read(path)
            except SpecGymError as error:
                refused += 1
                if str(error).count("\n") > 2:
                    wrong.append(f"{how}: the message has over three lines")
            except BaseException as error:  # every other error is a fault
                wrong.append(f"{how}: {type(error).__name__} {error}"[:300])
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not wrong, "\n".join(wrong)
    assert refused >= CUTS, "most of these files are malformed"


def test_there_are_enough_of_them(formats: dict[str, Format]) -> None:
    assert sum(1 for kind in formats.values() for _ in kind.malformed()) >= 500


def test_a_small_packed_file_that_claims_much_is_refused_within_bounds(
    formats: dict[str, Format], tmp_path: Path
) -> None:
    bomb = tmp_path / "bomb.sgt.xz"
    with lzma.open(bomb, "wb", preset=0) as file:
        for _ in range(1100):
            file.write(bytes(2**20))
    with pytest.raises(SpecGymError):
        unpack_trace(bomb)
