"""Models as the engine drives them: one text, one cache, and rows of a tree that one forward appends."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import LimitError, PairError
from specgym.env.models.attention import ATTENTION, text_part
from specgym.env.models.branches import check_branches
from specgym.env.models.cache import Rows, TreeCache
from specgym.env.models.fast.lean import LeanModel, lean_model, weights_of
from specgym.env.models.fast.plain import is_plain
from specgym.env.models.hub.compatibility import check_target
from specgym.env.models.hub.context import ChangingRotation, changing_rotation, context_limit
from specgym.env.models.hub.loading import StoredLlama, token_set
from specgym.env.models.masks import RowsRead, local_masks, reading, windows_of
from specgym.env.models.modes import ReadingMode, device_of, reading_mode
from specgym.env.models.states import HiddenStates, check_feature_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from typing_extensions import Self

    AnyModel: TypeAlias = PreTrainedModel | StoredLlama


class CachedModel:
    """A causal language model with its own cache, to which rows of a tree can be appended.

    A transformers model object is left as it is found: its settings change for the length of a forward only.

    Args:
        model: any transformers causal language model with a key-value cache, or one in its folder.
        eight_bits: whether the weights of linear layers are rounded to eight bits, see `quantize_int8`.

    Attributes:
        precision: name of the weights' precision.
        rotation: how the model's rotation changes with the length of the text, if it does.

    Raises:
        PairError: the model's attention cannot branch, or its weights cannot be rounded.
        ParameterError: weights are to be rounded, and this machine cannot compute with them.
    """

    def __init__(self, model: AnyModel, *, eight_bits: bool = False) -> None:
        self.eight_bits = eight_bits
        self.device: torch.device = model.device if isinstance(model, StoredLlama) else device_of(model)
        self.dtype: torch.dtype = model.dtype
        self._stored = model if isinstance(model, StoredLlama) else None
        self._model: PreTrainedModel | None = None
        self._root = self  # the one of all forks that has the model object
        self._follows = self._stored is None  # whether somebody else has the object, and may change it
        self.rotation: ChangingRotation | None = None
        self._lean: LeanModel | None = None
        self._plain: LeanModel | None = None  # what `_lean` is a fork of, for a model object
        self._mode: ReadingMode | None = None
        if isinstance(model, StoredLlama):
            self._lean = LeanModel(model.weights(), eight_bits)
            self.vocabulary, self.context_limit, layers = model.vocabulary, model.context_limit, model.layers
        else:
            self._attach(model)
            self.vocabulary = _outs(model.get_output_embeddings())
            self.context_limit = context_limit(model.config)
            layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        self.cache = TreeCache(layers, self.device)
        self._positions = np.empty(0, np.int64)  # of the cache's last columns
        self._choose_forward()
        self.session: object = None  # stands for the text that the cache holds; set by who started it
        self.feature_layers: tuple[int, ...] | None = None  # layers whose states are recorded, if any
        self._lean_features: torch.Tensor | None = None
        self._states: HiddenStates | None = None  # records those of the model's own forward
        if self._lean is None:
            check_branches(self)
        self.precision = "int8" if eight_bits else str(self.dtype).removeprefix("torch.")

    def _attach(self, model: PreTrainedModel) -> None:
        check_target(model.config)
        if self.eight_bits and not is_plain(model):
            raise PairError(
                f"int8 is for models built like Llama (Llama, Mistral, Qwen2, Qwen3), without adapters; this one is a "
                f"{type(model).__name__}. Use bfloat16."
            )
        self._model, self.rotation = model, changing_rotation(model.config)
        if self.eight_bits and self._lean is None:  # a model in its folder has a lean forward already
            self._lean = LeanModel(weights_of(model), eight_bits=True)

    def _choose_forward(self) -> None:
        """Takes the lean forward for a model object that is plain, and the model's own for another."""
        model = self._root._model
        if model is None or self.eight_bits or not self._root._follows:
            return
        lean = lean_model(model)
        if lean is None:
            self._mode = reading_mode(model)
        if lean is not self._plain or self.device != device_of(model):
            self.device, self.dtype = device_of(model), model.dtype
            self._plain, self._lean = lean, lean and lean.fork()
            self.cache = TreeCache(len(self.cache.layers), self.device)

    def fork(self) -> Self:
        """Returns the same model with a cache of its own, for another text at the same time."""
        fork = copy.copy(self)
        fork.cache, fork._positions = TreeCache(len(self.cache.layers), self.device), np.empty(0, np.int64)
        fork._lean = self._lean and self._lean.fork()
        return fork

    def start(self) -> None:
        """Begins a text: empties the cache, and looks whether a model object still is plain.

        Raises:
            PairError: the model attends by a function that is not a part of transformers.
        """
        self._choose_forward()
        self.cache.reset()
        self.session = None

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model object. A model in its folder is loaded as one when this is first used.

        From then on, texts follow the object and whatever is done to it.
        """
        root = self._root
        model, root._follows = root._object(), True
        if not root.cache.length:
            root._choose_forward()
        return model

    @contextlib.contextmanager
    def lent(self) -> Iterator[PreTrainedModel]:
        """Lends the transformers model object for the length of a block, which must not change it."""
        yield self._object()

    def _object(self) -> PreTrainedModel:
        """Returns the model object, loaded if needed."""
        root = self._root
        if root._model is None:
            assert root._stored is not None, "a model is an object or in a folder"
            root._attach(root._stored.load())
        assert root._model is not None, "`_attach` has set it"
        return root._model

    @property
    def embedding(self) -> nn.Embedding:
        """The table of token embeddings."""
        return self._object().get_input_embeddings() if self._lean is None else self._lean.embedding

    @property
    def state_dtype(self) -> torch.dtype:
        """The precision of keys and values."""
        return self.dtype if self._lean is None else self._lean.dtype

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """Appends consecutive tokens to the cache.

        Returns:
            The logits after the last token, `[1, vocabulary]`.
        """
        prefix, rows = self.cache.length, len(tokens)
        visible = np.tri(rows, dtype=np.bool_) if rows > 1 and prefix else None
        return self._forward(np.asarray(tokens, np.int64), np.arange(prefix, prefix + rows), visible, 1)

    def extend_all(self, tokens: Sequence[int]) -> torch.Tensor:
        """Reads a whole text into the empty cache. Returns the logits after each token, `[tokens, vocabulary]`."""
        return self._forward(np.asarray(tokens, np.int64), np.arange(len(tokens)), None, 0)

    def extend_tree(self, tokens: IntArray, positions: IntArray, visible: BoolArray, *, keep: int = 0) -> torch.Tensor:
        """Appends rows of a tree to the cache.

        Args:
            tokens: the rows' tokens, `int64[rows]`.
            positions: the rows' absolute positions, `int64[rows]`.
            visible: which of the last columns, these rows' own included, each row sees, `bool[rows, columns]`;
                every column before them is seen.
            keep: last rows whose logits are computed; 0 for all.

        Returns:
            Logits, `[rows kept, vocabulary]`.
        """
        return self._forward(tokens, positions, visible, keep)

    def _forward(self, tokens: IntArray, positions: IntArray, visible: BoolArray | None, keep: int) -> torch.Tensor:
        if self._lean is not None:
            rows = Rows(tokens, positions, visible)
            logits, self._lean_features = self._lean(rows, self.cache, keep=keep, shown=self.feature_layers)
            return logits
        # Columns before those that `visible` covers hold committed text, so they are their own positions.
        earlier = 0 if visible is None else visible.shape[1] - len(tokens)
        self._positions = np.concatenate([self._positions[:earlier], positions])
        text = np.arange(self.cache.length - earlier)
        read = RowsRead(positions[None], np.concatenate([text, self._positions]), visible)
        model, windows = self._object(), windows_of(self._object())
        assert self._mode is not None, "without a lean forward there is a mode"
        with self._mode, self._states or contextlib.nullcontext(), reading(read), local_masks(windows.local, read):
            # Some older models only have attention of their own, which needs a ready mask.
            asks = text_part(model).config._attn_implementation == ATTENTION
            output = model(
                torch.from_numpy(tokens[None]).to(self.device),
                attention_mask=None if asks else read.mask(None, self.dtype, self.device),
                position_ids=torch.from_numpy(positions[None]).to(self.device),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,  # 0 keeps all
            )
        if not read.asked or windows.some > read.windowed:
            raise PairError(f"{type(model).__name__} cannot work here: it does not build its masks by transformers.")
        return output.logits[0]  # type: ignore[no-any-return]


class TargetModel(CachedModel):
    """The target, which also records hidden states for drafts that read them.

    Args:
        model: as for `CachedModel`, which raises the same.
        end_tokens: ids that end a text; None for those of the model's own generation settings.
        eight_bits: as for `CachedModel`.
    """

    def __init__(self, model: AnyModel, end_tokens: frozenset[int] | None = None, *, eight_bits: bool = False) -> None:
        super().__init__(model, eight_bits=eight_bits)
        if end_tokens is None:
            end_tokens = model.end_tokens if isinstance(model, StoredLlama) else end_of_sequence(model)
        self.end_tokens = end_tokens

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings of text generation that come with the model."""
        model = self._stored if self._model is None else self._model
        return getattr(model, "generation_config", None) or GenerationConfig()

    @property
    def features(self) -> torch.Tensor | None:
        """Hidden states of the last forward's rows, `[rows, width]`; None unless `show_features` turned them on."""
        if self._lean is not None:
            return self._lean_features
        return None if self._states is None or self._states.last is None else self._states.last[0]

    def fork(self) -> Self:
        """See `CachedModel.fork`."""
        fork = super().fork()
        fork._states, fork.feature_layers, fork._lean_features = None, None, None
        return fork

    def start(self) -> None:
        """See `CachedModel.start`."""
        lean, layers = self._lean, self.feature_layers
        super().start()
        if self._lean is not lean:
            self.show_features(None)
            self.show_features(layers)

    def extend_tree(self, tokens: IntArray, positions: IntArray, visible: BoolArray, *, keep: int = 0) -> torch.Tensor:
        """See `CachedModel.extend_tree`.

        Raises:
            LimitError: the rows lie on both sides of where the model's rotation changes.
        """
        first, last = int(positions.min()), int(positions.max())
        if self.rotation is not None and last - first > self.rotation.room(first):
            raise LimitError(
                f"Positions {first} to {last} cannot share a forward: the rotation of {type(self._object()).__name__} "
                f"changes with the length of the text, from {self.rotation.length} tokens on. Keep texts shorter."
            )
        return super().extend_tree(tokens, positions, visible, keep=keep)

    def show_features(self, layers: tuple[int, ...] | None) -> None:
        """Records hidden states of these layers and the last one (see `HiddenStates`) from now on; None for none.

        Raises:
            PairError: the model has no such layer.
        """
        if layers == self.feature_layers:
            return
        self._states, self.feature_layers, self._lean_features = None, None, None
        if layers is not None and self._lean is not None:
            check_feature_layers(layers, len(self.cache.layers))
        elif layers is not None:
            self._states = HiddenStates(self._object(), layers)
            self._states.pause()  # it records the forwards of this text alone
        self.feature_layers = layers


def _outs(head: Any) -> int:
    """Returns the number of a head's results. A quantised one keeps its weight in another shape, or in none."""
    weight = head.weight
    is_plain = isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.ndim == 2  # [outs, features]
    return int(weight.shape[0] if is_plain else head.out_features)


def end_of_sequence(model: PreTrainedModel) -> frozenset[int]:
    """Returns the token ids that end a text by the model's generation settings; empty if there are none."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return token_set(model.config.eos_token_id if end is None else end)
