"""`generate` streams the target's own text, accounts for it, and refuses what it cannot do in one sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from specgym.env.decoding.pair import encode_chat, load_pair
from specgym.env.drafts import LookupDraft
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.commands import Caller, assert_refused, finish, start
from tests.support.tiny_models import generate
from tests.support.tiny_pair import CONTEXT, TinyFolders

TOKENS = 24
ACCOUNT = re.compile(
    r"^(\d+) tokens, [\d.]+ tokens/s, ([\d.]+) tokens a target forward, (\d+) of (\d+) draft tokens accepted$", re.M
)
COMPARISON = re.compile(r"^[\d.]+ times plain decoding's [\d.]+ tokens/s, the same text$", re.M)


def pair_arguments(folders: TinyFolders) -> list[object]:
    return ["--target", folders.target, "--draft", folders.draft, "--dtype", "float32", "--max-new-tokens", TOKENS]


def plain_text(folders: TinyFolders, prompt: str, sampling: SamplingSettings, raw: bool = False) -> str:
    """The text of plain decoding."""
    pair = load_pair(str(folders.target), None, "float32")
    tokens = tuple(pair.tokenizer.encode(prompt)) if raw else encode_chat(pair.tokenizer, [prompt])
    generation = generate(pair.target, LookupDraft(), Request(tokens, TOKENS, sampling))
    return str(pair.tokenizer.decode(generation.tokens, skip_special_tokens=True))


def test_it_prints_the_text_and_accounts_for_it(folders: TinyFolders, tmp_path: Path) -> None:
    options = [*pair_arguments(folders), "--controller", "history", "--compare"]
    ended = finish(start("generate", "hello", *options, home=tmp_path))
    assert ended.status == 0
    assert ended.out == plain_text(folders, "hello", SamplingSettings()) + "\n"
    account = ACCOUNT.search(ended.err)
    assert account
    tokens, rate, accepted, drafted = map(float, account.groups())
    assert tokens == TOKENS
    assert 0 < accepted < drafted
    assert rate == pytest.approx(tokens / (tokens - accepted), abs=0.01), "a forward commits one token of the target's"
    assert COMPARISON.search(ended.err)


@pytest.mark.parametrize("controller", ["autoregressive", "fixed_tree:branch=3:depth=2", "dynamic_depth"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_controller_prints_the_same_text(
    folders: TinyFolders, call: Caller, controller: str, temperature: float
) -> None:
    settings = ["--controller", controller, "--temperature", temperature, "--seed", 3]
    ended = call("generate", "hello", *pair_arguments(folders), *settings)
    assert ended.status == 0
    assert ended.out == plain_text(folders, "hello", SamplingSettings(temperature, seed=3)) + "\n"


def test_raw_text_is_continued_without_the_chat_template(folders: TinyFolders, call: Caller) -> None:
    ended = call("generate", "hello", *pair_arguments(folders), "--raw")
    assert ended.out == plain_text(folders, "hello", SamplingSettings(), raw=True) + "\n"
    assert ended.out != plain_text(folders, "hello", SamplingSettings()) + "\n", "the test would be vacuous"


def test_on_a_terminal_the_speed_stands_below_the_text(
    folders: TinyFolders, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "200")
    ended = call("generate", "hello", *pair_arguments(folders))
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", ended.out).replace("\r", "")
    *_, text = plain_text(folders, "hello", SamplingSettings()).splitlines()
    assert text in shown.splitlines()
    assert ACCOUNT.search(shown)


class TestRefusals:
    def test_a_truncated_model_is_named(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
        broken = Path(shutil.copytree(folders.target, tmp_path / "broken"))
        path = broken / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert_refused(call("generate", "hello", "--target", broken), f"{path} is missing, truncated or unreadable")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--controller", "histroy"], "Unknown controller 'histroy'. Did you mean history or heuristic?"),
            (["--controller", "fixed_tree:brunch=2"], "Unknown option of fixed_tree 'brunch'. Did you mean branch?"),
            (["--controller", "fixed_tree:branch=two"], "needs a value of type int, such as 2; got 'two'"),
            (["--controller", "[/]"], "Unknown controller '[/]'."),
            (["--target", "smollm-135m-instruct"], "Did you mean smollm2-135m-instruct?"),
            (["--target", "./[red]nowhere"], "There is no folder [red]nowhere."),
            (["--draft", "nowhere.safetensors"], "nowhere.safetensors; there is no such file"),
            (["--draft", "{stranger}"], "Target and draft use different vocabularies"),
            (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more; got 0."),
            (["--max-new-tokens", "-3"], "max_new_tokens must be 1 or more; got -3."),
            (["--threads", "0"], "threads must be 1 or more; got 0."),
            (["--temperature", "-1"], "temperature must be 0 (greedy) or a positive number; got -1.0."),
            (["--temperature", "nan"], "temperature must be 0 (greedy) or a positive number; got nan."),
            (["--top-p", "0"], "top_p must be over 0 and at most 1; got 0.0."),
            (["--top-k", "-1"], "top_k must be 0 (all tokens) or a positive number of tokens; got -1."),
            (["--dtype", "float8"], "dtype must be one of bfloat16, float16, float32, int8; got 'float8'."),
            (["--device", "cuda:99"], "Device 'cuda:99' is not available here"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_a_wrong_setting_is_answered_by_name(
        self, folders: TinyFolders, call: Caller, arguments: list[str], message: str
    ) -> None:
        target = [] if "--target" in arguments else ["--target", folders.target]
        filled = [argument.format(stranger=folders.stranger) for argument in arguments]
        assert_refused(call("generate", "hello", *target, *filled), message)

    @pytest.mark.parametrize("prompt", ["", " \n "])
    def test_an_empty_prompt_is_refused_before_anything_is_loaded(self, call: Caller, prompt: str) -> None:
        assert_refused(call("generate", prompt, "--target", "./nowhere"), "The prompt is empty")

    def test_a_prompt_longer_than_the_context_is_refused(self, folders: TinyFolders, call: Caller) -> None:
        ended = call("generate", "a" * CONTEXT, "--target", folders.target)
        assert_refused(ended, f"this target reads at most {CONTEXT}, answer included. Shorten the prompt")

    def test_a_corrupt_feature_draft_is_named(self, folders: TinyFolders, call: Caller, tmp_path: Path) -> None:
        path = Path(shutil.copy(folders.feature_draft, tmp_path))
        path.write_bytes(path.read_bytes()[:-100])
        assert_refused(call("generate", "hello", "--target", folders.target, "--draft", path), f"{path} is corrupt")
