"""The page of fine-tuning lists every setting, with its default and its sentence."""

from dataclasses import fields
from pathlib import Path

from layer_surgeon.finetune import FinetuneConfig

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
