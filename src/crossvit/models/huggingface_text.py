"""A Hugging Face encoder from a local folder as a text encoder, e.g. a sentence encoder."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.models.memory import RowMemory, row_keys
from crossvit.models.text_encoder import TextFeatures, pool_text, real_tokens
from crossvit.models.weights import WeightReport


class HuggingFaceTextEncoder(nn.Module):
    """An encoder such as all-MiniLM-L6-v2 from a folder with `config.json` and its weights. Never fetches anything.

    pooling: `mean` over the real tokens (sentence encoders) or `cls`. freeze: the encoder keeps its weights and runs
        without dropout. remember: with freeze, keep what so many texts give instead of computing it in every epoch and
        stage.
    `report` says what was loaded. Raises UserError where the folder is no such folder, where its weights do not fit, or
    where transformers is not installed.
    """

    def __init__(
        self, folder: str, pooling: Literal["mean", "cls"] = "mean", freeze: bool = False, remember: int = 0
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling {pooling!r}: choose mean or cls")
        if remember and not freeze:
            raise UserError(f"text_encoder.remember={remember} needs a frozen encoder: set text_encoder.freeze=true")
        self.model, self.report = _load(Path(folder))
        self.width = self.model.config.hidden_size
        self.vocab_size, self.word_width = self.word_table().shape
        self.context_length = self.model.config.max_position_embeddings
        self.pad_id = self.model.config.pad_token_id or 0
        self.pooling = pooling
        self.freeze = freeze
        self._memory = RowMemory(remember, self.model) if remember else None
        if freeze:
            self.requires_grad_(False)
        self.train()

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, M) -> word embeddings (B, M, word_width), before positions."""
        return self.model.get_input_embeddings()(tokens)

    def word_table(self) -> Tensor:
        """(vocab_size, word_width), what `embed` looks words up in."""
        return self.model.get_input_embeddings().weight

    def forward(self, tokens: Tensor, mask: Tensor | None = None, words: Tensor | None = None) -> TextFeatures:
        """tokens (B, M) of the folder's own tokenizer; mask (B, M) or None for all but the padding; words (B, M, word_width) or None for
        `embed(tokens)`."""
        mask = real_tokens(tokens, self.pad_id, mask=mask)
        if words is not None:
            states = self.model(inputs_embeds=words, attention_mask=mask.long()).last_hidden_state
        else:
            states = self._states(tokens, mask) if self._memory is None else self._remembered(tokens, mask)
        return TextFeatures(states, pool_text(states, mask, self.pooling), mask)

    def _states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    def _remembered(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `_states`, with zeros on the padding."""

        def compute(places: list[int]) -> list[Tensor]:
            states = self._states(tokens[places], mask[places])
            return [row[real] for row, real in zip(states, mask[places], strict=True)]

        keys = row_keys(row[real] for row, real in zip(tokens.cpu(), mask.cpu(), strict=True))
        rows = self._memory.answer(keys, compute)
        out = rows[0].new_zeros(*tokens.shape, self.width, device=tokens.device)
        out[mask] = torch.cat([row.to(tokens.device) for row in rows])
        return out

    def train(self, mode: bool = True) -> "HuggingFaceTextEncoder":
        return super().train(mode and not self.freeze)


def _load(folder: Path) -> tuple[nn.Module, WeightReport]:
    """The encoder without its pooler, which sentence encoders do not use, and what became of the weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"text_encoder.folder={folder}: no Hugging Face model there (it needs config.json and weights)")
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise UserError("text_encoder=huggingface needs the package transformers: pip install transformers") from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype="float32", output_loading_info=True
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"text_encoder.folder={folder}: cannot be loaded ({reason})") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    faults = missing + [str(name) for name in info["mismatched_keys"]]
    if faults:
        raise UserError(
            f"text_encoder.folder={folder}: weights do not fit, {len(faults)} missing: {', '.join(faults[:5])}"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    loaded = tuple(name for name in model.state_dict() if name not in missing)
    return model, WeightReport(loaded, (), tuple(missing), tuple(info["unexpected_keys"]))
