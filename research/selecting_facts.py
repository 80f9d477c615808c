"""What `benchmarks.selecting` measured: from the folders of its sweeps and selections to figures and pictures."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import f_oneway, spearmanr

from benchmarks.selecting_plan import DATA, LAYERS, ROWS, SEEDS, SELECTIONS, SETTINGS, plan
from layer_surgeon.study.layout import SELECTION, StudyFolder, read_json

ASSETS = Path("docs/assets")
BLUE, ORANGE, GREY = "#2b6cb0", "#ed8936", "#718096"


def measure(work: Path) -> dict[str, Any]:
    """All that the documentation says, by data set."""
    facts = {}
    for data in DATA:
        layers, host = read_sweep(work, data)
        means = [statistics.fmean(layer["test"]) for layer in layers]
        best = max(LAYERS, key=means.__getitem__)
        pooled = statistics.fmean(statistics.variance(layer["test"]) for layer in layers) ** 0.5
        own = statistics.stdev(layers[best]["test"])
        read = [read_selection(work / f"select-{data}-{number}", means) for number in range(SELECTIONS)]
        found = [selection for selection in read if selection is not None]
        probes = [[one["rungs"][0]["scores"][str(layer)] for layer in LAYERS] for one in found]
        mean_probe = [statistics.fmean(scores) for scores in zip(*probes, strict=True)]
        ways = {
            "select": [one["layer"] for one in found],
            "probe alone": [max(LAYERS, key=scores.__getitem__) for scores in probes],
            "last layer": [LAYERS[-1]],
            "any layer": list(LAYERS),
        }
        facts[data] = {
            "layers": layers,
            "host": host,
            "best": best,
            "deviation_of_best": own,
            "pooled_deviation": pooled,
            "layers_differ_p": float(f_oneway(*(layer["test"] for layer in layers)).pvalue),
            "spearman_of_seeds": spearman_of_seeds(layers),
            "spearman_of_mean_probe": float(spearmanr(mean_probe, means).statistic),
            "ways": {name: judge(choices, means, own, pooled) for name, choices in ways.items()}
            | {"one seed of all": one_seed(layers)},
            "selections": found,
        }
    return {"format": 1, "seeds": list(SEEDS), "rows": ROWS, "settings": SETTINGS, "data": facts}


def spearman_of_seeds(layers: Sequence[dict[str, list[float]]]) -> list[float]:
    """How far two seeds of the sweep agree on the order of the layers: more than that can't be asked of a selection."""
    pairs = combinations(range(len(SEEDS)), 2)
    return [
        float(spearmanr([layer["test"][one] for layer in layers], [layer["test"][two] for layer in layers]).statistic)
        for one, two in pairs
    ]


def read_sweep(work: Path, data: str) -> tuple[list[dict[str, list[float]]], list[float]]:
    """Test and validation accuracy of each layer, and test accuracy of the host alone, by seed."""
    folder = StudyFolder(root=work / f"sweep-{data}")
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in plan(work, data, SEEDS).cells():
        scores[cell.arm.name].append(read_json(folder.result(cell.id)))
    by_arm = {
        name: {
            "test": [cell["tests"][data]["scores"]["accuracy"] for cell in cells],
            "validation": [cell["validation"]["scores"]["accuracy"] for cell in cells],
        }
        for name, cells in scores.items()
    }
    return [by_arm[f"graft+gemma-3-270m-L{layer}"] for layer in LAYERS], by_arm["host"]["test"]


def read_selection(folder: Path, means: Sequence[float]) -> dict[str, Any] | None:
    """What one selection chose, what it cost, and how far each rung agreed with the sweep; None: it is not there."""
    if not (folder / SELECTION).is_file():
        return None
    found = json.loads((folder / SELECTION).read_text(encoding="utf-8"))
    rungs = []
    for rung in found["rungs"]:
        layers = {int(name.rpartition("-L")[2]): score for name, score in rung["scores"].items()}
        order = [means[layer] for layer in layers]
        agreement = float(spearmanr(list(layers.values()), order).statistic) if len(layers) > 2 else None
        rungs.append(
            {
                "scores": {str(layer): score for layer, score in sorted(layers.items())},
                "kept": [int(name.rpartition("-L")[2]) for name in rung["kept"]],
                "spearman": agreement,
            }
        )
    return {
        "layer": found["layers"][0],
        "cost": found["cost"],
        # Not in seconds: those of a machine with other work say nothing.
        "trainings": trainings(found["rungs"]),
        "margin": found["margin"],
        "rungs": rungs,
    }


