"""Made-up studies of the plan, and a desk on which their evidence is collected and rendered."""

import random

import yaml

from layer_surgeon._io import write_json
from layer_surgeon.study.layout import StudyFolder
from research.collect import collect
from research.evidence import load, load_plans
from research.page import README, render

DATA = {
    "sst2": {"name": "sst2", "train": "a.csv", "test": "b.csv"},
    "cr": {"name": "cr", "train": "c.csv"},
}
LITTLE = {
    "name": "a-gemma",
    "host": "packaged:all-MiniLM-L6-v2",
    "donor": "packaged:gemma-3-270m",
    "arms": ["host", "graft", "random", "wide-head", "gated"],
    "tests": "all",
    "fractions": [0.1],
    "seeds": [1, 2, 3],
    "data": list(DATA.values()),
}
OTHER = LITTLE | {"name": "a-qwen", "donor": "packaged:qwen2.5-coder-1.5b-instruct"}
SWEEP = LITTLE | {
    "name": "e-gemma",
    "layers": [0, 1, 2],
    "arms": ["host", "graft"],
    "tests": "own",
    "data": [DATA["sst2"]],
}
SHIFT = LITTLE | {"name": "d-domains"}
EXAMPLES = {"sst2": 90, "cr": 50, "tweet_offensive": 40, "sick": 60}


def made_up(cell, examples=EXAMPLES):
    """What a training of a cell would leave: the graft is worse by half the examples."""
    draw = random.Random(cell.id)
    right = 0.4 if cell.arm.name == "graft" else 0.8
    tests = {}
    for name in cell.tests:
        bits = "".join("01"[draw.random() < right] for _ in range(examples[name]))
        scores = {"accuracy": bits.count("1") / len(bits)}
        tests[name] = {"examples": len(bits), "scores": scores, "correct": bits}
    return {
        "format": 1,
        "id": cell.id,
        "arm": cell.arm.name,
        "data": cell.data,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "host": "all-MiniLM-L6-v2",
        "donor": None,
        "tests": tests,
        "validation": {"examples": 20, "scores": {"accuracy": 0.5}},
        "history": [{"epoch": 1.0, "step": 3, "training_loss": 0.123456789, "accuracy": 0.5}],
        "best_epoch": 1,
        "parameters": {"total": 2000, "trained": 1000, "frozen": 1000},
        "train_examples": 30,
        "seconds": {"training": 1.0, "testing": 0.5, "all": 1800.0},
        "device": "cpu (1 threads)",
        "config": {"seed": cell.seed},
        "versions": {"layer_surgeon": "0.1.0", "torch": "2.13"},
        "finished": "2026-11-25T00:00:00+00:00",
    }


class Desk:
    """Plans, the folders of their studies, and the evidence."""

    def __init__(self, root, *contents):
        self.plans, self.work, self.evidence = root / "plans", root / "work", root / "evidence"
        self.measured = root / "measured"
        for folder in (self.plans, self.work, self.measured):
            folder.mkdir(exist_ok=True)
        self.root = root
        for content in contents:
            (self.plans / f"{content['name']}.yaml").write_text(yaml.safe_dump(content))

    def train(self, name, keep=lambda cell: True):
        folder = StudyFolder(root=self.work / name)
        folder.root.mkdir(exist_ok=True)
        for cell in load_plans(self.plans)[name].cells():
            if keep(cell):
                write_json(folder.result(cell.id), made_up(cell))
        return folder

    def collect(self):
        return collect(self.work, self.root)

    def load(self):
        return load(self.root)

    def render(self, template):
        return render(template, README, self.load(), {"little": "text"}).strip()
