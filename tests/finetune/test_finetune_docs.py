"""The pages of fine-tuning: every setting, task and data set; the example file is one that can be read."""

import runpy
from dataclasses import fields
from pathlib import Path

from layer_surgeon.finetune import DATASETS, FinetuneConfig
from layer_surgeon.tasks import finetuned_tasks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "finetune.md").read_text()


def test_settings_page_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "tools" / "generate_configuration.py"))
    assert (ROOT / "docs" / "configuration.md").read_text() == generator["page"](), (
        "run tools/generate_configuration.py"
    )


def test_every_setting_is_on_the_page_of_settings():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for field in fields(FinetuneConfig):
        assert f"| `{field.name}` |" in page
        assert field.metadata["help"] in page


def test_the_example_file_can_be_read(tmp_path):
    from layer_surgeon_cli.finetune import read_config

    (tmp_path / "run.yaml").write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    places, settings = read_config(tmp_path / "run.yaml")
    assert set(places) == {"graft", "dataset", "test", "output"}
    assert FinetuneConfig(**settings).learning_rate == 3e-5


def test_every_task_and_data_set_is_on_the_page_of_data():
    page = (ROOT / "docs" / "data.md").read_text()
    for task in finetuned_tasks():
        assert f"| `{task}` |" in page
    for record in DATASETS.values():
        columns = ", ".join(f"`{c}`" for c in (record.text_column, record.text_pair_column, record.label_column) if c)
        splits = f"{record.train} / {record.validation or '20 % of train'} / {record.test or 'none'}"
        assert f"| `{record.name}` | {record.task} | {record.place} | {splits} | {columns} |" in page
        assert record.note in page
