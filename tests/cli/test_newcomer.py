"""What a newcomer ran into: commands do what their output promises, and messages say what to do."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, pipeline

import layer_surgeon as ls
from layer_surgeon._format import format_score
from layer_surgeon.errors import ArtifactError, ConfigError, DataError, GraftError
from layer_surgeon.report.words import say_gains
from layer_surgeon.study.paired import Interval
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.selection_result import Margin
from layer_surgeon.study.verdict import say_margin
from layer_surgeon_cli.compare import _show_estimate
from layer_surgeon_cli.ui import Ui
from tests.support.classification import rows, save_host, word_tokenizer
from tests.support.command_line import surgeon_here
from tests.support.gguf_models import write_model
from tests.support.tiny_models import cut_artifact, save_quietly, tiny_llama

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--num-epochs", "1", "--max-train-samples", "8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A host, a language model, a layer, and data, in one folder."""
    folder = tmp_path_factory.mktemp("desk")
    save_host(folder / "bert")
    save_quietly(tiny_llama(seed=5), folder / "llm")
    cut_artifact(folder / "llm", [3], folder / "layer")
    reviews = rows(24)
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((row["text"], row["label"]) for row in reviews)])
    with (folder / "stars.csv").open("w", newline="") as file:
        stars = [(row["text"], number / 7) for number, row in enumerate(reviews)]
        csv.writer(file).writerows([("text", "stars"), *stars])
    return folder


def flat(text):
    return " ".join(text.split())


def test_a_graft_in_memory_is_trained_with_the_tokenizer_of_its_host(desk, tmp_path):
    model = ls.graft_layer(str(desk / "bert"), desk / "layer", task="text-classification", num_labels=2)
    settings = {"num_epochs": 1, "output": tmp_path / "run", "workspace": ls.Workspace(tmp_path / "surgery")}
    result = ls.finetune_model(model, str(desk / "reviews.csv"), **settings)
    assert (result.path / "tokenizer.json").read_bytes() == (desk / "bert/tokenizer.json").read_bytes()


def test_a_stack_is_grafted_as_it_was_extracted(desk, tmp_path):
    shutil.copytree(desk / "llm", tmp_path / "llm")
    word_tokenizer().save_pretrained(tmp_path / "llm")
    stack = ("extract", "llm", "--layer", "0:2", "--embeddings")
    for vocabulary, tokens in (((), "tokens of the donor"), (("--vocabulary", desk / "bert"), "the host's tokens")):
        extracted = surgeon_here(*stack, *vocabulary, "--force", cwd=tmp_path)
        assert "Next: surgeon graft HOST (" in flat(extracted.out)
        grafted = surgeon_here("graft", desk / "bert", "--force", cwd=tmp_path)
        assert f"reads the text, as {tokens} " in flat(grafted.out)
        tuned = "--head-learning-rate 1e-3 --projection-learning-rate 1e-3 --num-epochs 10"
        assert (f"Next: surgeon finetune {tuned} (" in flat(grafted.out)) == (not vocabulary)
    assert tuned in (ROOT / "docs/reading_donor.md").read_text()
    refused = surgeon_here("graft", desk / "bert", "--recipe", "paper", cwd=tmp_path)
    assert (refused.code, "--recipe is paper, and the donor is a stack" in flat(refused.err)) == (2, True)


def test_a_model_from_nowhere_still_needs_a_tokenizer(desk):
    model = ls.graft_layer(str(desk / "bert"), desk / "layer")
    model.host_source = None
    with pytest.raises(ConfigError, match=r"built in memory, so its tokenizer can't be loaded. Pass tokenizer="):
        ls.finetune_model(model, str(desk / "reviews.csv"))


