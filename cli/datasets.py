"""`surgeon datasets`: the names that `--dataset` knows."""

from dataclasses import asdict
from typing import Any

from layer_surgeon.finetune.registry import DATASETS

from .command import command, new_app
from .ui import Ui

app = new_app()


@command(app)
def datasets(*, ui: Ui) -> dict[str, Any]:
    """List the data sets that have a name here.

    Any other data set works too: a Hub id, CSV, TSV, JSONL and Parquet files, a folder of them, or stdin.
    """
    if not ui.as_json:
        rows = [
            (r.name, r.task, r.place, "/".join(s for s in (r.train, r.validation, r.test) if s), r.description)
            for r in DATASETS.values()
        ]
        ui.table(("name", "task", "place", "splits", "what"), rows)
        for record in DATASETS.values():
            if record.note:
                ui.line(f"[bold]{record.name}[/]: {record.note}")
    return {name: {key: value for key, value in asdict(r).items() if key != "name"} for name, r in DATASETS.items()}
