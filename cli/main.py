"""The `surgeon` command: a table of commands, each loaded only when it is called."""

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

import layer_surgeon

# In the order in which a user meets them. A summary stands here, and not only in the command's own file, so that
# `surgeon --help` loads none of the commands: that help has to appear at once (a test compares both texts).
COMMANDS = {
    "inspect": "Show a checkpoint's layers, dtypes, sizes and licence.",
    "extract": "Take layers out of a checkpoint, reading only their bytes.",
    "graft": "Put a layer into a small model.",
    "profile": "Show what a graft costs: parameters, computation, memory, time.",
    "finetune": "Train a grafted model.",
    "evaluate": "Measure a trained model on a data set.",
    "predict": "Let a trained model label texts, answer questions, or write.",
    "compare": "Compare arms over seeds, data sets and test sets, with statistics.",
    "sweep": "Train with each layer of the donor, pair or site, and draw which does best.",
    "select": "Find the best layer, pair or site at a fraction of a sweep.",
    "report": "Show a study: one page with the verdict, tables and plots; also Markdown, CSV, LaTeX and PNG.",
    "synthesize": "Have a language model write training texts for each label.",
    "export": "Write a graft as one program for other runtimes.",
    "push": "Put a graft, a run or a layer onto the Hub.",
    "datasets": "List the data sets that have a name here.",
    "demo": "Run the whole journey on real weights, without the Hub.",
    "env": "Show versions, devices and the workspace, for bug reports.",
}


class LazyGroup(TyperGroup):
    """Lists commands from `COMMANDS` and imports one only when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name every command, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the file of one command; None for an unknown name, which the caller reports."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


# No rich markup for this one page: importing what renders it takes as long as the rest of `surgeon --help` together.
app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"layer_surgeon {layer_surgeon.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_print_version, is_eager=True),
) -> None:
    """Take one layer out of a large language model and put it to work in a small one.

    surgeon extract meta-llama/Llama-3.1-8B --layer -1, then surgeon graft bert-base-uncased, then surgeon finetune.
    """


def main() -> None:
    """Run the command line; the entry point of the `surgeon` script."""
    app(prog_name="surgeon")


if __name__ == "__main__":
    main()
