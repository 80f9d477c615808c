"""The states of a frozen donor that reads text: computed once for each text, kept in files, and used by all runs.

The donor's states of a text depend on its weights and on the text's tokens alone. They don't change in training, so
epochs, seeds and arms of a study can share them.

    donor-states/
    └── 9f86d081884c7d65/              one folder per donor: the hash of all that decides its states
        ├── .lock                      held while a process adds states
        └── 5e884898da280471.safetensors   keys [texts, 16], rows [texts + 1], states [all rows, donor_hidden]

A key is the hash of a text's tokens. Its states are one row if the graft pools them, else one row per token. Files are
memory-mapped, written once, and never changed.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layer_surgeon._format import format_bytes
from layer_surgeon._io import BusyError, locked, new_path
from layer_surgeon.errors import DataError, WorkspaceError
from layer_surgeon.finetune.parts import plain_model
from layer_surgeon.finetune.processes import frozen_donor
from layer_surgeon.finetune.tasks.base import TaskContext
from layer_surgeon.finetune.tokenization import Features, TokenizedDataset
from layer_surgeon.graft.reading import run_stack_alone
from layer_surgeon.progress import Progress

_FORMAT = 1
_KEY_BYTES = 16
# States that are in memory before they are written. A run that is stopped loses at most these.
_BYTES_PER_FILE = 1 << 28
# Tokens that pass through a layer before the next layer is run: enough to keep reading weights from memory rare.
_TOKENS_AT_A_TIME = 1024
_NAMES = ("keys", "rows", "states")


@dataclass(frozen=True, kw_only=True)
class StateCache:
    """Where the states of a frozen donor are kept.

    Attributes:
        folder: The folder for the states of all donors.
        shuffle_seed: Give each text the states of another text of its set, chosen with this seed. This is a control: it
            shows whether it matters which text the donor reads.
    """

    folder: Path
    shuffle_seed: int | None = None

    def attach(
        self, sets: Mapping[str, TokenizedDataset], context: TaskContext, progress: Progress, *, device: torch.device
    ) -> None:
        """Give data sets the donor's states of their texts, if the model has a frozen donor that reads text.

        The states of each text are computed alone, without padding, and without mixed precision. They are therefore the
        same in every run, whether they are kept (`cache_states`) or not.

        Args:
            sets: The data sets by name. All of their features must be in memory.
            context: The model and the settings.
            progress: Receives the texts that are read.
            device: Where the donor runs. It is moved there.

        Raises:
            DataError: States are to be shuffled, but a set has only one text.
            WorkspaceError: The folder can't be written, a file in it is damaged, or the disk has too little space.
        """
        model = plain_model(context.model)
        if not _reads_text(model):
            return
        model.donor.to(device)
        compute = DonorReader(model)
        read: Callable[[Features], Tensor] = compute.read
        if context.config.cache_states:
            kept = StoredStates(self.folder / donor_key(model), compute)
            kept.add([feature for dataset in sets.values() for feature in dataset.features], progress)
            read = kept.read
        for name, dataset in sets.items():
            order = range(len(dataset)) if self.shuffle_seed is None else _others(len(dataset), self.shuffle_seed, name)
            dataset.donor_states = _Lookup(read, dataset.features, order)


@dataclass(frozen=True)
class _Lookup:
    read: Callable[[Features], Tensor]
    features: Sequence[Features]
    order: Sequence[int]

    def __call__(self, index: int) -> Tensor:
        return self.read(self.features[self.order[index]])


def _reads_text(model: Any) -> bool:
    settings = getattr(model.config, "settings", None)
    return bool(frozen_donor(model)) and settings is not None and settings.reads_text


def _others(count: int, seed: int, name: str) -> list[int]:
    """Choose another text for each of `count` texts, so that each is chosen once: one cycle through all, at random."""
    if count < 2:
        raise DataError(
            f"The donor's states are to be shuffled between the texts of a set, but the {name} set has {count} text. "
            "Use more examples."
        )
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    others = [0] * count
    for number, index in enumerate(cycle):
        others[index] = cycle[(number + 1) % count]
    return others


def with_states(
    collate: Callable[[list[Features]], Mapping[str, Tensor]],
) -> Callable[[list[Features]], Mapping[str, Tensor]]:
    """Let a function that makes a batch from features also make a batch of the donor's states, if there are any.

    States of tokens are put where the attention mask has ones, with zeros at padding, as `GraftedModel.read_text` does.
    """

    def make_batch(features: list[Features]) -> Mapping[str, Tensor]:
        states = [feature.pop("donor_states", None) for feature in features]
        batch = collate(features)
        if states[0] is None:
            return batch
        if states[0].ndim == 1:
            joined = torch.stack(states)  # [batch, donor_hidden]
        else:
            mask = batch["attention_mask"].bool()  # [batch, seq]
            joined = states[0].new_zeros(*mask.shape, states[0].shape[-1])
            joined[mask] = torch.cat(states)
        # Collators of transformers return a BatchEncoding, which is no dict, but can be changed like one.
        changeable: MutableMapping[str, Tensor] = batch  # type: ignore[assignment]
        changeable["donor_states"] = joined
        return changeable

    return make_batch


class DonorReader:
    """Computes the donor's states of texts, each alone.

    Attributes:
        width: Width of the states.
        dtype: Their element type.
        pools: Whether a text has one state, and not one per token.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        settings = model.config.settings
        self._ids = "donor_input_ids" if settings.donor_tokens == "own" else "input_ids"
        self.width = int(model.donor.hidden_size)
        self.pools = bool(settings.joins_vectors)
        self.dtype = torch.float32 if self.pools else model.donor.dtype

    def ids(self, feature: Features) -> Sequence[int]:
        """Return the tokens that the donor reads."""
        ids: Sequence[int] = feature[self._ids]
        return ids

    def num_rows(self, feature: Features) -> int:
        """Return the number of states of a text."""
        return 1 if self.pools else len(self.ids(feature))

    @torch.no_grad()
    def read_all(self, features: Sequence[Features]) -> list[Tensor]:
        """Compute the states of each text: [donor_hidden] if the graft pools them, else [seq, donor_hidden]."""
        device = next(self._model.donor.parameters()).device
        texts = [torch.tensor(list(self.ids(feature)), device=device) for feature in features]
        states = run_stack_alone(self._model.donor, texts, self._model.config.settings)
        return [of_text.to(self.dtype).cpu() for of_text in states]

    def read(self, feature: Features) -> Tensor:
        """Compute the states of one text."""
        return self.read_all([feature])[0]


