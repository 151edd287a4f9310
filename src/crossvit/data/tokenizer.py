"""From text to token ids.

Every tokenizer is called as open_clip's: `tokenizer(texts) -> (B, context_length) int64`. `encode` gives the same ids
cut to the longest text of the batch, with a mask.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossvit.errors import UserError

SIDES = ("right", "left")

_KEPT_WORDS = 50_000


class Tokenizer(ABC):
    """Common part: batching, padding, shortening and the count of truncated texts.

    Args:
        context_length: most tokens of a text, special tokens included.
        truncation_side: the end that a text too long loses: `right` or `left`.

    Attributes:
        vocab_size: number of ids.
        context_length: most tokens of a text, special tokens included.
        pad_id: id that fills up short texts.
        eot_id: id whose first place marks the end of a text, or None where the model does not use one.
        truncated: texts shortened so far in this process.
    """

    vocab_size: int
    pad_id: int = 0
    eot_id: int | None = None
    case = "lower-cased"  # what becomes of capitals, in words

    def __init__(self, context_length: int, truncation_side: str = "right") -> None:
        if context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {context_length}")
        if truncation_side not in SIDES:
            raise UserError(f"tokenizer.truncation_side={truncation_side} is not one of {', '.join(SIDES)}.")
        self.context_length = context_length
        self.truncation_side = truncation_side
        self.truncated = 0

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """Ids of one text with its special tokens, at most `context_length` of them."""

    @abstractmethod
    def pieces(self, text: str) -> list[str]:
        """What `ids` cuts a text into, one piece an id, to be read by people."""

    def encode(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenise and pad to the longest text of the batch.

        Returns:
            tokens (B, M) int64 and mask (B, M) bool, True where a token is real.
        """
        return self._pad([self.ids(text) for text in _as_list(texts)])

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenise and pad to `context_length`: (B, context_length) int64."""
        return self._pad([self.ids(text) for text in _as_list(texts)], self.context_length)[0]

    def policy(self) -> str:
        """What becomes of a text, in words."""
        kept = {"right": "first", "left": "last"}[self.truncation_side]
        return f"{self.case}; of more than {self.context_length} tokens the {kept} are kept"

    def _pad(self, rows: list[list[int]], length: int = 0) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        length = max([length, *map(len, rows)])
        tokens = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows], dtype=torch.long)
        return tokens.view(len(rows), length), torch.arange(length) < lengths[:, None]

    def _framed(self, ids: list[int], first: int, last: int) -> list[int]:
        """Put special tokens around the ids of a text and shorten it where it is too long."""
        room = self.context_length - 2
        if len(ids) > room:
            self.truncated += 1
            ids = ids[:room] if self.truncation_side == "right" else ids[-room:]
        return [first, *ids, last]


class WordTokenizer(Tokenizer):
    """Whole words of a closed vocabulary: `<cls> words... <eos>`, lower case, punctuation marks as words of their own.

    Args:
        vocabulary: `scenes` for the words of the embedded corpus, or a text file with one word a line.
        context_length, truncation_side: see Tokenizer.

    Raises:
        UserError: the vocabulary file is missing or empty.
    """

    PAD, UNKNOWN, CLS, EOS = range(4)
    SPECIAL = ("<pad>", "<unk>", "<cls>", "<eos>")
    _WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]|_")

    def __init__(self, vocabulary: str = "scenes", context_length: int = 32, truncation_side: str = "right") -> None:
        super().__init__(context_length, truncation_side)
        self.words = (*self.SPECIAL, *_read_vocabulary(vocabulary))
        self._id = {word: i for i, word in enumerate(self.words)}
        self.vocab_size = len(self.words)
        self.pad_id = self.PAD
        self.eot_id = self.EOS

    def ids(self, text: str) -> list[int]:
        words = self._WORD.findall(text.lower())
        return self._framed([self._id.get(word, self.UNKNOWN) for word in words], self.CLS, self.EOS)

    def pieces(self, text: str) -> list[str]:
        return [self.words[i] for i in self.ids(text)]


class ClipTokenizer(Tokenizer):
    """CLIP's byte-pair encoding as open_clip ships it: `<start_of_text> ... <end_of_text>`, padded with 0.

    Id 0 is also the token "!", so real tokens are known by the mask or by the first `eot_id`, never by `!= pad_id`.
    Text that spells a special token is not taken for one.

    Args:
        context_length, truncation_side: see Tokenizer.
    """

    def __init__(self, context_length: int = 77, truncation_side: str = "right") -> None:
        super().__init__(context_length, truncation_side)
        from open_clip.tokenizer import SimpleTokenizer  # slow to import

        self._bpe = SimpleTokenizer(context_length=context_length)
        self.vocab_size = self._bpe.vocab_size
        self.eot_id = self._bpe.eot_token_id
        self._special = set(self._bpe.all_special_ids)
        self._words: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text.isascii() and text.isprintable() and "&" not in text:  # nothing to mend: a text is the sum of its words
            ids = [i for word in text.split() for i in self._word(word)]
        else:
            ids = self._encode(text)
        return self._framed(ids, self._bpe.sot_token_id, self._bpe.eot_token_id)

    def pieces(self, text: str) -> list[str]:
        return [self._bpe.decode([i]).strip() for i in self.ids(text)]

    def _word(self, word: str) -> list[int]:
        """Ids of a word, which are kept: captions share most of theirs."""
        ids = self._words.get(word)
        if ids is None:
            ids = self._encode(word)
            if len(self._words) < _KEPT_WORDS:
                self._words[word] = ids
        return ids

    def _encode(self, text: str) -> list[int]:
        return [i for i in self._bpe.encode(text) if i not in self._special]


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a Hugging Face model in a local folder; nothing is fetched.

    Args:
        folder: folder with the tokenizer's files.
        context_length, truncation_side: see Tokenizer.
        lowercase: lower-case texts first; False leaves that to the tokenizer's own files.

    Raises:
        UserError: the package `transformers` is not installed, or the folder holds no tokenizer.
    """

    def __init__(
        self, folder: str, context_length: int = 128, truncation_side: str = "right", lowercase: bool = False
    ) -> None:
        super().__init__(context_length, truncation_side)
        self.lowercase = lowercase
        self.case = "lower-cased" if lowercase else "capitals as the tokenizer's own files say"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns in every forked worker otherwise
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise UserError(
                "tokenizer: HuggingFaceTokenizer needs the package transformers: pip install transformers"
            ) from None
        if not Path(folder).is_dir():
            raise UserError(f"tokenizer.folder={folder}: is not a folder (text_encoder.folder=DIR)")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, truncation_side=truncation_side
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"tokenizer.folder={folder}: no Hugging Face tokenizer there ({error})".split("\n")[0]
            ) from None
        self.vocab_size = len(self._tokenizer)
        self.pad_id = self._tokenizer.pad_token_id or 0

    def ids(self, text: str) -> list[int]:
        text = text.lower() if self.lowercase else text
        ids = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if len(ids) > self.context_length:
            self.truncated += 1
            ids = self._tokenizer(text, truncation=True, max_length=self.context_length)["input_ids"]
        return ids

    def pieces(self, text: str) -> list[str]:
        return self._tokenizer.convert_ids_to_tokens(self.ids(text))


def _as_list(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _read_vocabulary(vocabulary: str) -> list[str]:
    if vocabulary == "scenes":
        from crossvit.data.scenes.grammar import VOCABULARY

        return VOCABULARY
    try:
        words = Path(vocabulary).read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(
            f"tokenizer.vocabulary={vocabulary}: {error.strerror}. Give 'scenes' or a text file with one word a line."
        ) from None
    if not words:
        raise UserError(f"tokenizer.vocabulary={vocabulary}: the file holds no word.")
    return list(dict.fromkeys(word.lower() for word in words))
