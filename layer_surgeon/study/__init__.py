"""COMPARE: arms x seeds x data -> tables and reports.

demo        the real layer in the real host beside the host alone; see `surgeon demo`
results     what it comes to, and what may be said of it
statistics  how sure a measured share, or a difference of two, is
page        the HTML page
charts      its pictures, as SVG
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.study.demo import DemoParts, run_demo
    from layer_surgeon.study.results import DemoResult

# Lazy, so that statistics can be had without torch.
_HOME = {"demo": ("DemoParts", "run_demo"), "results": ("DemoResult",)}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["DemoParts", "DemoResult", "run_demo"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.study' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.study.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
