"""The page of fine-tuning lists every setting, with its default and its sentence."""

from dataclasses import fields
from pathlib import Path

from layer_surgeon.finetune import DATASETS, FinetuneConfig
from layer_surgeon.finetune.tasks import FINETUNE_TASKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "finetune.md").read_text()


def test_every_setting_is_on_the_page():
    for field in fields(FinetuneConfig):
        default = "" if field.default is None else field.default
        assert f"| `{field.name}` | {default} | {field.metadata['help']} |" in PAGE


def test_the_example_file_can_be_read(tmp_path):
    from layer_surgeon_cli.finetune import read_config

    (tmp_path / "run.yaml").write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    places, settings = read_config(tmp_path / "run.yaml")
    assert set(places) == {"graft", "dataset", "test", "output"}
    assert FinetuneConfig(**settings).learning_rate == 3e-5


def test_every_task_and_data_set_is_on_the_page_of_data():
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for task in FINETUNE_TASKS:
        assert f"| `{task}` |" in page
    for record in DATASETS.values():
        columns = ", ".join(f"`{c}`" for c in (record.text_column, record.text_pair_column, record.label_column) if c)
        splits = f"{record.train} / {record.validation or '20 % of train'} / {record.test or 'none'}"
        assert f"| `{record.name}` | {record.task} | {record.place} | {splits} | {columns} |" in page
        assert record.note in page
