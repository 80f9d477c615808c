"""`HiddenStates`: the states of texts at several depths, in a folder that a run wrote."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from layer_surgeon._folders import expand_home
from layer_surgeon._io import read_json, read_object
from layer_surgeon.errors import ArtifactError, LayerNotFoundError
from layer_surgeon.run.state_files import STATES_FILE

RUN_FILE = "run.json"
TEXTS_FILE = "texts.jsonl"
FILES = (RUN_FILE, TEXTS_FILE, STATES_FILE)
_KIND = "hidden states"


class HiddenStates:
    """The result of a run: a folder with states.safetensors, texts.jsonl and run.json.

    Attributes:
        path: The folder.
        info: The content of run.json: source, commit, tokenizer, layers, pooling, dtype, versions.
    """

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "HiddenStates":
        """Open a folder that a run wrote. Reads no states.

        Raises:
            ArtifactError: The folder isn't one.
        """
        folder = Path(expand_home(path))
        if not is_states(folder) or not (folder / STATES_FILE).is_file():
            raise ArtifactError(
                f"{folder} has no hidden states. Expected was a folder that `surgeon run` wrote, with {RUN_FILE} and "
                f"{STATES_FILE}."
            )
        return cls(folder, read_json(folder / RUN_FILE))

    def __repr__(self) -> str:
        return f"HiddenStates({str(self.path)!r})"

    @property
    def layers(self) -> tuple[int, ...]:
        """The depths that were kept: k is after k layers, 0 is what enters the first layer."""
        return tuple(self.info["layers"])

    @property
    def pool(self) -> str:
        """`mean`, `last` or `none`."""
        return str(self.info["pool"])

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __getitem__(self, depth: int) -> Tensor:
        """The states after `depth` layers; negative depths count from the end of the model.

        Returns:
            [texts, donor_hidden] with pooling, else [all tokens, donor_hidden]; see `offsets`. Memory-mapped.

        Raises:
            LayerNotFoundError: They were not kept.
        """
        index = depth + self.info["num_layers"] + 1 if depth < 0 else depth
        if index not in self.layers:
            raise LayerNotFoundError(
                f"{self.path} has no states after {depth} layers. It has those after {', '.join(map(str, self.layers))}"
            )
        return self._tensor(f"layer.{index}")

    @property
    def offsets(self) -> Tensor:
        """Where each text's tokens begin, and the number of all tokens at the end, [texts + 1]."""
        return self._tensor("offsets")

    @property
    def token_ids(self) -> Tensor:
        """The token ids of all texts, [all tokens]; see `offsets`."""
        return self._tensor("token_ids")

    @property
    def log_likelihoods(self) -> Tensor:
        """The log-likelihood of each token given those before it, [all tokens]; NaN for the first of a text.

        Raises:
            ArtifactError: The run computed none.
        """
        if not self.info["score"]:
            raise ArtifactError(f"{self.path} has no log-likelihoods. Run the model again with --score (score=True).")
        return self._tensor("log_likelihoods")

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood over all tokens but the first of each text.

        Raises:
            ArtifactError: The run computed no log-likelihoods.
        """
        values = self.log_likelihoods
        return float(values[~values.isnan()].double().mean().neg().exp())

    def texts(self) -> list[dict[str, Any]]:
        """The texts, with their number of tokens and, after a run with scores, their log-likelihood."""
        with (self.path / TEXTS_FILE).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self.path / STATES_FILE, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def is_states(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder's run.json is that of hidden states."""
    content = read_object(Path(expand_home(folder)) / RUN_FILE)
    return content.get("kind") == _KIND and isinstance(content.get("layers"), list)


def describe_run(**values: Any) -> dict[str, Any]:
    """The content of run.json."""
    return {"kind": _KIND, **values}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of an element type, such as `float32`."""
    return str(dtype).removeprefix("torch.")
