"""Run every fine-tuning task on real data and real weights with the installed commands, and print the results.

    python -m benchmarks.tasks --data DIR [--only sst2 sick ...] [--threads 2] [--json FILE]

DIR has a folder for each data set: sst2, sick, cola, tweet_offensive, xquad_en and multi30k, with the files listed in
`TASKS`. The host is all-MiniLM-L6-v2 and the donor layer is the last layer of Gemma-3-270M, both from the packages of
the extra [demo]. MiniLM can't translate, so the host for translation is a small T5 with random weights and a vocabulary
made from the data. All other settings are the paper's. There is one run per data set: the numbers show that the tasks
work, not what a layer is worth (use `surgeon compare` for that).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from benchmarks.machine import heading, machine, save, say, table, versions

PACKAGES = ("layer-surgeon", "torch", "transformers", "datasets", "sacrebleu", "rouge-score", "nltk", "scikit-learn")
VOCABULARY = 8000


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the table.

    Attributes:
        files: Files in the folder of the data set, by split.
        task: The graft's task.
        graft: More options of `surgeon graft`.
        finetune: Options of `surgeon finetune` that differ from the paper's.
        scores: The scores to show.
        host: Makes the host in a folder (second argument) from the training data (first argument). None means MiniLM.
    """

    files: Mapping[str, str]
    task: str = "text-classification"
    graft: Sequence[str] = ()
    finetune: Sequence[str] = ()
    scores: Sequence[str] = ("accuracy", "macro_f1")
    host: Callable[[Path, Path], Path] | None = None


def random_t5(train: Path, folder: Path) -> Path:
    """Make a small T5 with random weights, and a tokenizer with 8,000 pieces trained on both languages."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        _sentences(train),
        trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(2023)
    size = {"d_model": 256, "d_kv": 32, "d_ff": 512, "num_heads": 8, "num_layers": 3, "num_decoder_layers": 3}
    config = T5Config(vocab_size=len(wrapped), **size, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def _sentences(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield from row.values()


TASKS = {
    "sst2": Task(
        files={"dataset": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        finetune=("--train-fraction", "0.1"),
    ),
    "sick": Task(
        files={"dataset": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        finetune=("--num-epochs", "1"),
    ),
    "cola": Task(
        files={"dataset": "train.csv", "validation": "validation.csv", "test": "validation_out_of_domain.csv"},
        finetune=("--num-epochs", "1"),
    ),
    "tweet_offensive": Task(
        files={"dataset": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        finetune=("--num-epochs", "1"),
    ),
    "xquad_en": Task(
        files={"dataset": "train.jsonl", "test": "test.jsonl"},
        task="question-answering",
        finetune=("--num-epochs", "2", "--batch-size", "8", "--max-length", "384", "--doc-stride", "128"),
        scores=("exact_match", "f1"),
    ),
    "multi30k": Task(
        files={"dataset": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        task="seq2seq",
        finetune=("--max-steps", "200", "--learning-rate", "1e-3", "--max-eval-samples", "100"),
        scores=("bleu", "rouge_l", "meteor"),
        host=random_t5,
    ),
}


def surgeon(folder: Path, *arguments: str, threads: int) -> dict[str, Any]:
    """Run a command in a workspace, and return the JSON document that it prints."""
    command = [sys.executable, "-m", "layer_surgeon_cli", *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "SURGEON_WORKSPACE": str(folder / "surgery")}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def run_task(name: str, task: Task, data: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Graft and train, and return the results."""
    host = "packaged:all-MiniLM-L6-v2" if task.host is None else task.host(data / task.files["dataset"], folder / "t5")
    graft = ["graft", str(host), "--donor", str(folder / "donor"), "--task", task.task, "--output", f"graft-{name}"]
    # The paper's projections, also for a loud layer.
    surgeon(folder, *graft, "--projection-init", "default", *task.graft, threads=threads)
    files = [argument for split, file in task.files.items() for argument in (f"--{split}", str(data / file))]
    options = [*files, *task.finetune, "--output", f"run-{name}"]
    result = surgeon(folder, "finetune", f"graft-{name}", *options, threads=threads)
    num_examples = {split: facts["examples"] for split, facts in result["data"]["splits"].items()}
    return {
        "data": name,
        "task": task.task,
        "options": list(task.finetune),
        "examples": num_examples,
        "epochs": result["history"][-1]["epoch"],
        "best_epoch": result["best_epoch"],
        "steps": result["history"][-1]["step"],
        "parameters": result["parameters"],
        "seconds": result["seconds"],
        "scores": {
            split: result[split]["scores"] if "scores" in result[split] else result[split]
            for split in num_examples
            if split != "train"
        },
    }


def row(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Format a run as a row of the table."""
    score_names = TASKS[run["data"]].scores

    def scores(split: str) -> str:
        split_scores = run["scores"].get(split, {})
        return ", ".join(f"{split_scores[name]:.3f}" for name in score_names) if split_scores else ""

    return (
        run["data"],
        f"{run['examples']['train']:,}",
        f"{run['epochs']:.2g}",
        f"{run['steps']:,}",
        f"{run['seconds']:.0f} s",
        ", ".join(score_names),
        scores("validation"),
        scores("test"),
    )


def main() -> None:
    """Run the selected tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    facts, packages = machine(), versions(*PACKAGES)
    print(heading(facts, packages) + f"; {arguments.threads} threads")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        surgeon(folder, "extract", "packaged:gemma-3-270m", "--output", "donor", threads=arguments.threads)
        for name in arguments.only:
            runs.append(run_task(name, TASKS[name], (arguments.data / name).resolve(), folder, arguments.threads))
            say(json.dumps(runs[-1]))
            save(arguments.json, {"machine": facts, "versions": packages, "threads": arguments.threads, "runs": runs})
    print(table(("data", "examples", "epochs", "steps", "training", "scores", "validation", "test"), [*map(row, runs)]))


if __name__ == "__main__":
    main()
