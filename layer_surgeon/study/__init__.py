"""COMPARE: arms x seeds x data -> a typed summary.

A study:
arms, data          what is compared, and on what: as the plan names them
plan, preset        YAML -> `StudyPlan` -> cells (one training each); the paper's tables and figures
layout              the study's folder and its files, which is all that shows a study
prepare, hosts       what all cells share, made once: data, hosts, layers, texts that a model writes (synthesize;
                    synthesis_config: how)
models, controls    from an arm to a model that can be trained
cells, testing      one training in a process of its own, and its tests; executors: who runs the processes
preload, preloaded  the process that these are forked from, and how the study speaks to it
compare             `run_study`: the order of all that; estimate: how long it will take
tables              the typed summary: rows and comparisons, one table per test set
records             the JSON files of a study (cells, summary, selection), read and written as typed values
paired, summary     is one arm better? From cells to tables; verdict: the same in words
sweep, select       which layer, pair or site: by all of them, or at a fraction of that; probe: without training;
                    selection: what came out

The demo:
demo                the real layer in the real host, and the host alone; see `surgeon demo`
results             what it comes to, and what may be said of it
statistics          how sure a measured share, or a difference of two, is
page                the HTML page
charts              its pictures, as SVG
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