def test_commands_say_which_graft_layer_and_run_they_use(desk, tmp_path):
    extracted = surgeon_here("extract", desk / "llm", "-o", "lay", cwd=tmp_path)
    assert "Next: surgeon graft HOST (HOST: a folder, packaged:all-MiniLM-L6-v2, or" in flat(extracted.out)
    grafted = surgeon_here("graft", desk / "bert", "-o", "first", cwd=tmp_path)
    assert grafted.code == 0, grafted.err
    assert "Using the latest layer: lay\n" in grafted.err
    data = ("--dataset", desk / "reviews.csv", *QUICK)
    trained = surgeon_here("finetune", *data, "-o", "run", cwd=tmp_path)
    assert "Using the latest graft: first\n" in trained.err
    assert "Using the latest run: run\n" in surgeon_here("predict", "a film", cwd=tmp_path).err
    named = surgeon_here("finetune", "first", *data, "--dry-run", cwd=tmp_path)
    assert "Using the latest" not in named.err
    assert "Using the latest" not in surgeon_here("predict", "a film", "--quiet", cwd=tmp_path).err


def test_no_text_tells_people_to_install_from_pypi():
    pages = [
        ROOT / "README.md",
        ROOT / "research/results.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("layer_surgeon/**/*.py"),
    ]
    pages += [*ROOT.glob("layer_surgeon/**/*.jinja"), *ROOT.glob("cli/*.py"), *ROOT.glob("research/**/*.jinja")]
    for page in pages:
        assert not re.search(r"pip install[^`\n]*layer-surgeon|layer-surgeon\[", page.read_text()), page


def test_next_step_of_a_graft_that_finetune_refuses(desk, tmp_path):
    features = ("graft", desk / "bert", "--donor", desk / "layer", "--task", "feature-extraction", "-o", "features")
    shown = surgeon_here(*features, cwd=tmp_path)
    assert "Next: surgeon finetune" not in shown.out
    assert "Next: train it with sentence-transformers: docs/embeddings.md" in flat(shown.out)


def test_numbers_as_labels_lead_to_regression(desk, tmp_path):
    surgeon_here(
        "graft", desk / "bert", "--donor", desk / "layer", "--num-labels", "1", "-o", "regression", cwd=tmp_path
    )
    data = ("--dataset", desk / "stars.csv", "--label-column", "stars")
    refused = surgeon_here("finetune", "regression", *data, cwd=tmp_path)
    assert refused.code == 1
    assert "has one output (num_labels is 1), which is regression, but surgeon finetune trains classes" in refused.err
    assert "docs/trainer.md" in refused.err
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", "-o", "classes", cwd=tmp_path)
    many = [{"text": "a film", "label": number} for number in range(200)]
    with pytest.raises(DataError, match="200 different labels in 200 rows.* To predict numbers, see docs/trainer.md"):
        ls.finetune_model(tmp_path / "classes", many)
    with pytest.raises(DataError, match="class names or whole numbers. To predict numbers, see docs/trainer.md"):
        ls.finetune_model(tmp_path / "classes", [{"text": "a film", "label": number / 7} for number in range(40)])


def test_a_graft_without_a_tokenizer_says_how_to_save_one(desk, tmp_path):
    ls.graft_layer(str(desk / "bert"), desk / "layer").save_pretrained(tmp_path / "graft")
    with pytest.raises(GraftError, match=r"has no tokenizer. Save its host's there: tokenizer.save_pretrained\(FOLDER"):
        AutoTokenizer.from_pretrained(tmp_path / "graft")
    AutoTokenizer.from_pretrained(desk / "bert").save_pretrained(tmp_path / "graft")
    assert pipeline("text-classification", model=str(tmp_path / "graft"))("a film")[0]["label"].startswith("LABEL_")


