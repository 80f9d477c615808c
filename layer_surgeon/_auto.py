"""Make transformers' Auto classes know our models, without importing transformers.

`import layer_surgeon` must stay light, so the classes are registered once transformers' Auto classes are imported. A
finder at the front of `sys.meta_path` counts the modules of the two packages that are being imported; whenever none is
left half-imported, and the Auto classes are there, it registers ours, and takes itself out. Not right after the Auto
module: that one is often imported by a module (of transformers, or of ours) that our classes need whole.
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
_PACKAGES = ("transformers.", "layer_surgeon.")


class _Watcher(MetaPathFinder):
    """Finds nothing itself; sees what the finders after it find."""

    def __init__(self) -> None:
        self.half_imported = 0
        self.looking_for: set[str] = set()
        self.to_do = {_CONFIGS: _register_configs, _MODELS: _register_models}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Have the module tell when it has been imported."""
        if not fullname.startswith(_PACKAGES) or fullname in self.looking_for:
            return None
        self.looking_for.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self.looking_for.discard(fullname)
        if spec is not None and spec.loader is not None:
            # On the loader itself, whose type allows no such thing, so that it stays of its own class: resources and
            # sources are read through it.
            spec.loader.exec_module = partial(self.exec_module, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def exec_module(self, execute: Any, module: ModuleType) -> None:
        """Import a module, and act if it was the outermost."""
        self.half_imported += 1
        try:
            execute(module)
        finally:
            self.half_imported -= 1
        self.act(module.__name__)

    def act(self, outermost: str | None = None) -> None:
        """Register what can be registered by now; `outermost` is whole, though Python doesn't say so yet."""
        if self.half_imported:
            return
        self.half_imported += 1  # what we import now is not the outermost
        try:
            for name in [name for name in self.to_do if name == outermost or _is_imported(name)]:
                self.to_do.pop(name)()
        finally:
            self.half_imported -= 1
        if not self.to_do and self in sys.meta_path:
            sys.meta_path.remove(self)


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _register_configs() -> None:
    auto = import_module(_CONFIGS)
    for room, name in (("donor.config", "SurgeonDonorConfig"), ("graft.configuration", "SurgeonGraftConfig")):
        config = getattr(import_module(f"layer_surgeon.{room}"), name)
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    auto = import_module(_MODELS)
    donor = import_module("layer_surgeon.donor")
    graft_config, graft_classes = import_module("layer_surgeon.graft").AUTO_CLASSES
    auto.AutoModel.register(donor.SurgeonDonorConfig, donor.DonorLayer, exist_ok=True)
    for name, model in graft_classes.items():
        getattr(auto, name).register(graft_config, model, exist_ok=True)


def install() -> None:
    """Register our classes now if transformers' Auto classes are imported, or as soon as they are."""
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.act()
