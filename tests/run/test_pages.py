"""The numbers on the pages about measures and comparisons are those of the committed results, and fit together."""

import json
import re
import statistics
from pathlib import Path

import pytest

from layer_surgeon.run.measures import format_layers

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "research" / "measured" / "dropping.json"


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())["models"]["gemma-3-270m"]


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "measure.md").read_text()


def test_the_table_of_measures_gives_the_suggested_layers(page, results):
    rows = re.findall(r"^ +(\d+) +([\d.]+) +[\d.]+ +[\d.]+ ", page, re.MULTILINE)
    influences = {int(layer): float(influence) for layer, influence in rows}
    assert list(influences) == list(range(18))
    for layer, influence in enumerate(results["choices"]["block_influence"]):
        assert influences[layer] == pytest.approx(influence, rel=1e-3)
    for count, layers in results["choices"]["influence"].items():
        assert sorted(sorted(influences, key=influences.__getitem__)[: int(count)]) == layers
    command = f"--drop {format_layers(results['choices']['influence']['4'])}"
    assert f"surgeon assemble packaged:gemma-3-270m {command}" in page


def test_the_tables_of_perplexities_are_those_of_the_results():
    text = (ROOT / "research" / "dropping.md").read_text()
    for results in json.loads(RESULTS.read_text())["models"].values():
        values = {(entry["arm"], entry["count"]): entry["perplexity"] for entry in results["perplexity"]}
        assert f"the whole model has {values['none', 0]:.1f}." in text
        for count in (2, 4, 6):
            draws = sorted(values[f"random-{draw}", count] for draw in range(10))
            median = statistics.median(draws)
            span = f"{median:{',.1f' if median < 1e5 else '.2g'}} ({draws[0]:.1f} to {draws[-1]:.2g})"
            chosen = " | ".join(f"{values[arm, count]:,.1f}" for arm in ("influence", "block", "last"))
            assert f"| {count} | {chosen} | {span} |" in text