def test_other_number_of_labels_when_loading(desk, tmp_path):
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", "-o", "graft", cwd=tmp_path)
    with pytest.raises(GraftError, match=r"pass ignore_mismatched_sizes=True too, or call model.set_labels"):
        ls.GraftedModel.from_pretrained(tmp_path / "graft", num_labels=5)
    model = ls.GraftedModel.from_pretrained(tmp_path / "graft", num_labels=5, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 5


def test_profile_takes_gguf_files_and_shows_the_layer_of_an_artifact(desk, tmp_path):
    write_model(tmp_path / "x.gguf", "llama", "Q8_0")
    shown = surgeon_here("profile", desk / "bert", "--donor", "x.gguf", "--length", "16", "--json", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert shown.document()["donor"].endswith("of x.gguf")
    other = surgeon_here("profile", desk / "bert", "--donor", desk / "layer", "--layer", "2", cwd=tmp_path)
    assert other.code == 1
    assert "holds layer 3 and not layer 2" in flat(other.err)
    assert surgeon_here("profile", desk / "bert", "--donor", desk / "layer", "--length", "16", cwd=tmp_path).code == 0


def test_profile_of_texts_longer_than_the_host_says_only_that(desk, tmp_path, caplog):
    shown = surgeon_here("profile", desk / "bert", "--donor", desk / "layer", "--length", "600", cwd=tmp_path)
    assert (shown.code, shown.out, caplog.messages) == (1, "", [])
    assert re.fullmatch(
        r"error: .*doesn't run on shapes alone.* The host has \d+ positions, so a smaller .*", flat(shown.err)
    )


def test_times_below_a_second_are_not_zero():
    from layer_surgeon._format import format_seconds

    assert [format_seconds(s) for s in (0, 0.0000042, 0.0123, 0.4, 0.8, 9.96)] == [
        *("0.0 s", "4.2 us", "12 ms", "0.4 s", "0.8 s", "10 s")
    ]


def test_a_mistyped_donor_is_refused_without_asking_the_hub(desk, monkeypatch):
    shutil.copytree(desk / "layer", desk / "my-layer", dirs_exist_ok=True)
    monkeypatch.chdir(desk)
    with pytest.raises(ArtifactError, match="There is no folder 'my-layr'.*Did you mean my-layer?"):
        ls.graft_layer(str(desk / "bert"), "my-layr")
    with pytest.raises(ArtifactError, match="a layer artifact on the Hub has a name such as owner/name"):
        ls.graft_layer(str(desk / "bert"), "zzz")


def test_typing_errors_get_suggestions(desk, tmp_path):
    def error(*arguments):
        result = surgeon_here(*arguments, cwd=tmp_path)
        assert result.code == 2
        return flat(result.err)

    assert "No such command 'extrct'. Did you mean extract?" in error("extrct")
    assert "No such option: --lr. Did you mean --learning-rate?" in error("finetune", "--lr", "3")
    assert "No such option: --datset. Did you mean --dataset?" in error("finetune", "--datset", "x.csv")
    assert "No such option: --model. Name the graft without an option" in error("finetune", "--model", "my-graft")
    message = error("finetune", "--precision", "fp8")
    assert "'fp8' is not one of 'fp32', 'bf16', 'fp16'" in message
    assert "Value error" not in message
    for number in range(9):
        (tmp_path / f"a{number}.csv").write_text("text,label\n")
    shutil.copy(desk / "reviews.csv", tmp_path / "reviews.csv")
    with pytest.raises(DataError, match=r"There is no file .*revews.csv. Did you mean reviews.csv\?"):
        ls.finetune_model(desk / "bert", tmp_path / "revews.csv")


def test_a_learning_rate_that_no_training_survives_is_pointed_out(desk, tmp_path):
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", "-o", "graft", cwd=tmp_path)
    command = ("finetune", "graft", "--dataset", desk / "reviews.csv", "--dry-run")
    shown = surgeon_here(*command, "--learning-rate", "5e5", cwd=tmp_path)
    assert shown.code == 0
    assert "learning_rate is 500000. Fine-tuning usually needs 1e-06 to 0.01" in shown.err
    assert "usually needs" not in surgeon_here(*command, "--head-learning-rate", "1e-3", cwd=tmp_path).err


def test_a_dry_run_with_several_seeds_names_all_runs(desk, tmp_path):
    command = ("finetune", desk / "bert", "--dataset", desk / "reviews.csv", "--dry-run", "--seeds", "3", "-o", "mine")
    shown = flat(surgeon_here(*command, cwd=tmp_path).out)
    assert "3, one for each seed" in shown
    assert "seed-2023" in shown
    runs = json.loads(surgeon_here(*command, "--json", cwd=tmp_path).out)["runs"]
    assert [run["path"] for run in runs] == [str(Path("mine") / f"seed-{seed}") for seed in (2023, 2024, 2025)]


def test_predict_says_that_a_graft_is_untrained(desk, tmp_path):
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", "-o", "graft", cwd=tmp_path)
    shown = surgeon_here("predict", "--model", "graft", "a film", cwd=tmp_path)
    assert "graft is an untrained graft: its head has random weights" in shown.err
    surgeon_here("finetune", "graft", "--dataset", desk / "reviews.csv", *QUICK, "-o", "run", cwd=tmp_path)
    assert "untrained" not in surgeon_here("predict", "--model", "run", "a film", cwd=tmp_path).err


def test_interrupted_predict_and_evaluate_promise_nothing(desk, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layer_surgeon.finetune.predict", interrupt)
    monkeypatch.setattr("layer_surgeon.finetune.evaluate_model", interrupt)
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", "-o", "graft", cwd=tmp_path)
    for command in (("predict", "-m", "graft", "x"), ("evaluate", "graft", "--dataset", desk / "reviews.csv")):
        stopped = surgeon_here(*command, cwd=tmp_path)
        assert stopped.code == 1
        assert stopped.err.splitlines()[-1] == "error: Interrupted. Nothing was written."
    # Also while the texts are read, before the model is loaded.
    monkeypatch.setattr("layer_surgeon.finetune.evaluation.load_texts", interrupt)
    stopped = surgeon_here("predict", "-m", "graft", "--input", desk / "reviews.csv", cwd=tmp_path)
    assert stopped.err.splitlines()[-1] == "error: Interrupted. Nothing was written."


def test_a_moved_project_still_works(desk, tmp_path):
    project, moved = tmp_path / "project", tmp_path / "moved"
    project.mkdir()
    shutil.copy(desk / "reviews.csv", project / "train.csv")
    shutil.copy(desk / "reviews.csv", project / "test.csv")
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", cwd=project)
    trained = surgeon_here("finetune", "--dataset", "train.csv", "--test", "test.csv", *QUICK, cwd=project)
    assert trained.code == 0, trained.err
    project.rename(moved)
    (run,) = (moved / "surgery/runs").iterdir()
    evaluated = surgeon_here("evaluate", cwd=moved)
    assert evaluated.code == 0, evaluated.err
    assert "24 examples" in evaluated.out
    again = surgeon_here("finetune", "--config", run / "run.yaml", cwd=moved)
    assert again.code == 0, again.err


def test_notebooks_get_lines_instead_of_a_panel(monkeypatch, tmp_path):
    """`!surgeon ...` runs on a terminal that can't move its cursor."""
    from layer_surgeon_cli.bars import RichProgress
    from layer_surgeon_cli.render import LineProgress

    def progress():
        ui = Ui(as_json=False, quiet=False, debug=False, workspace=ls.Workspace(tmp_path))
        object.__setattr__(ui, "err", Console(file=io.StringIO(), force_terminal=True))
        return ui.progress

    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert isinstance(progress(), RichProgress)
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert isinstance(progress(), LineProgress)


def test_a_progress_bar_for_python(desk, tmp_path, capsys):
    model = ls.graft_layer(str(desk / "bert"), desk / "layer")
    settings = {"num_epochs": 1, "output": tmp_path / "run", "workspace": ls.Workspace(tmp_path / "surgery")}
    ls.finetune_model(model, str(desk / "reviews.csv"), progress=ls.ProgressBar(), **settings)
    shown = capsys.readouterr().err
    assert re.search(r"Training: 100%.*1/1 .*loss=0\.\d+", shown)
    assert "Epoch 1: training loss" in shown


def test_matplotlib_is_not_imported(desk, tmp_path, monkeypatch):
    """A shell in a notebook inherits MPLBACKEND, which fails where matplotlib_inline is missing."""
    monkeypatch.setenv("MPLBACKEND", "module://no_such_package.backend")
    for folder in ("layer_surgeon", "cli"):
        for path in (ROOT / folder).glob("**/*.py"):
            assert "import matplotlib" not in path.read_text(), path
    surgeon_here("graft", desk / "bert", "--donor", desk / "layer", "-o", "graft", cwd=tmp_path)
    done = surgeon_here("finetune", "graft", "--dataset", desk / "reviews.csv", *QUICK, "-o", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "run/loss_curve.png").is_file()


def test_a_profiled_table_of_the_paper_shows_its_commands(tmp_path):
    shown = surgeon_here("compare", "--preset", "table-20", cwd=tmp_path)
    assert shown.code == 0
    commands = [line for line in shown.out.splitlines() if line.startswith("surgeon profile ")]
    assert len(commands) == 15
    assert surgeon_here("compare", "--preset", "table-20", "--json", cwd=tmp_path).document()["commands"] == commands


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_untrained_gated_graft_equals_its_host_in_sentence_transformers(desk, tmp_path, pooling):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    host = tmp_path / "host"
    shutil.copytree(desk / "bert", host)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(zip(("", "1_Pooling", "2_Normalize"), kinds, strict=True))
    ]
    (host / "modules.json").write_text(json.dumps(modules))
    (host / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')
    (host / "1_Pooling").mkdir()
    mode = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    other = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}
    (host / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **other, mode: True}))
    command = ("graft", "host", "--donor", desk / "layer", "--task", "feature-extraction", "--residual", "gated")
    for _ in range(2):  # --force must know all the files
        made = surgeon_here(*command, "--pooling", pooling, "-o", "embedder", "--force", cwd=tmp_path)
        assert made.code == 0, made.err
    texts = ["the film was good and the plot of it is very fine", "a dull end"]
    own, grafted = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("host", "embedder"))
    assert grafted.max_seq_length == own.max_seq_length == 7
    vectors = torch.tensor(grafted.encode(texts))
    torch.testing.assert_close(vectors, torch.tensor(own.encode(texts)))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_numbers_for_people_have_no_exponent():
    scores = [format_score(score) for score in (2.091e-16, -2e-16, 0.00012, 0.25, 12345.6, 1.0)]
    assert scores == ["0.0000", "0.0000", "0.00012", "0.25", "12,346", "1"]
    assert [format_score(score, "+.3g") for score in (2e-16, -0.5, 12345.6)] == ["+0.0000", "-0.5", "+12,346"]


