"""The committed evidence: one JSON file for each study of docs/results/plans, made from the folders of the studies.

docs/results/evidence/<study>.json:

    format      1
    study       its name
    command     repeats it, in a folder whose data/ holds the data sets
    machines    on which it was collected, as `benchmarks.machine` tells them
    versions    by package, of all trainings
    plan        every default filled in (`StudyPlan.as_dict`)
    cells       one line for each finished training, in the order of their ids: what cells/<id>.json has (see
                `layer_surgeon.study.layout`), without what the plan says; `correct` is "1821:fab3...", the number of
                examples and their ones and zeros as a hexadecimal number

docs/results/evidence/select-<name>.json: format, study, plan (of its last round) and selection.json of a
`surgeon select`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, machine
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.layout import SELECTION, StudyFolder, read_json, write_json, write_text
from layer_surgeon.study.plan import StudyPlan, read_yaml

FORMAT = 1
RESULTS = ROOT / "docs" / "results"
PLANS, EVIDENCE = RESULTS / "plans", RESULTS / "evidence"
SELECT = "select-"
# Of a cell: what the plan says too, or every cell alike.
_LEFT_OUT = ("format", "host", "donor", "config", "versions", "log")
# Of a machine: what says nothing of trainings that are over.
_OF_THE_HOUR = ("date", "load_before")
_DIGITS = 6


def plans(folder: Path = PLANS) -> dict[str, StudyPlan]:
    """The planned studies, by name."""
    return {path.stem: StudyPlan.from_dict(read_yaml(path)) for path in sorted(folder.glob("*.yaml"))}


def collect(work: Path, output: Path = EVIDENCE, planned: Mapping[str, StudyPlan] | None = None) -> list[str]:
    """Write what is finished into the evidence; what was there before stays.

    Args:
        work: Holds the studies' folders, each called as its plan.
        output: The evidence's folder.
        planned: The studies; those of docs/results/plans.

    Returns:
        A line for each study that was found.

    Raises:
        ConfigError: A file of the evidence is of another study.
        WorkspaceError: A cell can't be read.
    """
    told = []
    for name, plan in (plans() if planned is None else planned).items():
        if (work / name).is_dir():
            told.append(_collect_study(name, plan, StudyFolder(root=work / name), output / f"{name}.json"))
    for path in sorted(work.glob(f"{SELECT}*/{SELECTION}")):
        plan = StudyPlan.read(StudyFolder(root=path.parent).plan)
        found = {key: value for key, value in read_json(path).items() if key != "path"}
        content = {"format": FORMAT, "study": path.parent.name, "plan": plan.as_dict(), "selection": found}
        write_json(output / f"{path.parent.name}.json", content)
        told.append(f"{path.parent.name}: {found['best']}")
    return told


def _collect_study(name: str, plan: StudyPlan, folder: StudyFolder, path: Path) -> str:
    before: dict[str, Any] = read_json(path) if path.is_file() else {}
    if before.get("study", name) != name:
        raise ConfigError(f"{path} is of the study {before['study']}. Move it away.")
    ids = {cell.id for cell in plan.cells()}
    results = [read_json(folder.result(key)) for key in sorted(ids) if folder.result(key).exists()]
    known = {cell["id"]: cell for cell in before.get("cells", []) if cell["id"] in ids}
    # A cell that was collected stays as it is: a folder that was begun anew adds, and replaces nothing.
    added = {result["id"]: pack(result) for result in results if result["id"] not in known}
    if not known and not added:
        return f"{name}: nothing is finished"
    cells = [cell for _, cell in sorted({**known, **added}.items())]
    here = {key: value for key, value in machine().items() if key not in _OF_THE_HOUR}
    machines = [*before.get("machines", [])]
    if added and here not in machines:
        machines.append(here)
    content = {
        "format": FORMAT,
        "study": name,
        "command": f"surgeon compare --config docs/results/plans/{name}.yaml --output {name} --workers 2",
        "machines": machines,
        "versions": _versions(results, before.get("versions", {})),
        "plan": plan.as_dict(),
    }
    _write(path, content, cells)
    return f"{name}: {len(cells)} of {len(ids)} trainings, {len(added)} of them new"


def _versions(results: Sequence[Mapping[str, Any]], before: Mapping[str, str]) -> dict[str, str]:
    found = {name: set(text.split(", ")) for name, text in before.items()}
    for result in results:
        for name, version in result["versions"].items():
            found.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}


def _write(path: Path, content: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
    """JSON with a line for each cell: a study that has grown is then a change of the lines that are new."""
    head = json.dumps(content, ensure_ascii=False, indent=1).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(cell, ensure_ascii=False, sort_keys=True) for cell in cells)
    write_text(path, f'{head},\n "cells": [\n{lines}\n ]\n}}\n')


def pack(result: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of a study's folder as the evidence has it."""
    tests = {name: {**test, "correct": pack_bits(test["correct"])} for name, test in result["tests"].items()}
    history = [
        {key: round(value, _DIGITS) if isinstance(value, float) else value for key, value in epoch.items()}
        for epoch in result["history"]
    ]
    kept = {key: value for key, value in result.items() if key not in _LEFT_OUT}
    return kept | {"tests": tests, "history": history}


def unpack(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of the evidence as `summarize` reads it."""
    tests = {name: {**test, "correct": unpack_bits(test["correct"])} for name, test in cell["tests"].items()}
    left_out = {"host": "", "donor": None, "config": {}, "versions": {}}
    return {"format": FORMAT, **left_out, **cell, "tests": tests}


def pack_bits(bits: str | None) -> str | None:
    """`101` -> `3:5`."""
    return None if bits is None else f"{len(bits)}:{int(bits, 2):0{-(-len(bits) // 4)}x}"


def unpack_bits(text: str | None) -> str | None:
    """`3:5` -> `101`."""
    if text is None:
        return None
    count, _, digits = text.partition(":")
    return f"{int(digits, 16):0{int(count)}b}"
