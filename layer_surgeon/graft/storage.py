"""Saving and loading a grafted model: its own weights, and the frozen donor layer next to them."""

import os
from pathlib import Path
from typing import Any, Self

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel

from layer_surgeon._folders import expand_home
from layer_surgeon._io import usual_modes
from layer_surgeon._loading import check_weights
from layer_surgeon._model_types import DONOR_FOLDER
from layer_surgeon.donor.frozen import HUB_ARGUMENTS
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.devices import place_donor, plan_devices
from layer_surgeon.graft.donor_loading import Donor, DonorInput, open_donor
from layer_surgeon.graft.donor_store import find_stored_donor, store_donor
from layer_surgeon.graft.files import check_donor_place
from layer_surgeon.graft.graft_facts import write_card
from layer_surgeon.graft.model_config import SurgeonGraftConfig, open_graft_config
from layer_surgeon.graft.translate import config_errors, hub_errors
from layer_surgeon.hub.push import push_model, upload
from layer_surgeon.tasks import get_task

# Keyword arguments of save_pretrained that are only used for uploads.
_PUSH_KEYWORDS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr")


class StoredModel(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped here
    """What `GraftedModel` is as files: `save_pretrained`, `from_pretrained` and `push_to_hub`.

    model.safetensors has all weights that are trained. A frozen donor layer is not one of them: it is stored as the
    layer artifact that it was, in donor/, and attached after the other weights are loaded.
    """

    config_class = SurgeonGraftConfig

    donor: Donor | None
    _donor_folder: Path | None = None

    def attach_donor(self, donor: Donor, *, folder: Path | None = None) -> Self:
        """Set the donor layer.

        Args:
            donor: The layer; it is frozen unless train_donor is set.
            folder: The layer artifact that holds exactly these weights, if there is one.

        Raises:
            GraftError: The layer's width doesn't match the projections, or there are no projections.
        """
        if self.config.donor is None:
            raise GraftError(
                "This model is a host alone, without projections, so a donor layer can't be attached. Make a graft "
                "with a donor instead."
            )
        width = self.config.donor["hidden_size"]
        if donor.hidden_size != width:
            raise GraftError(
                f"The donor layer is {donor.hidden_size} wide, but the projections expect {width}. Use the layer that "
                "the graft was made with, or make a new graft."
            )
        if self.config.settings.train_donor:
            donor.unfreeze()
        else:
            donor.freeze()
            # Frozen weights go neither into training checkpoints nor into the trained weights. Trainer reads this too.
            self._keys_to_ignore_on_save = {f"donor.{key}" for key in donor.state_dict()}
        self.donor = donor
        self._donor_folder = folder
        return self

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        donor: DonorInput = None,
        **kwargs: Any,
    ) -> Any:
        """Load a grafted model from a folder or a Hub repo, with the arguments of any transformers model.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` wrote, or a repo id.
            model_args: Passed to transformers.
            donor: The donor layer, if the graft was saved without it: a folder, a repo id, a `LayerArtifact` or a
                `DonorLayer`. Default: the graft's own donor layer, or one with the same sha256 in the workspace.
            kwargs: Passed to transformers. `dtype` applies to host, projections and head; the donor layer keeps its
                `donor_dtype`. `attn_implementation` applies to the host; for the donor, call
                `model.donor.set_attn_implementation` afterwards.

        Returns:
            A model of the task's class, in eval mode.

        Raises:
            GraftError: The donor layer was not found, or differs from the one that the graft was made with.
            SourceError: A repo can't be read.
        """
        pretrained_model_name_or_path = expand_home(pretrained_model_name_or_path)
        hub_settings = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = open_graft_config(kwargs.get("config"), pretrained_model_name_or_path, hub_settings)
        task_class = cls._class_for(config.task)
        if task_class is not cls:
            return task_class.from_pretrained(pretrained_model_name_or_path, *model_args, donor=donor, **kwargs)
        frozen_donor, donor_device = config.frozen_donor, None
        arguments = [name for name in kwargs if name not in ("config", *HUB_ARGUMENTS)]
        if donor is not None and frozen_donor is None:
            problem = (
                "this graft has none"
                if config.donor is None
                else "this graft's donor layer was trained too and is in the graft's own weights"
            )
            raise GraftError(f"You passed a donor layer, but {problem}. Load the graft without donor=...")
        if frozen_donor is not None:
            kwargs, donor_device = plan_devices(cls, config, {**kwargs, "with_donor": False})
        subject = f"The graft {pretrained_model_name_or_path!r}"
        with config_errors(subject, arguments), hub_errors(subject):
            check_weights(
                pretrained_model_name_or_path, **{**hub_settings, "subfolder": hub_settings.get("subfolder") or ""}
            )
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if frozen_donor is not None:
            if donor is None:
                donor = find_stored_donor(frozen_donor, pretrained_model_name_or_path, **hub_settings)
            opened = open_donor(donor, config.settings, token=hub_settings.get("token"), expected=frozen_donor)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.attach_donor(opened.layer, folder=opened.folder)
            place_donor(model, donor_device)
        return loaded

    @classmethod
    def _from_config(cls, config: SurgeonGraftConfig, **kwargs: Any) -> Any:
        task_class = cls._class_for(config.task)
        if task_class is not cls:
            return task_class._from_config(config, **kwargs)
        return super()._from_config(config, **kwargs)

    @classmethod
    def _class_for(cls, task: str) -> Any:
        """Return the class for a task: this class if it is for that task, else the one that the task's record names."""
        task_class = get_task(task).load_model_class()
        if issubclass(cls, task_class):
            return cls
        if not issubclass(task_class, cls):
            raise GraftError(
                f"{cls.__name__} can't load a graft whose task is {task!r}. Use {task_class.__name__} or GraftedModel."
            )
        return task_class

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, include_donor: bool = True, **kwargs: Any
    ) -> None:
        """Save config.json, model.safetensors (the trained weights), donor/ and, if there is none yet, README.md.

        Args:
            save_directory: The folder; created if it is missing.
            args: As in transformers.
            include_donor: Store the frozen donor layer too, as a hard link if it is on the same disk. Without it,
                loading looks for the layer by its sha256 in the workspace, unless you pass donor=...
            kwargs: As in transformers. push_to_hub=True also uploads the folder, with repo_id, private, token,
                revision and commit_message.
        """
        folder = Path(save_directory)
        is_main_process = kwargs.get("is_main_process", True)
        push = kwargs.pop("push_to_hub", False) and is_main_process
        push_settings = {name: kwargs.pop(name) for name in _PUSH_KEYWORDS if push and name in kwargs}
        if self.donor is not None and self.config.frozen_donor is not None and is_main_process:
            if include_donor:
                check_donor_place(folder / DONOR_FOLDER)
                target, known_sha256 = folder / DONOR_FOLDER, self.config.donor.get("sha256")
                stored_folder, sha256 = store_donor(self.donor, self._donor_folder, target, known_sha256)
                self._donor_folder = self._donor_folder or stored_folder
                self.config.donor = {**self.config.donor, "sha256": sha256}
            # Earlier versions stored the layer's path on this machine.
            self.config.donor = {key: value for key, value in self.config.donor.items() if key != "path"}
        super().save_pretrained(save_directory, *args, **kwargs)
        if not is_main_process:
            return
        usual_modes(folder)
        if include_donor and not (folder / "README.md").exists():
            write_card(self.config, self.parameter_counts(), folder)
        if push:
            repo_id = push_settings.pop("repo_id", folder.name)
            message = push_settings.pop("commit_message", None)
            upload(folder, repo_id, ignored=self._not_uploaded(include_donor), message=message, **push_settings)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Save and upload the model with its donor layer and model card; the arguments are those of transformers."""
        return push_model(self, repo_id, ignored=self._not_uploaded(True), **kwargs)

    def _not_uploaded(self, include_donor: bool) -> list[str]:
        """Return patterns of files that are not uploaded, and that an earlier upload must not leave in the repo."""
        return [] if include_donor and self.config.frozen_donor is not None else [f"{DONOR_FOLDER}/*"]
