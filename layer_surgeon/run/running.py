"""`run_layers`: hidden states of texts at several depths of a model that need not fit into memory."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig

from layer_surgeon._io import write_text
from layer_surgeon._version import __version__
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.sources import FolderSource
from layer_surgeon.donor.checkpoint_names import checkpoint_names
from layer_surgeon.donor.entrance import DonorEntrance, EntrancePlan, plan_entrance
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import SourceNotFoundError
from layer_surgeon.extract import plan_extraction
from layer_surgeon.extract.memory import read_tensors
from layer_surgeon.extract.plan import plan_rows, plan_tensors
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.run.batches import Batch, make_batches
from layer_surgeon.run.fetching import ByteCounter, LayerFetcher, plain_config, read_plan, torch_dtype
from layer_surgeon.run.run_folder import RunFolder
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.state_files import STATES_FILE, DepthFiles, KeptStates, as_bytes
from layer_surgeon.run.states import TEXTS_FILE, HiddenStates, describe_run, dtype_name
from layer_surgeon.run.text_list import TextList, TextsLike, read_texts
from layer_surgeon.run.tokenizing import TokenizedTexts, load_checkpoint_tokenizer, tokenize_texts
from layer_surgeon.run.walk import LayerObserver, TokenBatches, Walk, needed_tokens, walk_layers
from layer_surgeon.workspace import Workspace, short_name

SourceLike = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Checkpoint
