"""COMPARE: arms x seeds x data -> a typed summary.

A study:
arms, data          the models and data sets that a plan names
plan, plan_parts    YAML -> `StudyPlan` -> cells (one training each); checked: type checks for their fields
preset              the plans for the paper's tables and figures
layout              the study's folder and its files
prepare, hosts      everything that all cells share, made once: data, hosts, layers, synthetic texts
synthesize          writes the synthetic texts; synthesis_config: its settings
models, controls    arm -> a model that can be trained
cells, testing      one training in its own process, and its tests
executors           start the processes
preload_server      the process that they are forked from; preload_client: the study's side of it
compare             `run_study`: runs all steps in order
estimate            how long a study will take; rehearsal: the temporary folder for that
tables              the typed summary: rows and comparisons, one table per test set
records             reads and writes the JSON files of a study (cells, summary, selection) as typed values
paired, summary     cells -> tables: is one arm better? verdict: the same in words
sweep, select       which layer, pair or site is best? Train all, or find it at a fraction of that cost
probe               rates a layer without training; selection_result: the typed result of `select`

The demo:
demo                a real layer in a real host, next to the host alone; see `surgeon demo`
results             the typed result, with verdicts
statistics          confidence intervals for a share and for the difference of two shares
page                the HTML page
charts              its charts, as SVG
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.study.demo import DemoParts, run_demo
    from layer_surgeon.study.results import DemoResult

# Lazy, so that `statistics` can be imported without torch.
_HOME = {"demo": ("DemoParts", "run_demo"), "results": ("DemoResult",)}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["DemoParts", "DemoResult", "run_demo"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.study' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.study.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
