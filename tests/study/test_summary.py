"""Tables and sentences from made-up cells: planted truths at the level of a whole study."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from layer_surgeon._io import write_json
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.summary import summarize
from layer_surgeon.study.tables import CellCounts, Table
from layer_surgeon.study.verdict import say_study
from tests.support.made_up_studies import OTHER_FIELDS, made_up_study

SEEDS = [1, 2, 3]


def made_up(tmp_path, shares, *, examples=800, seeds=SEEDS, skip=(), **changes):
    """A study whose arms are right on shares of the test examples that overlap as much as possible."""
    plan = StudyPlan.from_dict(
        {
            "host": "a/bert",
            "donor": "b/llm",
            "arms": list(shares),
            "data": ["films", "shops"] if changes.get("tests") == "all" else ["films"],
            "seeds": seeds,
            **changes,
        }
    )
    folder, rng = StudyFolder(root=tmp_path), np.random.default_rng(0)
    hard = {test: rng.random(examples) for test in ("films", "shops")}
    for cell in plan.cells():
        if (cell.arm.name, cell.seed) in skip:
            continue
        tests = {}
        for test in cell.tests:
            right = hard[test] + rng.normal(0, 0.05, examples) < shares[cell.arm.name]
            bits = "".join("1" if value else "0" for value in right)
            share = float(right.mean())
            scores = {"accuracy": share, "macro_f1": share, "f1": share, "loss": 1 - share}
            tests[test] = {"examples": examples, "scores": scores, "correct": bits}
        result = {
            "format": 1,
            "id": cell.id,
            "arm": cell.arm.name,
            "data": cell.data,
            "fraction": cell.fraction,
            "seed": cell.seed,
            "tests": tests,
            **OTHER_FIELDS,
        }
        write_json(folder.result(cell.id), result)
    return summarize(plan, folder)


def test_a_better_graft_is_reported(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.8, "random": 0.7, "wide-head": 0.71})
    table = summary.tables[0]
    pairs = {(c.arm, c.against): c for c in table.comparisons}
    assert set(pairs) == {
        ("graft", "host"),
        ("random", "host"),
        ("wide-head", "host"),
        ("graft", "random"),
        ("graft", "wide-head"),
    }
    assert pairs["graft", "host"].significant
    assert pairs["graft", "host"].basis == "seeds and examples"
    assert not pairs["random", "host"].significant
    assert "is not significant" in pairs["random", "host"].words
    assert pairs["graft", "host"].mean == pytest.approx(0.1, abs=0.03)
    low, high = pairs["graft", "host"].crossed.interval
    assert low < 0.1 < high
    assert summary.verdict.startswith("graft is better than host by")
    assert summary.verdict.endswith("It is also better than random and wide-head.")
    row = table.rows[0]
    assert (row.arm, row.seeds, len(row.by_seed)) == ("host", (1, 2, 3), 3)
    assert row.example_interval[0] < row.mean < row.example_interval[1]


def test_an_equally_good_control_is_named(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.8, "random": 0.8})
    assert "graft is better than host" in summary.verdict
    assert "not shown to be better than random" in summary.verdict


def test_a_control_that_is_better_is_named_as_such(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.75, "random": 0.75, "wide-head": 0.95})
    assert summary.verdict.endswith("It is significantly worse than wide-head, and not shown to be better than random.")
    summary = made_up(tmp_path / "all", {"host": 0.7, "graft": 0.75, "wide-head": 0.95}, tests="all")
    assert summary.verdict.endswith(" It is significantly worse than wide-head.")
    plan = StudyPlan.from_dict(
        {"arms": ["host", "graft", "wide-head"], "host": "a/b", "donor": "c/d", "data": ["films"]}
    )
    tables = [summary.tables[0], replace(summary.tables[1], comparisons=summary.tables[1].comparisons[:1])]
    unclear = replace(summary.tables[1].comparisons[-1], significant=False)
    tables[1] = replace(tables[1], comparisons=(*tables[1].comparisons, unclear))
    verdict = say_study(tables, plan, missing=0)
    assert verdict.endswith(" It is significantly worse than wide-head (in 1 of 2 comparisons).")


def test_equal_arms(tmp_path):
    summary = made_up(tmp_path, {"host": 0.75, "graft": 0.75})
    assert "is not significant (corrected p = " in summary.verdict


def test_a_score_without_single_examples_has_the_interval_of_its_test(tmp_path):
    """A bootstrap over three seeds would be little wider than the three differences themselves."""
    comparison = made_up(tmp_path, {"host": 0.7, "graft": 0.8}, metric="macro_f1").tables[0].comparisons[0]
    assert comparison.basis == "seeds"
    test = stats.ttest_1samp(comparison.by_seed, 0)
    assert comparison.p == pytest.approx(test.pvalue)
    assert comparison.interval == pytest.approx(test.confidence_interval(0.95))


def test_equivalence_is_counted_over_several_comparisons(tmp_path):
    plan = {"tests": "all", "equivalence": 5.0}
    summary = made_up(tmp_path / "one", {"host": 0.7, "graft": 0.7}, **plan)
    assert summary.verdict == (
        "None of 4 differences between graft and host is significant; 4 of 4 are equivalent within ±5 points."
    )
    summary = made_up(tmp_path / "two", {"host": 0.7, "random": 0.7}, **plan)
    assert summary.verdict == (
        "No difference is significant, in 4 comparisons; 4 of 4 are equivalent within ±5 points."
    )


def test_the_margin_of_the_f1_of_entities_is_in_points(tmp_path):
    """It goes from 0 to 1, and the F1 of answers from 0 to 100."""
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.72}, task="token-classification", equivalence=1.0)
    (comparison,) = summary.tables[0].comparisons
    assert (summary.metric, summary.is_share, comparison.equivalent) == ("f1", True, False)
    assert " points" in comparison.words
    answers = StudyPlan.from_dict({"host": "a/b", "donor": "c/d", "data": ["films"], "task": "question-answering"})
    assert (answers.metric, answers.is_share) == ("f1", False)


def test_several_tables(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.8}, tests="all")
    assert [(table.data, table.test) for table in summary.tables] == [
        ("films", "films"),
        ("films", "shops"),
        ("shops", "shops"),
        ("shops", "films"),
    ]
    assert summary.verdict.startswith("graft is significantly better than host in 4 of 4 comparisons")


def test_beating_a_control_on_one_of_several_test_sets_is_not_enough(tmp_path):
    made = {"host": 0.7, "graft": 0.7, "random": 0.5}
    assert made_up(tmp_path / "one", made).verdict.endswith(" It is better than random.")
    plan = {"arms": ["host", "graft", "random"], "host": "a/bert", "donor": "b/llm", "data": ["films", "shops"]}
    plan = StudyPlan.from_dict(plan)
    (graft_against_host, *_) = made_up(tmp_path / "two", made).tables[0].comparisons
    comparisons = [
        replace(graft_against_host, against=against, significant=won, mean=0.1, words="graft is better")
        for against, won in (("host", True), ("random", True), ("host", True), ("random", False))
    ]
    tables = [
        Table(data=name, test=name, fraction=1, examples=1, rows=(), comparisons=tuple(comparisons[at : at + 2]))
        for name, at in (("films", 0), ("shops", 2))
    ]
    said = say_study(tables, plan, missing=0)
    assert said.endswith(" It is better than random in 1 of 2 comparisons.")


def test_the_verdict_names_a_single_seed(tmp_path):
    summary = made_up(tmp_path, {"host": 0.6, "graft": 0.8}, seeds=[1])
    comparison = summary.tables[0].comparisons[0]
    assert comparison.basis == "examples"
    assert "for this one seed" in comparison.words
    assert summary.tables[0].rows[0].deviation is None


def test_an_unfinished_study(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.8}, skip=[("graft", 3), ("host", 2)])
    assert summary.cells == CellCounts(planned=6, done=4, missing=2, failed=())
    assert summary.tables[0].comparisons[0].seeds == (1,)
    assert summary.verdict.endswith("2 trainings are still missing.")
    empty = made_up(
        tmp_path / "empty", {"host": 0.7, "graft": 0.8}, skip=[(a, s) for a in ("host", "graft") for s in SEEDS]
    )
    assert empty.verdict == "Nothing is finished yet."


def test_other_metrics_are_tested_over_the_seeds(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.8}, metric="macro_f1")
    comparison = summary.tables[0].comparisons[0]
    assert (comparison.basis, comparison.crossed) == ("seeds", None)
    assert comparison.p == comparison.t_test
    assert comparison.permutation == pytest.approx(0.25)


def test_a_lower_loss_is_better(tmp_path):
    summary = made_up(tmp_path, {"host": 0.7, "graft": 0.8}, metric="loss")
    assert summary.higher_is_better is False
    assert summary.tables[0].comparisons[0].mean < 0
    assert summary.verdict.startswith("graft is better than host by")


def test_several_hosts_are_each_compared_with_their_own(tmp_path):
    plan = StudyPlan.from_dict(
        {"hosts": ["a/one", "b/two"], "donor": "c/llm", "arms": ["host", "graft"], "data": ["x"]}
    )
    shares = {"host@one": 0.6, "graft@one": 0.7, "host@two": 0.8, "graft@two": 0.9}
    folder = StudyFolder(root=tmp_path)
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    for cell in plan.cells():
        right = hard + rng.normal(0, 0.05, 500) < shares[cell.arm.name]
        bits = "".join("1" if value else "0" for value in right)
        write_json(
            folder.result(cell.id),
            {
                "format": 1,
                "id": cell.id,
                "arm": cell.arm.name,
                "data": "x",
                "fraction": 1.0,
                "seed": cell.seed,
                "tests": {"x": {"examples": 500, "scores": {"accuracy": float(right.mean())}, "correct": bits}},
                **OTHER_FIELDS,
            },
        )
    summary = summarize(plan, folder)
    comparisons = summary.tables[0].comparisons
    assert [(c.arm, c.against, c.significant) for c in comparisons] == [
        ("graft@one", "host@one", True),
        ("graft@two", "host@two", True),
    ]
    assert summary.verdict.startswith("graft is significantly better than host in 2 of 2 comparisons")


@pytest.mark.parametrize("margin", [None, 6.0])
def test_the_same_difference_for_all_seeds(tmp_path, margin):
    summary = made_up(tmp_path, {"host": 2, "graft": 2}, metric="macro_f1", equivalence=margin)
    (comparison,) = summary.tables[0].comparisons
    assert comparison.t_test is None
    assert summary.outcome(comparison) is None
    assert comparison.words == "graft and host: +0.0 points; all seeds have the same difference, which can't be tested"


def test_a_score_that_some_seeds_lack_has_no_mean(tmp_path):
    """Studies of earlier versions have trainings without a metric whose model could not be loaded."""
    plan, folder = made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, examples=60), StudyFolder(root=tmp_path)
    for cell in plan.cells():
        if cell.arm.name == "graft" or cell.seed == 1:
            content = json.loads(folder.result(cell.id).read_text())
            content["tests"]["films"]["scores"]["bert_score"] = 0.9
            write_json(folder.result(cell.id), content)
    host, graft = summarize(plan, folder).tables[0].rows
    assert (set(host.scores), graft.scores["bert_score"]) == ({"accuracy", "macro_f1", "loss"}, pytest.approx(0.9))
