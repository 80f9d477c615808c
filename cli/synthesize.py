"""`surgeon synthesize`: write training texts with a language model."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from layer_surgeon.study.synthesis_config import SynthesisConfig

from .command import command, new_app, nothing_kept, usage
from .errors import UsageError
from .ui import Ui, escape_text

app = new_app()


@command(app, settings=SynthesisConfig, without=("model", "labels", "prompts"))
def synthesize(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder or a repo id.")],
    labels: Annotated[list[str], typer.Option("--label", "-l", help="A label. Repeat it for each label.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON Lines file.")] = Path("synthetic.jsonl"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Write training texts for each label with a language model.

    The method is ZeroGen. Run surgeon synthesize gpt2-xl --label negative --label positive, then surgeon finetune HOST
    --dataset FILE.
    """
    if output.exists() and not force:
        raise UsageError(f"{output} already exists. Replace it with --force, or choose another file with --output.")

    with usage():
        config = SynthesisConfig(model=model, labels=tuple(labels), **settings)

    from layer_surgeon.study.synthesize import synthesize as write_texts

    with nothing_kept():
        result = write_texts(config, output=output, progress=ui.progress)
    if not ui.as_json:
        ui.table(("label", "texts"), [(name, f"{count:,}") for name, count in result.counts.items()])
        ui.facts({"left out": f"{result.left_out:,} texts that were empty or duplicates", "file": result.path})
        ui.line(f"\nNext: [bold]surgeon finetune HOST --dataset {escape_text(shlex.quote(str(result.path)))}[/]")
    return result.as_dict()
