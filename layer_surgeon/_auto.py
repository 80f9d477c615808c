"""Register our models with transformers' Auto classes, without importing transformers.

`import layer_surgeon` must stay fast, so our classes are only registered once transformers' Auto classes are imported.
A finder at the front of `sys.meta_path` counts how many modules of the two packages are being imported. When that
number is zero and the Auto classes are imported, the finder registers our classes and removes itself. Registering
earlier, right after the Auto module, would fail: the module that imports it (of transformers, or ours) is often one
that our classes need, and is not fully imported yet.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"
_TOKENIZERS = "transformers.models.auto.tokenization_auto"
_PACKAGES = ("transformers.", "layer_surgeon.")


class _Watcher(MetaPathFinder):
    """Finds modules with the other finders, and watches their import."""

    def __init__(self) -> None:
        self.importing = 0
        self.being_found: set[str] = set()
        self.pending = {
            _CONFIGS: _register_configs,
            _MODELS: _register_models,
            _TOKENIZERS: _register_tokenizers,
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the two packages, and wrap its execution in `exec_module`."""
        if not fullname.startswith(_PACKAGES) or fullname in self.being_found:
            return None
        self.being_found.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self.being_found.discard(fullname)
        if spec is not None and spec.loader is not None:
            # Patch the loader instead of wrapping it: resources and sources are read through it, so it must keep its
            # class.
            spec.loader.exec_module = partial(self.exec_module, spec.loader.exec_module)  # type: ignore[method-assign]  # on purpose
        return spec

    def exec_module(self, execute: Any, module: ModuleType) -> None:
        """Execute a module, and register our classes if it was the outermost import."""
        self.importing += 1
        try:
            execute(module)
        finally:
            self.importing -= 1
        self.register(module.__name__)

    def register(self, outermost: str | None = None) -> None:
        """Register all classes that can be registered now, unless an import is in progress.

        Args:
            outermost: A module that has just been executed. Python still marks it as being imported.
        """
        if self.importing:
            return
        self.importing += 1  # the imports below must not call this again
        try:
            # Registering classes may import another of the modules.
            while names := [name for name in self.pending if name == outermost or _is_imported(name)]:
                self.pending.pop(names[0])()
        finally:
            self.importing -= 1
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _register_configs() -> None:
    auto = import_module(_CONFIGS)
    for room, name in (("donor.config", "SurgeonDonorConfig"), ("graft.model_config", "SurgeonGraftConfig")):
        config = getattr(import_module(f"layer_surgeon.{room}"), name)
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    auto = import_module(_MODELS)
    donor, graft = import_module("layer_surgeon.donor"), import_module("layer_surgeon.graft")
    # Of several classes, AutoModel takes the one in the config's architectures.
    auto.AutoModel.register(donor.SurgeonDonorConfig, (donor.DonorLayer, donor.DonorStack), exist_ok=True)
    # If several tasks have the same Auto class, the first task gets it.
    for task in reversed(list(import_module("layer_surgeon.tasks").TASKS.values())):
        getattr(auto, task.auto).register(graft.SurgeonGraftConfig, task.load_model_class(), exist_ok=True)
    # AutoModel loads all tasks: GraftedModel.from_pretrained chooses the class by the config's task.
    auto.AutoModel.register(graft.SurgeonGraftConfig, graft.GraftedModel, exist_ok=True)


def _register_tokenizers() -> None:
    auto = import_module(_TOKENIZERS)
    config = import_module("layer_surgeon.graft.model_config").SurgeonGraftConfig
    # Grafts with another tokenizer name its class in their files, and that name takes precedence.
    tokenizer_class = import_module("layer_surgeon.graft.graft_tokenizer").GraftTokenizer
    auto.AutoTokenizer.register(config, tokenizer_class, exist_ok=True)


def install() -> None:
    """Register our classes now if transformers' Auto classes are already imported, otherwise as soon as they are."""
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.register()
