"""Models and texts that the tests of distillation share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specgym.agents.distillation.data.generation import Conversation, SelfDialogue
from specgym.agents.distillation.distillation_config import GenerationConfig
from specgym.agents.distillation.pipeline import Distillation, DistilledDraft
from tests.support.distilling import CONFIGS, TOKENIZER, nothing_on_device, written
from tests.support.tiny_pair import END, tiny_chat_model


@pytest.fixture(scope="session")
def generation() -> GenerationConfig:
    """Settings of `conversations`: many slots, and limits that the tiny model sometimes reaches."""
    return GenerationConfig(
        conversations=120, slots=8, max_user_tokens=10, max_text_tokens=20, max_answer_tokens=14, seed=5
    )


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """The tiny chat model, changed to choose its end token in place of the letter I."""
    model = tiny_chat_model(dtype=torch.float64)
    with torch.no_grad():
        model.lm_head.weight[END] = 1.1 * model.lm_head.weight[TOKENIZER.encode("I")[0]]
    return model


@pytest.fixture(scope="session")
def conversations(model: PreTrainedModel, generation: GenerationConfig) -> list[Conversation]:
    """Conversations that `model` writes with `generation`."""
    return list(SelfDialogue(model, TOKENIZER, generation).conversations())


@pytest.fixture(scope="session")
def easy_model() -> PreTrainedModel:
    """A target whose choice depends on its last token alone, so few tokens are enough to learn it."""
    model = tiny_chat_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return model


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `distilled`."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="session")
def distilled(easy_model: PreTrainedModel, run_folder: Path) -> dict[str, DistilledDraft]:
    """A draft of each kind for `easy_model`, made in the same folder from states on the disk."""
    distilled, texts = {}, []
    for kind, config in CONFIGS.items():
        with nothing_on_device():
            distilled[kind] = Distillation(easy_model, TOKENIZER, run_folder, config).run()
        texts.append(written(run_folder, "text-*"))
    assert texts[0] == texts[1], "they share their text"
    return distilled


@pytest.fixture
def copy(run_folder: Path, distilled: dict[str, DistilledDraft], tmp_path: Path) -> Path:
    """A copy of the run folder after both kinds were made."""
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))