class StoredStates:
    """The kept states of one donor.

    Args:
        folder: Their folder.
        compute: Computes the states of a text that has none yet.
    """

    def __init__(self, folder: Path, compute: DonorReader) -> None:
        self._folder, self._compute = folder, compute
        self._files: set[str] = set()
        self._states: dict[bytes, Tensor] = {}

    def read(self, feature: Features) -> Tensor:
        """Return the states of a text that was added before."""
        states = self._states[self._key(feature)]
        return states[0] if self._compute.pools else states

    def add(self, features: Sequence[Features], progress: Progress) -> None:
        """Compute the states of the texts that have none yet.

        Raises:
            WorkspaceError: As in `StateCache.attach`.
        """
        texts = {self._key(feature): feature for feature in features}
        self._open_files()
        if self._missing(texts):
            with self._locked(progress):
                self._open_files()  # Another process may have added the same texts while this one waited.
                self._compute_missing(self._missing(texts), progress)

    def _missing(self, texts: Mapping[bytes, Features]) -> dict[bytes, Features]:
        return {key: feature for key, feature in texts.items() if key not in self._states}

    def _compute_missing(self, texts: Mapping[bytes, Features], progress: Progress) -> None:
        self._check_free(texts)
        progress.begin("The donor reads the texts, once", len(texts), "texts")
        unwritten: dict[bytes, Tensor] = {}
        num_bytes = 0
        for group in _groups({key: len(self._compute.ids(feature)) for key, feature in texts.items()}):
            states = self._compute.read_all([texts[key] for key in group])
            for key, of_text in zip(group, states, strict=True):
                unwritten[key] = of_text.reshape(-1, self._compute.width)
                num_bytes += of_text.nbytes
            if num_bytes >= _BYTES_PER_FILE:
                self._write(unwritten)
                unwritten, num_bytes = {}, 0
            progress.advance(len(group))
        if unwritten:
            self._write(unwritten)
        progress.end()
        self._open_files()

    def _key(self, feature: Features) -> bytes:
        ids = np.asarray(self._compute.ids(feature), dtype="<i8")
        return hashlib.blake2b(ids.tobytes(), digest_size=_KEY_BYTES).digest()

    @contextlib.contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        path = self._folder / ".lock"
        with contextlib.ExitStack() as stack:
            try:
                try:
                    stack.enter_context(locked(path, wait=False))
                except BusyError:
                    progress.notice(f"Another process is adding states to {self._folder}; waiting for it.")
                    stack.enter_context(locked(path, wait=True))
            except OSError as error:
                raise self._not_written(error.strerror or str(error)) from error
            yield

    def _check_free(self, texts: Mapping[bytes, Features]) -> None:
        num_rows = sum(map(self._compute.num_rows, texts.values()))
        needed = num_rows * self._compute.width * self._compute.dtype.itemsize
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._not_written(
                f"the donor's states of {len(texts):,} texts take {format_bytes(needed)}, and the disk has "
                f"{format_bytes(free)} left"
            )

    def _not_written(self, reason: str) -> WorkspaceError:
        return WorkspaceError(
            f"{self._folder} can't be written: {reason}. Make room, choose another place with --workspace, or set "
            "cache_states to false (--no-cache-states): the states are then computed again in every epoch."
        )

    def _write(self, states: Mapping[bytes, Tensor]) -> None:
        keys = b"".join(states)
        rows = torch.tensor([0, *(len(rows) for rows in states.values())]).cumsum(0)
        tensors = {
            "keys": torch.from_numpy(np.frombuffer(keys, dtype=np.uint8).reshape(-1, _KEY_BYTES).copy()),
            "rows": rows,
            "states": torch.cat(list(states.values())),
        }
        name = hashlib.sha256(keys).hexdigest()[:_KEY_BYTES]
        try:
            with new_path(self._folder / f"{name}.safetensors") as path:
                save_file(tensors, path)
        except (OSError, SafetensorError) as error:
            raise self._not_written(getattr(error, "strerror", None) or str(error)) from error

    def _open_files(self) -> None:
        """Map the files that are not yet open into memory."""
        for path in sorted(self._folder.glob("*.safetensors")):
            if path.name not in self._files:
                self._states |= self._open(path)
                self._files.add(path.name)

    def _open(self, path: Path) -> dict[bytes, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                keys, rows, states = (file.get_tensor(name) for name in _NAMES)
            expected = (torch.uint8, torch.int64, self._compute.dtype)
            if (keys.dtype, rows.dtype, states.dtype) != expected or keys.ndim != 2 or states.ndim != 2:
                raise ValueError("its tensors have other types or shapes")
            sizes = rows.diff()
            if rows.shape != (len(keys) + 1,) or rows[0] != 0 or rows[-1] != len(states) or (sizes < 1).any():
                raise ValueError("its rows don't fit its states")
            if states.shape[1] != self._compute.width or (self._compute.pools and (sizes != 1).any()):
                raise ValueError("its states have another shape")
        except (OSError, SafetensorError, ValueError) as error:
            raise WorkspaceError(
                f"{path} has no usable states of a donor ({error}). Delete it; the states are then computed again."
            ) from error
        return {bytes(key): part for key, part in zip(keys.numpy(), states.split(sizes.tolist()), strict=True)}


def _groups(lengths: Mapping[bytes, int]) -> Iterator[list[bytes]]:
    """Split texts into groups of at most `_TOKENS_AT_A_TIME` tokens; a longer text is a group of its own.

    Args:
        lengths: By key, the number of tokens of each text.
    """
    group: list[bytes] = []
    num_tokens = 0
    for key, length in lengths.items():
        if group and num_tokens + length > _TOKENS_AT_A_TIME:
            yield group
            group, num_tokens = [], 0
        group.append(key)
        num_tokens += length
    if group:
        yield group


def donor_key(model: Any) -> str:
    """Hash everything that decides the donor's states of a text, apart from the text.

    These are the weights in memory, the donor's config, what the graft does with the states, and what can change their
    last digits: versions of the packages, the kind of device, and the number of threads on the CPU.
    """
    donor, settings = model.donor, model.config.settings
    device = next(donor.parameters()).device.type
    facts = {
        "format": _FORMAT,
        "config": donor.config.family_config().to_dict(),
        "layer_indices": list(donor.config.layer_indices),
        "attention": donor.config._attn_implementation,
        "pooling": settings.donor_pooling if settings.joins_vectors else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else None,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(donor.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:_KEY_BYTES]
