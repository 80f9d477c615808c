"""`surgeon synthesize`: training texts written by a language model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from layer_surgeon.errors import ConfigError

from .command import command, new_app
from .errors import UsageError
from .ui import Ui

app = new_app()


@command(app)
def synthesize(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder or a repo id.")],
    labels: Annotated[list[str], typer.Option("--label", "-l", help="A label; repeat it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON Lines file.")] = Path("synthetic.jsonl"),
    prompt: Annotated[
        str | None, typer.Option(help='What the model continues; {label} stands for the label. Ends with ".')
    ] = None,
    per_label: Annotated[int, typer.Option(help="Texts of each label.")] = 1000,
    max_new_tokens: Annotated[int, typer.Option(help="Longest text in tokens.")] = 40,
    top_k: Annotated[int, typer.Option(help="Each token is one of so many of the most probable; 0: of all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Each token is one of those with this share together.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="Above 1: bolder; below: more probable.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Texts that are written at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 2023,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Have a language model write training texts for each label.

    ZeroGen: surgeon synthesize gpt2-xl --label negative --label positive, then surgeon finetune HOST --dataset FILE.
    """
    if output.exists() and not force:
        raise UsageError(f"{output} is there already. Replace it with --force, or choose another file with --output.")

    from layer_surgeon.study.synthesize import SynthesisConfig
    from layer_surgeon.study.synthesize import synthesize as write

    try:
        config = SynthesisConfig(
            model=model,
            labels=tuple(labels),
            per_label=per_label,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            batch_size=batch_size,
            seed=seed,
        )
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if prompt is not None:
        config = replace(config, prompt=prompt)
    result = write(config, output=output, progress=ui.progress)
    if not ui.as_json:
        ui.table(("label", "texts"), [(name, f"{count:,}") for name, count in result.counts.items()])
        ui.facts({"left out": f"{result.left_out:,} draws that were empty or there already", "file": result.path})
        ui.line(f"\nNext: [bold]surgeon finetune HOST --dataset {result.path}[/]")
    return result.as_dict()
