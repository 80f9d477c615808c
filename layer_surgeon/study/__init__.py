"""COMPARE: arms x seeds x data -> a typed summary.

A study:
arms, data          the models and data sets that a plan names; lora_settings: checks those of an arm
plan, plan_parts    YAML -> `StudyPlan` -> cells (one training each)
preset, demo        the plans for the paper's tables and figures, and for the demo; see `surgeon demo`
layout              the study's folder and its files
prepare             everything that all cells share, made once: data, hosts, layers, synthetic texts
donor_layers        the donors' layers, extracted once
local_models        notices that a local host or layer has changed since the first training
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
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
