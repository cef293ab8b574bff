"""An exported draft works as it did in training, and its card shows what was measured."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specgym.agents.distillation.examination.agreement import Agreement
from specgym.agents.distillation.export import Provenance, card, export
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.agents.distillation.pipeline import DistilledDraft
from specgym.env.common.files import FileWriteError
from specgym.env.decoding.pair import encode_chat, load_pair
from specgym.env.drafts import CausalDraft, FeatureDraft
from specgym.env.drafts.calibrator import load_calibrator
from specgym.env.drafts.network import load_network
from specgym.env.tree.rounds import Request
from tests.support.distilling import CONFIGS, TOKENIZER
from tests.support.tiny_models import generate, tiny_network
from tests.support.tiny_pair import save_model

PROVENANCE = Provenance("a-target", "some weights", "python -m scripts.distill --target a-target", "a machine")
ALWAYS = {"calibrator.json", "calibration.png", "training.json", "README.md"}
AGREEMENT = {
    "all": {"top1": [0.99999, 0.4567891], "top4": [1.0, 0.9], "positions": 12345},
    "greedy, code": {"top1": [0.7, 0.0009], "top4": [0.8, 0.5], "positions": 99},
}
CALIBRATION = {"greedy": [{"depth": 1, "children": 4321, "first": 0.7899, "raw": 0.0101, "calibrated": 0.0002}]}


@pytest.fixture(scope="module")
def folders(distilled: dict[str, DistilledDraft], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each kind of exported draft."""
    folders = {}
    for kind, draft in distilled.items():
        folders[kind] = tmp_path_factory.mktemp("export") / "new" / kind
        export(draft, CONFIGS[kind], PROVENANCE, TOKENIZER, folders[kind])
    return folders


@pytest.fixture(scope="module")
def target(easy_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("target"), easy_model)


class TestDraft:
    def test_a_feature_drafts_file_holds_its_weights(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path]
    ) -> None:
        assert {path.name for path in folders["feature"].iterdir()} == {"draft.safetensors", *ALWAYS}
        network = load_network(folders["feature"] / "draft.safetensors")
        for name, tensor in distilled["feature"].student.module.state_dict().items():
            assert network.state_dict()[name].equal(tensor if tensor.dtype == torch.int64 else tensor.bfloat16())

    def test_a_feature_draft_that_learned_on_scaled_states_is_written_for_unscaled_ones(
        self, easy_model: PreTrainedModel, distilled: dict[str, DistilledDraft], tmp_path: Path
    ) -> None:
        network = tiny_network(vocabulary=80, feature_layers=(0,))
        expected = network.reduce.weight.detach().bfloat16()
        scales = torch.tensor([8.0] * 32 + [1.0] * 32)
        student = FeatureStudent(network, easy_model.get_input_embeddings(), scales=scales)
        assert not network.reduce.weight.bfloat16().equal(expected)
        draft = dataclasses.replace(distilled["feature"], student=student)
        export(draft, CONFIGS["feature"], PROVENANCE, TOKENIZER, tmp_path)
        assert load_network(tmp_path / "draft.safetensors").reduce.weight.equal(expected)

    def test_a_causal_draft_is_a_folder_as_transformers_reads_it(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path]
    ) -> None:
        names = {path.name for path in folders["causal"].iterdir()}
        assert names > {"config.json", "model.safetensors", "tokenizer.json", *ALWAYS}
        assert not [name for name in names if name.startswith(".")]
        model = AutoModelForCausalLM.from_pretrained(folders["causal"], dtype="auto")
        assert model.dtype == torch.bfloat16
        for name, tensor in distilled["causal"].student.module.state_dict().items():
            assert model.state_dict()[name].equal(tensor.bfloat16())
        tokenizer = AutoTokenizer.from_pretrained(folders["causal"])
        conversation = [{"role": "user", "content": "Why? "}]
        assert tokenizer.apply_chat_template(conversation) == TOKENIZER.apply_chat_template(conversation)

    @pytest.mark.parametrize(("kind", "made"), [("feature", FeatureDraft), ("causal", CausalDraft)])
    def test_it_works_with_its_target(
        self, folders: dict[str, Path], target: Path, kind: str, made: type[object]
    ) -> None:
        draft = folders[kind] / "draft.safetensors" if kind == "feature" else folders[kind]
        pair = load_pair(str(target), str(draft), "float32")
        assert isinstance(pair.draft, made)
        request = Request(encode_chat(pair.tokenizer, ["hello"]), 48)
        speculated = generate(pair.target, pair.draft, request, "fixed_tree:branch=2:depth=3")
        assert speculated.tokens == generate(pair.target, pair.draft, request).tokens
        assert speculated.accepted > 0.5 * len(speculated.tokens), "it has learned what its target says"

    def test_a_causal_draft_assists_transformers_own_generation(self, folders: dict[str, Path], target: Path) -> None:
        model, assistant = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (target, folders["causal"])
        )
        forwards = []
        model.register_forward_hook(lambda *call: forwards.append(1))
        prompt = torch.tensor([encode_chat(TOKENIZER, ["hello"])])
        settings = {"do_sample": False, "max_new_tokens": 40}
        plain = model.generate(prompt, **settings)
        steps = len(forwards)
        assisted = model.generate(prompt, assistant_model=assistant, **settings)
        assert assisted.tolist() == plain.tolist()
        assert len(forwards) - steps < 0.8 * steps, "some of its guesses were taken"

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_the_draft_stays_as_it_is(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path], kind: str
    ) -> None:
        assert {weight.dtype for weight in distilled[kind].student.module.parameters()} == {torch.float32}

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_its_calibrator_is_the_fitted_one(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path], kind: str
    ) -> None:
        saved, fitted = (
            load_calibrator(folders[kind] / "calibrator.json"),
            distilled[kind].examination.calibration.calibrator,
        )
        for mode in ("greedy", "sampled"):
            maps = [dataclasses.asdict(getattr(each, mode)) for each in (saved, fitted)]
            assert all(maps[0][name] == pytest.approx(maps[1][name], abs=1e-6) for name in maps[1])

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_a_place_that_cannot_be_written_to_is_named(
        self, distilled: dict[str, DistilledDraft], tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FileWriteError, match=f"Could not write {tmp_path / 'file'}"):
            export(distilled[kind], CONFIGS[kind], PROVENANCE, TOKENIZER, tmp_path / "file" / "draft")


