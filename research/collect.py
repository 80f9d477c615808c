"""Write the committed evidence: one JSON file for each study of research/plans, made from the folders of the studies.

    python -m research.collect WORK              WORK holds the studies' folders, each named after its plan
    python -m research.collect WORK --reading    the same for research/reading

research/evidence/<study>.json:

    format      1
    study       its name
    command     repeats it, in a folder whose data/ holds the data sets
    machines    where it was collected, as `benchmarks.machine` describes them
    versions    by package, of all trainings
    plan        with every default filled in (`StudyPlan.as_dict`)
    cells       one line for each finished training, sorted by id: what cells/<id>.json has (see
                `layer_surgeon.study.layout`), without what the plan has; `correct` is "1821:fab3...", the number of
                examples and their ones and zeros as a hexadecimal number

research/evidence/select-<name>.json: format, study, plan (of its last round) and selection.json of a `surgeon select`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, say
from layer_surgeon._io import write_json, write_text
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.layout import SELECTION, StudyFolder, read_json
from layer_surgeon.study.plan import StudyPlan
from research.evidence import READING, RESEARCH, SELECT, load_plans

FORMAT = 1
# Parts of a training that the plan has too, or that are the same in all of them.
_LEFT_OUT = ("format", "host", "donor", "config", "versions", "log")
# Parts of a machine's description that say nothing about trainings that are over.
_MOMENTARY = ("date", "load_before")
_DIGITS = 6


def collect(work: Path, campaign: Path = RESEARCH) -> list[str]:
    """Add what is finished to the evidence; what was there before stays.

    Args:
        work: The folder of the studies' folders, each named after its plan.
        campaign: The folder with plans/ and evidence/.

    Returns:
        A line for each study that has a folder.

    Raises:
        ConfigError: A file of the evidence belongs to another study.
        WorkspaceError: A cell can't be read.
    """
    lines = []
    output = campaign / "evidence"
    for name, plan in load_plans(campaign / "plans").items():
        if (work / name).is_dir():
            plans = "research/reading/plans" if campaign == READING else "research/plans"
            command = f"surgeon compare --config {plans}/{name}.yaml --output {name} --workers 2"
            lines.append(_collect_study(name, plan, StudyFolder(root=work / name), output / f"{name}.json", command))
    for path in sorted(work.glob(f"{SELECT}*/{SELECTION}")):
        plan = StudyPlan.read(StudyFolder(root=path.parent).plan)
        selection = {key: value for key, value in read_json(path).items() if key != "path"}
        content = {"format": FORMAT, "study": path.parent.name, "plan": plan.as_dict(), "selection": selection}
        write_json(output / f"{path.parent.name}.json", content, indent=1)
        lines.append(f"{path.parent.name}: {selection['best']}")
    return lines


def _collect_study(name: str, plan: StudyPlan, folder: StudyFolder, path: Path, command: str) -> str:
    before: dict[str, Any] = read_json(path) if path.is_file() else {}
    if before.get("study", name) != name:
        raise ConfigError(f"{path} belongs to the study {before['study']}. Move it away.")
    ids = {cell.id for cell in plan.cells()}
    results = [read_json(folder.result(key)) for key in sorted(ids) if folder.result(key).exists()]
    known = {cell["id"]: cell for cell in before.get("cells", []) if cell["id"] in ids}
    # A collected training stays as it is: a folder that was started again adds trainings, and replaces none.
    added = {result["id"]: pack(result) for result in results if result["id"] not in known}
    if not known and not added:
        return f"{name}: nothing is finished"
    cells = [cell for _, cell in sorted({**known, **added}.items())]
    this_machine = {key: value for key, value in machine().items() if key not in _MOMENTARY}
    machines = [*before.get("machines", [])]
    if added and this_machine not in machines:
        machines.append(this_machine)
    content = {
        "format": FORMAT,
        "study": name,
        "command": command,
        "machines": machines,
        "versions": _versions(results, before.get("versions", {})),
        "plan": plan.as_dict(),
    }
    _write(path, content, cells)
    return f"{name}: {len(cells)} of {len(ids)} trainings, {len(added)} of them new"


def _versions(results: Sequence[Mapping[str, Any]], before: Mapping[str, str]) -> dict[str, str]:
    by_package = {name: set(text.split(", ")) for name, text in before.items()}
    for result in results:
        for name, version in result["versions"].items():
            by_package.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(by_package.items())}


def _write(path: Path, content: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
    """JSON with one line for each training: the diff of a study that has grown shows the new lines alone."""
    head = json.dumps(content, ensure_ascii=False, indent=1).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(cell, ensure_ascii=False, sort_keys=True) for cell in cells)
    write_text(path, f'{head},\n "cells": [\n{lines}\n ]\n}}\n')


def pack(result: Mapping[str, Any]) -> dict[str, Any]:
    """A training of a study's folder in the form that the evidence has."""
    tests = {name: {**test, "correct": pack_bits(test["correct"])} for name, test in result["tests"].items()}
    history = [
        {key: round(value, _DIGITS) if isinstance(value, float) else value for key, value in epoch.items()}
        for epoch in result["history"]
    ]
    kept = {key: value for key, value in result.items() if key not in _LEFT_OUT}
    return kept | {"tests": tests, "history": history}


def pack_bits(bits: str | None) -> str | None:
    """`101` -> `3:5`; `research.evidence.unpack_bits` is the way back."""
    return None if bits is None else f"{len(bits)}:{int(bits, 2):0{-(-len(bits) // 4)}x}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--reading", action="store_const", const=READING, default=RESEARCH, dest="campaign")
    for line in collect(**vars(parser.parse_args())):
        say(line)
