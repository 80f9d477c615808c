"""The trainings of `research.selecting`, fixed before any sweep was run, and the numbers computed from them."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import f_oneway, spearmanr

from layer_surgeon.study.layout import SELECTION, StudyFolder, read_json
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.sweep import with_layers

DATA = ("sst2", "tweet_offensive")
ROWS = {"train": 600, "validation": 400, "test": 1000}
LAYERS = range(18)
SEEDS = (2023, 2024, 2025)
SELECTIONS = 5
SETTINGS = {
    "finetune": {"train_host": "frozen", "num_epochs": 3, "batch_size": 32, "learning_rate": 1e-3, "max_length": 64},
    "graft": {"pooling": "mean"},
}
HOST = "packaged:all-MiniLM-L6-v2"
DONOR = "packaged:gemma-3-270m"


def plan(work: Path, data: str, seeds: Sequence[int]) -> StudyPlan:
    """A sweep over all layers."""
    content = {
        "name": data,
        "host": str(work / "host"),
        "donor": DONOR,
        "data": [str(work / "data" / data)],
        "seeds": list(seeds),
        **SETTINGS,
    }
    return StudyPlan.from_dict(with_layers(content, list(LAYERS)))


def measure(work: Path) -> dict[str, Any]:
    """The numbers of the tables and figures in docs/selection.md, by data set."""
    facts = {}
    for data in DATA:
        layers, host = read_sweep(work, data)
        means = [statistics.fmean(layer["test"]) for layer in layers]
        best = max(LAYERS, key=means.__getitem__)
        pooled = statistics.fmean(statistics.variance(layer["test"]) for layer in layers) ** 0.5
        own = statistics.stdev(layers[best]["test"])
        folders = [work / f"select-{data}-{number}" for number in range(SELECTIONS)]
        selections = [read_selection(folder, means) for folder in folders if (folder / SELECTION).is_file()]
        probes = [[selection["rungs"][0]["scores"][str(layer)] for layer in LAYERS] for selection in selections]
        mean_probe = [statistics.fmean(scores) for scores in zip(*probes, strict=True)]
        ways = {
            "select": [selection["layer"] for selection in selections],
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
            "selections": selections,
        }
    return {"format": 1, "seeds": list(SEEDS), "rows": ROWS, "settings": SETTINGS, "data": facts}


def spearman_of_seeds(layers: Sequence[dict[str, list[float]]]) -> list[float]:
    """How far two seeds of the sweep agree on the order of the layers: the most that a selection can reach."""
    by_seed = [[layer["test"][seed] for layer in layers] for seed in range(len(SEEDS))]
    return [float(spearmanr(first, second).statistic) for first, second in combinations(by_seed, 2)]


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


def read_selection(folder: Path, means: Sequence[float]) -> dict[str, Any]:
    """What one selection chose, what it cost, and how far each rung agreed with the sweep."""
    content = read_json(folder / SELECTION)
    rungs = []
    for rung in content["rungs"]:
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
        "layer": content["layers"][0],
        "cost": content["cost"],
        # Seconds on a machine that also does other work would mean nothing.
        "trainings": trainings(content["rungs"]),
        "margin": content["margin"],
        "rungs": rungs,
    }


def trainings(rungs: Sequence[dict[str, Any]]) -> int:
    """How many trainings of candidates a selection started; the last rung reuses those of the rung before."""
    with_a_quarter, with_one_seed, with_all_seeds = (len(rung["scores"]) for rung in rungs[1:])
    return with_a_quarter + with_one_seed + with_all_seeds * (len(SEEDS) - 1)


def judge(choices: Sequence[int], means: Sequence[float], own: float, pooled: float) -> dict[str, float]:
    """How often choices are within a standard deviation of the best layer, and what they lose on average."""
    lost = [max(means) - means[layer] for layer in choices]
    return {
        "choices": len(lost),
        "within_deviation_of_best": sum(loss <= own for loss in lost) / len(lost),
        "within_pooled_deviation": sum(loss <= pooled for loss in lost) / len(lost),
        "lost": statistics.fmean(lost),
    }


def one_seed(layers: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """The best layer of one seed by validation, judged by the test accuracy of the other seeds: a third of a sweep."""
    results = []
    for seed in range(len(SEEDS)):
        others = [[score for index, score in enumerate(layer["test"]) if index != seed] for layer in layers]
        means = [statistics.fmean(scores) for scores in others]
        choice = max(LAYERS, key=lambda layer: layers[layer]["validation"][seed])
        pooled = statistics.fmean(statistics.variance(scores) for scores in others) ** 0.5
        results.append(judge([choice], means, statistics.stdev(others[means.index(max(means))]), pooled))
    return {name: statistics.fmean(result[name] for result in results) for name in results[0]} | {"choices": len(SEEDS)}