@pytest.mark.parametrize("kind", CONFIGS)
class TestRecord:
    def test_it_holds_the_figures_in_full(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path], kind: str
    ) -> None:
        record = json.loads((folders[kind] / "training.json").read_text(encoding="utf-8"))
        draft = distilled[kind]
        assert {
            name: Agreement(tuple(part["top1"]), tuple(part["top4"]), part["positions"])
            for name, part in record["agreement"].items()
        } == draft.examination.agreement
        assert record["vocabulary_coverage"] == draft.coverage
        assert (record["training_tokens"], record["kinds"]) == (draft.training_tokens, draft.kinds)
        assert record["updates"] == draft.history.updates
        assert record["parameters"] == sum(weight.numel() for weight in draft.student.module.parameters())
        assert {name: record[name] for name in dataclasses.asdict(PROVENANCE)} == dataclasses.asdict(PROVENANCE)
        assert record["config"] == json.loads(json.dumps(dataclasses.asdict(CONFIGS[kind])))

    def test_the_card_is_written_from_it(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path], kind: str
    ) -> None:
        text = (folders[kind] / "README.md").read_text(encoding="utf-8")
        title = {"feature": "# A feature draft for a-target\n", "causal": "# A standalone draft for a-target\n"}
        assert text.startswith(title[kind])
        for fact in (
            "some weights",
            "`python -m scripts.distill --target a-target`",
            "a machine",
            f"{distilled[kind].training_tokens:,} tokens",
            f"{distilled[kind].history.updates:,} batches",
            "2 epochs",
            "One prompt in 6",
        ):
            assert fact in text

    def test_the_cards_figures_are_the_measured_ones_cut(
        self, distilled: dict[str, DistilledDraft], folders: dict[str, Path], kind: str
    ) -> None:
        lines = (folders[kind] / "README.md").read_text(encoding="utf-8").splitlines()
        for (name, part), label in itertools.product(distilled[kind].examination.agreement.items(), ("top1", "top4")):
            head = f"| {name} | {part.positions:,} | {label[:3]}-{label[3]} | "
            (line,) = [line for line in lines if line.startswith(head)]
            shown = [float(cell) for cell in line.removeprefix(head).strip(" |").split(" | ")]
            for cell, share in zip(shown, getattr(part, label), strict=True):
                assert cell <= share < cell + 0.001 + 1e-9


@pytest.mark.parametrize("kind", CONFIGS)
class TestCard:
    @pytest.fixture
    def text(self, folders: dict[str, Path], kind: str) -> str:
        """The card of a record with awkward figures."""
        record = json.loads((folders[kind] / "training.json").read_text(encoding="utf-8"))
        figures = {
            "agreement": AGREEMENT,
            "calibration": CALIBRATION,
            "parameters": 7654321,
            "vocabulary_coverage": 0.98765,
            "training_tokens": 3000,
            "kinds": {"code": 1999, "reading": 1001},
        }
        return card(record | figures)

    def test_shares_are_cut_and_never_rounded_up(self, text: str, kind: str) -> None:
        lines = text.splitlines()
        for line in (
            "| all | 12,345 | top-1 | 0.999 | 0.456 |",
            "| all | 12,345 | top-4 | 1.000 | 0.900 |",
            "| greedy, code | 99 | top-1 | 0.700 | 0.000 |",
            "| greedy, code | 99 | top-4 | 0.800 | 0.500 |",
        ):
            assert line in lines
        assert "code 66.6 %, reading 33.3 %" in text
        assert ("98.7 %" in text) == (kind == "feature")
        assert "7,654,321 parameters" in text

    def test_a_number_of_batches_and_a_remark_are_reported(self, folders: dict[str, Path], kind: str) -> None:
        record = json.loads((folders[kind] / "training.json").read_text(encoding="utf-8"))
        assert "Remark" not in card(record)
        record["config"][f"{kind}_training"]["updates"] = record["updates"] = 1234
        text = card(record | {"remark": "Written by four."})
        assert "**Training:** 1,234 batches of at most 256 tokens, on a machine" in text
        assert "- **Remark:** Written by four.\n" in text

    def test_errors_are_never_rounded_down(self, text: str, kind: str) -> None:
        assert "| greedy | 1 | 4,321 | 0.789 | 0.011 | 0.001 |" in text.splitlines()

    def test_tables_are_whole(self, text: str, kind: str) -> None:
        for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1