def trainings(rungs: Sequence[dict[str, Any]]) -> int:
    """How many trainings of candidates a selection began; the last rung takes over those of the one before."""
    quarter, one, last = (len(rung["scores"]) for rung in rungs[1:])
    return quarter + one + last * (len(SEEDS) - 1)


def judge(choices: Sequence[int], means: Sequence[float], own: float, pooled: float) -> dict[str, float]:
    """How good choices are: how often within a standard deviation of the best, and what is lost on average."""
    lost = [max(means) - means[layer] for layer in choices]
    return {
        "choices": len(lost),
        "within_deviation_of_best": sum(loss <= own for loss in lost) / len(lost),
        "within_pooled_deviation": sum(loss <= pooled for loss in lost) / len(lost),
        "lost": statistics.fmean(lost),
    }


def one_seed(layers: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """The best of one seed's trainings by validation, judged by the test accuracy of the others: a third of a sweep."""
    results = []
    for seed in range(len(SEEDS)):
        others = [[score for at, score in enumerate(layer["test"]) if at != seed] for layer in layers]
        means = [statistics.fmean(scores) for scores in others]
        choice = max(LAYERS, key=lambda layer: layers[layer]["validation"][seed])
        pooled = statistics.fmean(statistics.variance(scores) for scores in others) ** 0.5
        results.append(judge([choice], means, statistics.stdev(others[means.index(max(means))]), pooled))
    return {name: statistics.fmean(result[name] for result in results) for name in results[0]} | {"choices": len(SEEDS)}


def draw(facts: dict[str, Any]) -> None:
    """The sweeps with what was chosen, and the probe against them."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    for axis, (name, data) in zip(figure.subplots(2, 1), facts["data"].items(), strict=True):
        scores = [[100 * score for score in layer["test"]] for layer in data["layers"]]
        means = [statistics.fmean(layer) for layer in scores]
        bands = [statistics.stdev(layer) for layer in scores]
        host = [100 * score for score in data["host"]]
        axis.axhline(statistics.fmean(host), color=GREY, linestyle="--", label="host alone")
        axis.errorbar(
            LAYERS, means, yerr=bands, fmt="o-", color=BLUE, capsize=3, label="sweep: mean, deviation of 3 seeds"
        )
        axis.axhspan(
            max(means) - 100 * data["pooled_deviation"],
            max(means),
            color=BLUE,
            alpha=0.12,
            linewidth=0,
            label="within a (pooled) deviation of the best",
        )
        chosen = Counter(selection["layer"] for selection in data["selections"])
        low = min(mean - band for mean, band in zip(means, bands, strict=True)) - 1.5
        for layer, times in chosen.items():
            axis.scatter([layer], [low], s=130, color=ORANGE, zorder=3)
            axis.annotate(str(times), (layer, low), ha="center", va="center", fontsize=8, zorder=4)
        axis.scatter([], [], s=60, color=ORANGE, label="chosen by select (how often)")
        axis.set_xticks(list(LAYERS))
        axis.set_ylabel("test accuracy, %")
        axis.set_title(name, fontsize=10, loc="left")
        axis.legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
        axis.margins(y=0.22)
    axis.set_xlabel("layer of Gemma-3-270M (from 0)")
    figure.savefig(ASSETS / "select-sweeps.svg")
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axis, (name, data) in zip(figure.subplots(1, 2), facts["data"].items(), strict=True):
        means = [100 * statistics.fmean(layer["test"]) for layer in data["layers"]]
        probes = [[100 * one["rungs"][0]["scores"][str(layer)] for one in data["selections"]] for layer in LAYERS]
        for layer, mean, probed in zip(LAYERS, means, probes, strict=True):
            axis.plot([min(probed), max(probed)], [mean, mean], color=BLUE, alpha=0.35)
            axis.scatter([statistics.fmean(probed)], [mean], color=BLUE, s=16)
            axis.annotate(
                str(layer), (statistics.fmean(probed), mean), fontsize=8, xytext=(3, 3), textcoords="offset points"
            )
        axis.set_xlabel("probe without training, % (line: from selection to selection)")
        axis.set_ylabel("sweep: test accuracy, %")
        axis.set_title(name, fontsize=10, loc="left")
    figure.savefig(ASSETS / "select-probe.svg")
