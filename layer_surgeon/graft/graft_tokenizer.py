"""The tokenizer of a graft whose donor reads tokens of its own: the host's tokenizer, and the donor's inside of it."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy
from transformers.utils import to_py_obj

from layer_surgeon._model_types import DONOR_TOKENIZER_FILE
from layer_surgeon.errors import ConfigError, GraftError

_IDS, _MASK = "donor_input_ids", "donor_attention_mask"


class GraftTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers is untyped here
    """Gives the host's tokens of a text, and the donor's as `donor_input_ids` and `donor_attention_mask`.

    In everything else it is the host's tokenizer. The donor's tokens are cut to the same maximum length on the
    same side, and padded on the right. `AutoTokenizer` loads it, after `import layer_surgeon`.

    Args:
        args: As for `PreTrainedTokenizerFast`.
        donor_tokenizer_file: The donor's tokenizer.json.
        donor_padding: The id that pads the donor's tokens. The mask marks the padding, so any id does.
        donor_max_length: The largest number of the donor's tokens when texts are cut; None: no limit of its own.
        kwargs: As for `PreTrainedTokenizerFast`.

    Raises:
        GraftError: The folder has no tokenizer, or the donor's file is missing.
    """

    vocab_files_names = {**PreTrainedTokenizerFast.vocab_files_names, "donor_tokenizer_file": DONOR_TOKENIZER_FILE}

    def __init__(
        self,
        *args: Any,
        donor_tokenizer_file: str | None = None,
        donor_padding: int = 0,
        donor_max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        if donor_tokenizer_file is None and kwargs.get("tokenizer_file") is None:
            raise GraftError(
                "The graft's folder has no tokenizer. Save its host's there: tokenizer.save_pretrained(FOLDER)."
            )
        if donor_tokenizer_file is None:
            raise GraftError(
                f"The graft's tokenizer lacks {DONOR_TOKENIZER_FILE}, its donor's tokenizer. Get the graft again, or "
                "make it again."
            )
        self._donor = Tokenizer.from_file(donor_tokenizer_file)
        self._donor.no_padding()
        self.donor_padding, self.donor_max_length = donor_padding, donor_max_length
        # The base class stores its keyword arguments in tokenizer_config.json.
        super().__init__(*args, donor_padding=donor_padding, donor_max_length=donor_max_length, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Read tokenizer.json as it is. The base class would rebuild the tokenizer of a class with an `__init__`."""
        return kwargs

    @classmethod
    def from_tokenizers(cls, host: PreTrainedTokenizerBase, donor: PreTrainedTokenizerBase) -> Self:
        """Make the tokenizer of a graft from those of its host and its donor.

        Raises:
            GraftError: One of them has no tokenizer.json.
        """
        for part, tokenizer in (("host", host), ("donor", donor)):
            if getattr(tokenizer, "backend_tokenizer", None) is None:
                raise GraftError(
                    f"The tokenizer of the {part} is a {type(tokenizer).__name__}, which has no tokenizer.json. Set "
                    f"donor_tokens to host, or choose another {part}."
                )
        candidates = (donor.pad_token_id, donor.eos_token_id, donor.bos_token_id)
        padding = next((token_id for token_id in candidates if token_id is not None), 0)
        with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as folder:
            host.save_pretrained(folder)
            donor.backend_tokenizer.save(str(Path(folder) / DONOR_TOKENIZER_FILE))
            made: Self = cls.from_pretrained(
                folder,
                donor_padding=padding,
                donor_max_length=int(donor.model_max_length) if donor.model_max_length < _NO_LIMIT else None,
                model_input_names=[*host.model_input_names, _IDS, _MASK],
            )
        made.name_or_path = host.name_or_path
        return made

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        **settings: Any,
    ) -> BatchEncoding:
        """Pad both kinds of tokens; the arguments are those of transformers."""
        if isinstance(encoded_inputs, Sequence) and encoded_inputs and isinstance(encoded_inputs[0], Mapping):
            encoded_inputs = {key: [example[key] for example in encoded_inputs] for key in encoded_inputs[0]}
        inputs = dict(encoded_inputs)
        ids = inputs.pop(_IDS, None)
        masks = inputs.pop(_MASK, None)
        padded = super().pad(inputs, padding, max_length, pad_to_multiple_of=pad_to_multiple_of, **settings)
        if ids is None:
            return padded
        ids, masks = _as_lists(ids), _as_lists(masks)
        strategy, _, max_length, _ = self._get_padding_truncation_strategies(padding=padding, max_length=max_length)
        is_single = not ids or isinstance(ids[0], int)
        if is_single:
            ids, masks = [ids], None if masks is None else [masks]
        donor: Mapping[str, Any] = self._padded(ids, strategy, max_length, pad_to_multiple_of, masks)
        if is_single:
            donor = {name: rows[0] for name, rows in donor.items()}
        tensor_type = settings.get("return_tensors") or _TENSOR_TYPES.get(type(padded["input_ids"]).__module__)
        padded.update(BatchEncoding(donor, tensor_type=tensor_type))
        return padded

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        return_tensors: Any = None,
        is_split_into_words: bool = False,
        **settings: Any,
    ) -> BatchEncoding:
        if settings.get("return_overflowing_tokens"):
            raise ConfigError(
                "return_overflowing_tokens is true, but the pieces of a long text would differ between host and donor. "
                "Leave it out."
            )
        is_batch = isinstance(text, list | tuple) and (not is_split_into_words or isinstance(text[0], list | tuple))
        texts = list(text) if is_batch else [text]
        pairs = None if text_pair is None else list(text_pair) if is_batch else [text_pair]
        encoded = super()._encode_plus(
            texts,
            pairs,
            padding_strategy=padding_strategy,
            truncation_strategy=truncation_strategy,
            max_length=max_length,
            is_split_into_words=is_split_into_words,
            **settings,
        )
        if truncation_strategy == TruncationStrategy.DO_NOT_TRUNCATE:
            self._donor.no_truncation()
        else:
            limits = [limit for limit in (max_length, self.donor_max_length) if limit is not None]
            self._donor.enable_truncation(
                min(limits), strategy=truncation_strategy.value, direction=self.truncation_side
            )
        if is_split_into_words:  # The donor reads them as one text. Only the host's tokens have to know their words.
            texts = [" ".join(words) for words in texts]
            pairs = None if pairs is None else [" ".join(words) for words in pairs]
        rows = self._donor.encode_batch(
            texts if pairs is None else list(zip(texts, pairs, strict=True)),
            add_special_tokens=settings.get("add_special_tokens", True),
        )
        pad_to_multiple_of = settings.get("pad_to_multiple_of")
        donor = self._padded([row.ids for row in rows], padding_strategy, max_length, pad_to_multiple_of)
        values = {**encoded, **donor}
        if not is_batch and return_tensors is None:
            values = {name: rows[0] for name, rows in values.items()}
        return BatchEncoding(values, encoded.encodings, tensor_type=return_tensors)

    def _padded(
        self,
        rows: list[list[int]],
        strategy: PaddingStrategy,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        masks: list[list[int]] | None = None,
    ) -> dict[str, list[list[int]]]:
        """Pad the donor's tokens and their masks on the right. Without `masks`, the rows have no padding yet."""
        masks = [[1] * len(row) for row in rows] if masks is None else masks
        length = 0
        if strategy == PaddingStrategy.LONGEST:
            length = max(map(len, rows))
        elif strategy == PaddingStrategy.MAX_LENGTH:
            length = max_length or 0
        if length and pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        return {
            _IDS: [row + [self.donor_padding] * (length - len(row)) for row in rows],
            _MASK: [mask + [0] * (length - len(mask)) for mask in masks],
        }

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        file = str(Path(save_directory) / DONOR_TOKENIZER_FILE)
        self._donor.no_truncation()
        self._donor.save(file)
        return (*super()._save_pretrained(save_directory, file_names, *args, **kwargs), file)


def _as_lists(rows: Any) -> Any:
    """Return rows of numbers, or one row, as lists."""
    return [to_py_obj(row) for row in rows] if isinstance(rows, list) else to_py_obj(rows)


# Tokenizers without a maximum length have one of 10^30.
_NO_LIMIT = 10**9
_TENSOR_TYPES = {"torch": "pt", "numpy": "np"}