def test_a_progress_bar_shows_small_losses_and_learning_rates(capsys):
    bar = ls.ProgressBar()
    bar.begin("Training", 1, "steps")
    bar.metrics({"loss": 2.091e-16, "learning rate": 5e-5})
    bar.advance(1)
    bar.end()
    assert "loss=0.0000, learning rate=5e-05" in capsys.readouterr().err


def test_the_estimate_of_a_study_counts_in_singular_and_plural(desk, tmp_path, capsys):
    plan = StudyPlan.from_dict(
        {"host": str(desk / "bert"), "donor": str(desk / "layer"), "arms": ["host"], "data": ["films"], "seeds": [1, 2]}
    )
    estimate = SimpleNamespace(cells=2, done=0, seconds=24.0, seconds_by_arm={"host": 12.033})
    ui = Ui(as_json=False, quiet=False, debug=False, workspace=ls.Workspace(tmp_path))
    _show_estimate(plan, estimate, 1, ui)
    shown = flat(capsys.readouterr().out)
    assert "2: 1 arm x 2 seeds x 1 data set x 1 share of the data" in shown
    assert re.search(r"host +12 s", shown)
    assert "Nothing was written. To start, leave --dry-run out." in shown


def test_a_margin_of_nothing_is_not_ahead():
    def said(difference, deviation=None):
        return say_margin(Margin(runner_up="graft-L3", difference=difference, deviation=deviation), is_share=True)

    assert said(0.0) == "level with graft-L3, with one seed"
    assert said(0.0004, 0.01).startswith("ahead of graft-L3 by less than 0.1 points, with a standard deviation of 1.0")
    assert said(0.012) == "ahead of graft-L3 by 1.2 points, with one seed"


def test_differences_and_intervals_have_one_unit():
    interval = Interval(low=-0.1021, high=-0.008)
    assert say_gains(interval, SimpleNamespace(is_share=True)) == "-10.2 to -0.8"
    assert say_gains(interval, SimpleNamespace(is_share=False)) == "-0.102 to -0.008"
