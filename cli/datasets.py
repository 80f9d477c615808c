"""`surgeon datasets`: the data sets that `--dataset` knows by name."""

from dataclasses import asdict
from typing import Any

from layer_surgeon.finetune.registry import DATASETS

from .command import command, new_app
from .ui import Ui

app = new_app()


@command(app)
def datasets(*, ui: Ui) -> dict[str, Any]:
    """List the built-in names of data sets.

    Other data works too: a Hub id, CSV, TSV, JSONL and Parquet files, a folder of such files, or stdin.
    """
    if not ui.as_json:
        rows = [
            (
                record.name,
                record.task,
                record.place,
                "/".join(split for split in (record.train, record.validation, record.test) if split),
                record.description,
            )
            for record in DATASETS.values()
        ]
        ui.table(("name", "task", "source", "splits", "description"), rows)
        for record in DATASETS.values():
            if record.note:
                ui.line(f"[bold]{record.name}[/]: {record.note}")
    return {
        name: {key: value for key, value in asdict(record).items() if key != "name"}
        for name, record in DATASETS.items()
    }
