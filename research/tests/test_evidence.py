"""The evidence of made-up studies is collected, summed up and rendered."""

import functools
import itertools
import json
import math
import random
import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from jinja2 import TemplateError
from scipy import stats

from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.layout import StudyFolder, read_json
from layer_surgeon.study.records import as_json
from layer_surgeon.study.summary import summarize
from research import figures
from research.collect import pack_bits
from research.evidence import READING, Gap, correlate, correlate_given, load_plans, unpack_bits
from research.figures import draw_domains
from research.hypotheses import for_all, for_any, judge_gain, judge_gate
from research.numbers import fixed, interval_points, p_value, three_digits
from research.page import BEGIN, END, TEMPLATES, write_block
from research.tests.made_up_evidence import LITTLE, OTHER, SHIFT, SWEEP, Desk


@pytest.fixture(scope="module")
def clean_desk(tmp_path_factory):
    """For tests that change nothing: plans, one of which is trained, and its evidence, which is loaded once."""
    desk = Desk(tmp_path_factory.mktemp("desk"), LITTLE, OTHER, SWEEP, SHIFT)
    desk.train("a-gemma")
    desk.collect()
    desk.load = functools.cache(desk.load)
    return desk


@pytest.fixture
def desk(clean_desk, tmp_path):
    """A copy of it."""
    shutil.copytree(clean_desk.root, tmp_path, dirs_exist_ok=True)
    return Desk(tmp_path)


@pytest.mark.parametrize("bits", ["1", "0", "0001", "10000", "0" * 9, "1" * 1821, None])
def test_right_and_wrong_are_packed_and_unpacked(bits):
    packed = pack_bits(bits)
    assert unpack_bits(packed) == bits
    assert bits is None or len(packed) < len(bits) / 4 + 7


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "+0.3"), (-0.25, "-0.3"), (-0.04, "0.0"), (0.25 - 1e-15, "+0.3"), (1234.04, "+1234.0")]
)
def test_numbers_are_rounded_as_people_do_whatever_their_last_bits(value, text):
    assert fixed(value, sign=True) == text


def test_tables_are_the_products_own(desk):
    plan = load_plans(desk.plans)["a-gemma"]
    summary = summarize(plan, StudyFolder(root=desk.work / "a-gemma"))
    table = next(table for table in as_json(summary)["tables"] if (table["data"], table["test"]) == ("sst2", "cr"))
    comparison = next(
        comparison
        for comparison in table["comparisons"]
        if (comparison["arm"], comparison["against"]) == ("graft", "random")
    )
    low, high = (f"{100 * end:+.1f}" for end in comparison["crossed"]["interval"])
    p = f"p = {comparison['p']:.3f}, corrected {comparison['p_holm']:.3f}"
    assert desk.render("{{ gap('a-gemma', 'sst2', 'cr', 'graft', 'random') }}") == (
        f"{100 * comparison['mean']:+.1f} points ({low} to {high}; {p})"
    )
    row = next(row for row in table["rows"] if row["arm"] == "random")
    lines = desk.render("{{ scores_table('a-gemma', 'sst2', 'cr') }}").splitlines()
    assert lines[0].startswith("Trained on 30 examples of sst2 (3 steps), tested on ")
    line = next(line for line in lines if line.startswith("| `random`"))
    assert f"{100 * row['mean']:.1f} ± {100 * row['deviation']:.1f}" in line
    assert f"{100 * comparison['mean']:+.1f}" in line
    score = desk.render("{{ row('a-gemma', 'sst2', 'cr', 'random').scores.accuracy | fixed(2) }}")
    assert score == f"{row['mean']:.2f}"
    assert desk.render("{{ mean('a-gemma', 'sst2', 'cr', 'random') }}") == f"{100 * row['mean']:.1f} %"


def test_a_difference_can_be_asked_for_from_both_sides(desk):
    there, back = (
        float(desk.render(f"{{{{ gap('a-gemma', 'sst2', 'sst2', {pair}).mean | points }}}}"))
        for pair in ("'graft', 'gated'", "'gated', 'graft'")
    )
    assert there == -back < 0
    study = desk.load().study("a-gemma")
    assert study.gap("sst2", "sst2", "gated", "graft").interval[0] > 0
    assert study.gap("sst2", "sst2", "gated", "graft").p == study.gap("sst2", "sst2", "graft", "gated").p


def test_every_arm_that_is_ahead_of_the_host_is_named(desk):
    assert desk.render("{{ gains_table() }}") == "None."
    folder = StudyFolder(root=desk.work / "a-qwen")
    desk.train("a-qwen")
    for cell in load_plans(desk.plans)["a-qwen"].cells():
        if (cell.arm.name, cell.data) == ("random", "cr"):
            content = read_json(folder.result(cell.id))
            content["tests"]["sst2"] |= {"correct": "1" * 90, "scores": {"accuracy": 1.0}}
            write_json(folder.result(cell.id), content)
    desk.collect()
    _, _, *lines = desk.render("{{ gains_table() }}").splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in lines] == [["a-qwen", "cr", "sst2", "`random`"]]
    assert desk.render("{{ gap('a-qwen', 'cr', 'sst2', 'random', 'host').mean | points }}") in lines[0]


def test_a_study_under_way_has_the_seeds_that_all_arms_have(tmp_path):
    desk = Desk(tmp_path, LITTLE)
    desk.train("a-gemma", lambda cell: cell.seed < 3 and (cell.arm.name, cell.seed) != ("gated", 2))
    desk.collect()
    text = desk.render(
        "{{ scores_table('a-gemma', 'sst2', 'sst2') }}\n\n{{ missing_list() }}\n\n"
        "{{ evidence.trainings | length }}/{{ num_planned }}"
    )
    assert "1 of 3 seeds:" in text
    assert "±" not in text
    assert "(one run)" in text
    assert "1 of 3 seeds; 18 of 30 trainings, 8 of them with seeds that some arms lack" in text
    assert text.endswith("18/30")
    assert [len(gap.by_seed) for gap in desk.load().study("a-gemma").gaps("sst2", "sst2").values()] == [1] * 14


def test_contrasts_on_each_data_set_and_over_the_seeds_that_all_have(tmp_path):
    desk = Desk(tmp_path, LITTLE)

    def rows():
        desk.collect()
        lines = desk.render("{{ contrasts_table('a-gemma', (('graft', 'host'), ('graft', 'random'))) }}").splitlines()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]

    desk.train("a-gemma", lambda cell: cell.data == "sst2")
    assert [row[:2] for row in rows()] == [["sst2", "3"]]
    desk.train("a-gemma", lambda cell: cell.seed < 3)
    assert [row[:2] for row in rows()] == [["sst2", "3"], ["cr", "2"], ["mean of these, p not corrected", "2"]]
    desk.train("a-gemma")
    sst2, cr, both = rows()
    assert (both[:2], len(both)) == (["mean of these, p not corrected", "3"], 6)
    study = desk.load().study("a-gemma")
    means = [study.gap(data, data, "graft", "host").mean for data in ("sst2", "cr")]
    assert both[2].replace("**", "").startswith(f"{50 * sum(means):+.1f} (")
    assert sst2[2].replace("**", "").startswith(f"{100 * means[0]:+.1f} (")
    assert (";" in cr[3], ";" in both[3], "**" in both[2]) == (True, False, False)


def test_contrasts_say_what_is_within_the_margin_of_the_plan(tmp_path):
    desk = Desk(tmp_path, LITTLE | {"equivalence": 40})
    desk.train("a-gemma")
    desk.collect()
    head, _, sst2, _, both = desk.render("{{ contrasts_table('a-gemma', (('random', 'host'),)) }}").splitlines()
    assert "within ±40; p corrected" in head
    assert sst2.split("|")[5].strip().startswith("**yes**; ")
    assert both.split("|")[5].strip().startswith("**yes**; ")
    gap = desk.load().study("a-gemma").gap("sst2", "sst2", "graft", "random")
    assert (gap.equivalent, gap.p_equivalence > 0.05) == (False, True)


STUDIES_TO_COME = {
    "g-gemma": "| Gemma, cr | ",
    "g-qwen": "The last layer of qwen2.5-coder-1.5b-instruct:",
    "i-inside": "Expected: within the margin of permuted weights. Not shown: ",
    "k-cut-2": "| 7 | 2 layers: the accuracies of influence, last and random differ by less than 3 |",
    "k-cut-6": "| 7 | 6 layers: influence is ahead of last by more than 2 |",
    "n-steps": "## All of SST-2",
    "s-qwen": "| 4 | qwen-alone is below qwen-stack by more than 2 on sick |",
    "s-mpnet": "| 2 | mpnet-permuted is below mpnet by 0 to 2 on cr |",
}


@pytest.mark.parametrize(("study", "text"), STUDIES_TO_COME.items(), ids=STUDIES_TO_COME)
def test_a_section_for_each_study_before_it_is_run(tmp_path, study, text):
    contents = {path.stem: yaml.safe_load(path.read_text()) for path in (READING / "plans").glob("*.yaml")}
    desk = Desk(tmp_path, *contents.values())
    desk.train(study, lambda cell: cell.seed in contents[study]["seeds"][:2])
    desk.collect()
    page = desk.render((TEMPLATES / "reading.md.jinja").read_text(encoding="utf-8"))
    assert page.count(text) == 1


def test_what_was_collected_stays_and_what_is_new_is_added(desk):
    path = desk.evidence / "a-gemma.json"
    before = path.read_bytes()
    desk.collect()
    assert path.read_bytes() == before
    cells = read_json(path)["cells"]
    folder = StudyFolder(root=desk.work / "a-gemma")
    folder.result(cells[0]["id"]).unlink()
    changed = read_json(folder.result(cells[1]["id"]))
    write_json(folder.result(cells[1]["id"]), changed | {"best_epoch": 3})
    desk.collect()
    assert path.read_bytes() == before
    grown = {**yaml.safe_load((desk.plans / "a-gemma.yaml").read_text()), "seeds": [1, 2, 3, 4]}
    (desk.plans / "a-gemma.yaml").write_text(yaml.safe_dump(grown))
    desk.train("a-gemma")
    assert desk.collect() == ["a-gemma: 40 of 40 trainings, 10 of them new"]
    after = read_json(path)["cells"]
    assert [cell for cell in after if cell["seed"] < 4] == cells
    assert len(path.read_text().splitlines()) == len(before.decode().splitlines()) + 10 + 1


def test_a_file_of_another_study_is_not_written_over(desk):
    (desk.evidence / "a-gemma.json").rename(desk.evidence / "a-qwen.json")
    desk.train("a-qwen")
    with pytest.raises(ConfigError, match=r"a-qwen\.json belongs to the study a-gemma"):
        desk.collect()


def test_a_training_that_studies_share_counts_once_and_for_both(desk):
    desk.train("a-qwen", lambda cell: cell.arm.name != "host")
    desk.collect()
    evidence = desk.load()
    assert len(evidence.trainings) == 30 + 24
    assert evidence.study("a-qwen").seeds == {"sst2": (1, 2, 3), "cr": (1, 2, 3)}
    assert "host" in desk.render("{{ scores_table('a-qwen', 'cr', 'cr') }}")
    assert desk.render("{{ hours | fixed }}") == f"{54 * 0.5:.1f}"


def test_layers_are_compared_by_analysis_of_variance(desk):
    desk.train("e-gemma")
    desk.collect()
    study = desk.load().study("e-gemma")
    rows = [study.row("sst2", "sst2", f"graft+gemma-3-270m-L{layer}") for layer in range(3)]
    groups, means = [row["by_seed"] for row in rows], [row["mean"] for row in rows]
    expected = stats.f_oneway(*groups)
    assert desk.render("{{ anova('e-gemma') }}") == f"F(2, 6) = {expected.statistic:.2f}, p = {expected.pvalue:.3f}"
    sweep = study.sweep
    assert sweep.means == dict(zip("012", means, strict=True))
    assert sweep.anova["deviation"] == pytest.approx(np.mean([np.var(group, ddof=1) for group in groups]) ** 0.5)
    assert (sweep.best, sweep.last) == (str(np.argmax(means)), "2")
    assert sweep.lag == max(means) - means[2]
    assert len(desk.render("{{ sweep_table('e-gemma') }}").splitlines()) == 2 + 2 + 4


def with_gains(desk, *gains):
    """Measured loudness for the layers 0, 1 and 2: two seeds each, whose geometric mean is the given number."""
    numbers = {f"graft+gemma-3-270m-L{layer}": {"gain": [gain / 2, gain * 2]} for layer, gain in enumerate(gains)}
    (desk.measured / "layers.json").write_text(json.dumps({"sweeps": {"e-gemma": numbers}}))


def test_layers_are_shown_with_their_loudness(desk):
    desk.train("e-gemma")
    desk.collect()
    with pytest.raises(ConfigError, match="does not have e-gemma"):
        desk.render("{{ correlation('e-gemma') }}")
    with_gains(desk, 1624, 3, 0.5)
    lines = desk.render("{{ sweep_table('e-gemma') }}").splitlines()
    assert [line.split("|")[2].strip() for line in lines[4:]] == ["", "1,620", "3", "0.5"]
    expected = stats.spearmanr([3, 2, 1], list(desk.load().study("e-gemma").sweep.means.values())).statistic
    assert desk.render("{{ correlation('e-gemma') }}").startswith(f"rho = {expected:.2f}, p = ")
    assert desk.render("{{ correlation('e-gemma') }}").endswith(", 3 layers")


def test_partial_rank_correlation_is_that_of_the_residuals():
    first, second, given = np.random.default_rng(0).normal(size=(3, 12))
    second += given
    ranks = [stats.rankdata(values) for values in (first, second, given)]
    residuals = [values - np.polyval(np.polyfit(ranks[2], values, 1), ranks[2]) for values in ranks[:2]]
    result = correlate_given(first, second, given)
    assert result["rho"] == pytest.approx(np.corrcoef(residuals)[0, 1])
    assert result["p"] == pytest.approx(stats.pearsonr(*residuals).pvalue, abs=0.05)


def test_an_average_over_tables_is_taken_seed_by_seed(desk):
    desk.train("d-domains")
    desk.collect()
    evidence = desk.load()
    gap = evidence.average_gap([("d-domains", "sst2"), ("d-domains", "cr")], "graft", "host")
    assert gap.by_seed == pytest.approx(evidence.study("d-domains").domains["graft"]["own"].by_seed)
    assert gap.interval == pytest.approx(evidence.study("d-domains").domains["graft"]["own"].interval)
    assert gap.p_equivalence is None  # the plan has no margin


def test_seeds_for_a_difference_of_one_point():
    """With a standard deviation as large as the difference, ten pairs have a power of 80 % (Cohen 1988, d = 1)."""
    gap = Gap(arm="a", against="b", mean=0, interval=None, p=None, by_seed=(-0.01 / 2**0.5, 0.01 / 2**0.5))
    assert gap.seeds_for_one_point == 10
    with pytest.raises(ConfigError, match="needs differences that scatter"):
        _ = replace(gap, by_seed=(0.1,)).seeds_for_one_point


def test_an_average_needs_a_seed_that_all_tables_have(tmp_path):
    desk = Desk(tmp_path, SHIFT)
    desk.train("d-domains", lambda cell: cell.seed == (1 if cell.data == "sst2" else 2))
    desk.collect()
    with pytest.raises(ConfigError, match="No seed is in all of d-domains sst2, d-domains cr"):
        desk.load().average_gap([("d-domains", "sst2"), ("d-domains", "cr")], "graft", "host")


def test_validation_scores_of_a_training(desk):
    desk.train("d-domains")
    desk.collect()
    study = desk.load().study("d-domains")
    assert study.validation("graft", 1) == [
        epoch["accuracy"]
        for epoch in next(cell for cell in study.cells if (cell["arm"], cell["seed"]) == ("graft", 1))["history"]
    ]
    with pytest.raises(ConfigError, match="no training of graft with seed 99"):
        study.validation("graft", 99)


@pytest.mark.parametrize("seed", [0, 1])
def test_rank_correlation_is_spearmans_and_its_p_comes_from_all_orders(seed):
    draw = random.Random(seed)
    # Rounded, so that there are ties.
    first, second = ([round(draw.gauss(0, 1), 1) for _ in range(6)] for _ in range(2))
    result = correlate(first, second)
    assert result["rho"] == pytest.approx(stats.spearmanr(first, second).statistic)
    orders = [stats.spearmanr(order, second).statistic for order in itertools.permutations(first)]
    rho = result["rho"]
    tails = [sum(other <= rho + 1e-9 for other in orders), sum(other >= rho - 1e-9 for other in orders)]
    assert result["p"] == pytest.approx(min(1, 2 * min(tails) / len(orders)))


def test_domains_are_averaged_by_seed(desk):
    desk.train("d-domains")
    desk.collect()
    study = desk.load().study("d-domains")
    own, other, shift = (study.domains["graft"][kind] for kind in ("own", "other", "shift"))
    scores = [[study.row(data, data, arm)["by_seed"] for arm in ("graft", "host")] for data in ("sst2", "cr")]
    by_seed = [sum(graft[seed] - host[seed] for graft, host in scores) / 2 for seed in range(3)]
    assert own.by_seed == pytest.approx(by_seed)
    assert shift.mean == pytest.approx(other.mean - own.mean)
    half = stats.t.ppf(0.975, 2) * stats.tstd(by_seed) / math.sqrt(3)
    assert own.interval == pytest.approx((own.mean - half, own.mean + half))
    # Holm's correction, over four arms with three tests each.
    raw = stats.ttest_1samp(by_seed, 0).pvalue
    assert raw < own.p <= 12 * raw
    assert desk.render("{{ domains('d-domains').graft.own }}").startswith(f"{100 * own.mean:+.1f} points (")
    assert desk.render("{{ shift_table('d-domains', 'graft', 'host') }}").count("p ") == 4
    assert desk.render("{{ domains_table('d-domains') }}").count("| `") == 4


def test_a_selection_is_placed_in_its_sweep(desk):
    desk.train("e-gemma")
    folder = desk.train("e-gemma").root.rename(desk.work / "select-gemma")
    desk.train("e-gemma")
    load_plans(desk.plans)["e-gemma"].write(folder / "study.yaml")
    write_json(folder / "selection.json", {"format": 1, "best": "x", "layers": [1], "cost": 0.17, "path": "/somewhere"})
    assert "select-gemma: x" in desk.collect()
    assert "/somewhere" not in (desk.evidence / "select-gemma.json").read_text()
    line = desk.render("{{ selection_table('select-gemma', 'e-gemma') }}").splitlines()[-1]
    assert line.startswith("| 1 ")
    assert "of 3" in line
    assert line.endswith("17 % |")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ tabel('a-gemma', 'sst2', 'sst2') }}", "'tabel' is undefined"),
        ("{{ scores_table('a-gemma', 'sst2') }}", "missing 1 required positional argument: 'test'"),
        ("{{ scores_table('a-gemma', 'sst2', 'cola') }}", "no table for sst2 cola"),
        ("{{ scores_table('a-qwen', 'sst2', 'sst2') }}", "no evidence for a-qwen"),
        ("{{ mean('a-gemma', 'sst2', 'sst2', 'lora') }}", "no arm lora"),
        ("{{ gap('a-gemma', 'sst2', 'sst2', 'random', 'gated') }}", "does not compare random with gated"),
        ("{{ row('a-gemma', 'sst2', 'sst2', 'host').scores.f1 }}", "no attribute 'f1'"),
        ("{{ sweep_table('a-gemma') }}", "sweeps over no layers"),
        ("{{ figure('domains') }}", "There is no figure domains"),
        ("{{ measured.loudness.a }}", "no attribute 'loudness'"),
        ("{{ has('nothing') }}", "not planned"),
        ("{{ selection_table('select-gemma', 'a-gemma') }}", "There is no selection select-gemma"),
        ("{% if has('a-qwen') %}x", "endif"),
    ],
)
def test_a_template_that_asks_for_what_is_not_there_is_an_error(clean_desk, template, message):
    with pytest.raises((ConfigError, TypeError, TemplateError), match=re.escape(message)):
        clean_desk.render(template)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if has('a-qwen') %}{{ scores_table('a-qwen', 'x', 'y') }}{% else %}none{% endif %}", "none"),
        ("{% if has('a-gemma') %}yes{% else %}{{ mean('a-qwen', 'x', 'y', 'z') }}{% endif %}", "yes"),
        ("a\n{% if has('a-gemma') %}\nb\n{% endif %}\nc", "a\nb\nc"),
        ("{{ figure('little') }}", "![text](research/figures/little.svg)"),
    ],
)
def test_sections_are_shown_where_there_is_evidence(clean_desk, template, text):
    assert clean_desk.render(template) == text


@pytest.mark.parametrize(
    ("mean", "interval", "p", "better", "harmless"),
    [
        (0.02, (0.01, 0.03), 0.01, "yes", "no"),
        (0.02, (0.001, 0.04), 0.2, "inconclusive", "no"),
        (-0.02, (-0.04, 0.009), 0.2, "no", "yes"),
        (-0.02, (-0.04, 0.011), 0.2, "inconclusive", "yes"),
        (-0.04, (-0.05, -0.03), 0.001, "no", "no"),
        (0.0, (-0.031, 0.031), 0.9, "inconclusive", "inconclusive"),
        (0.0, None, 0.9, "inconclusive", "inconclusive"),
    ],
)
def test_claims_are_judged_by_the_rules_of_the_plan(mean, interval, p, better, harmless):
    gap = Gap(arm="graft", against="host", mean=mean, interval=interval, p=p, by_seed=(mean,) * 5)
    assert judge_gain(gap) == better
    assert judge_gate(gap) == harmless


def test_a_claim_about_controls_needs_all_of_them_and_one_about_donors_needs_one():
    assert for_all(["yes", "yes"]) == for_any(["no", "yes"]) == "yes"
    assert for_all(["inconclusive", "no"]) == for_any(["no", "no"]) == "no"
    assert (
        for_all(["yes", "inconclusive"]) == for_any(["no", "inconclusive"]) == for_any(["no", None]) == "inconclusive"
    )


def test_every_hypothesis_has_its_line(tmp_path):
    desk = Desk(
        tmp_path, LITTLE | {"arms": [*LITTLE["arms"], "projections-only", "donor-trained"]}, OTHER, SWEEP, SHIFT
    )
    desk.train("a-gemma")
    desk.collect()
    lines = desk.render("{{ hypotheses_table() }}").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["H1", "H2", "H3", "H4", "H5", "H6", "", "H7"]
    gap = desk.load().study("a-gemma").gap("sst2", "sst2", "graft", "host")
    assert f"{100 * gap.mean:+.1f} (" in lines[2]
    assert lines[2].rstrip(" |").endswith("inconclusive")
    assert all("not run" in line for line in lines[2:])
    desk.train("e-gemma")
    desk.train("d-domains")
    desk.collect()
    lines = desk.render("{{ hypotheses_table() }}").splitlines()
    assert "F(2, 6)" in lines[7]
    assert lines[6].rstrip(" |").endswith("no")


def test_other_measurements_are_shown(desk):
    content = {"start": {"gemma": {"graft": {"rms_host": 0.23, "rms_inside": 0.1, "rms_added": 384.2, "loss": 25.0}}}}
    (desk.measured / "loudness.json").write_text(json.dumps(content))
    assert "384" in desk.render("{{ loudness_table() }}")
    assert desk.render("{{ measured.loudness.start.gemma.graft.rms_added | three_digits }}") == "384"
    with pytest.raises(TemplateError, match="no attribute 'nothing'"):
        desk.render("{{ measured.loudness.start.nothing }}")


def test_costs_are_shown(desk):
    row = {
        "host": "small",
        "donor": "large",
        "arm": "graft",
        "parameters_total": 29_000_000,
        "parameters_trained": 23_200_000,
        "macs": 34e9,
        "macs_training": 98.04e9,
        "disk_bytes_trained": 93e6,
        "disk_bytes_donor": 22e6,
        "step_seconds_100": 1.234,
        "step_ratio_100": 1.5,
        "step_ratio_100_range": [1.4, 1.6],
        "peak_memory_bytes": 800e6,
    }
    host = row | {"arm": "host", "disk_bytes_donor": None}
    (desk.measured / "efficiency.json").write_text(json.dumps({"rows": [row, host]}))
    graft, alone = desk.render("{{ efficiency_table() }}").splitlines()[2:]
    cells = [cell.strip() for cell in graft.split("|")[1:-1]]
    costs = ["23.2 M", "29 M", "34.0", "98.0", "1.23 s", "1.50 (1.40 to 1.60)", "800 MB", "115 MB"]
    assert cells == ["`graft`, small, large", *costs]
    assert alone.rstrip(" |").endswith(" 93 MB")


def test_prices_are_those_of_the_counted_arms(desk, monkeypatch):
    desk.train("d-domains")
    desk.collect()
    with pytest.raises(ConfigError, match="The costs of d-domains were not counted"):
        desk.render("{{ price_table('d-domains') }}")
    arms = ("wide-head", "random", "host", "graft", "gated")
    rows = [
        {
            "study": "d-domains",
            "arm": arm,
            "parameters_total": 29_000_000,
            "parameters_trained": 23_200_000,
            "macs": 1e8 * number,
            "macs_training": 3e8,
            "disk_bytes": 115e6,
        }
        for number, arm in enumerate(arms, start=1)
    ]
    (desk.measured / "costs.json").write_text(json.dumps({"rows": rows}))
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in desk.render("{{ price_table('d-domains') }}").splitlines()[2:]
    ]
    assert [line[0] for line in lines] == [f"`{arm}`" for arm in arms]
    assert lines[0][3:] == ["0.10", "29 M", "23.2 M", "0.30", "1 s of 1800 s", "115 MB"]
    for column, data in enumerate(("sst2", "cr"), start=1):
        assert f"{data}, % (3 seeds)" in desk.render("{{ price_table('d-domains') }}").splitlines()[0]
        mean = desk.load().study("d-domains").row(data, data, "wide-head")["mean"]
        assert lines[0][column].startswith(f"{100 * mean:.1f} (")
    monkeypatch.setattr(figures, "PRICED", ("d-domains", "d-domains"))
    drawn = figures.draw_prices(desk.load())
    assert list(drawn) == ["price-sst2", "price-cr"]
    assert all(figures.ARM_LABELS.get(arm, arm) in drawn["price-sst2"].text for arm in arms)
    assert "GMACs per text" in drawn["price-sst2"].svg()


def test_a_figure_is_a_file_of_its_own_that_shows_the_evidence(desk):
    desk.train("d-domains")
    desk.collect()
    figure = draw_domains(desk.load())
    svg = figure.svg()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert figure.stamp in svg
    assert figure.stamp == draw_domains(desk.load()).stamp
    gap = desk.load().study("d-domains").domains["graft"]["own"]
    assert f"graft, own domain {100 * gap.mean:+.1f};" in figure.text
    (rows,) = [rows for rows in figure.chart.to_dict()["datasets"].values() if "label" in rows[0]]
    values = [100 * gap.mean, *(100 * end for end in gap.interval)]
    assert [rows[0][name] for name in ("mean", "low", "high")] == pytest.approx(values, abs=1e-4)
    assert [row["significant"] for row in rows[:2]] == [gap.significant, True]
    path = desk.evidence / "d-domains.json"
    pattern = r'"scores": {"accuracy": [\d.]+}'
    path.write_text(re.sub(pattern, '"scores": {"accuracy": 0.123}', path.read_text(), count=1))
    assert draw_domains(desk.load()).stamp != figure.stamp


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (three_digits(0.06533), "0.0653"),
        (three_digits(1624), "1,620"),
        (interval_points((-0.06, -0.0224)), "-6.0 to -2.2"),
        (interval_points(None), "one run"),
        (p_value(0.0009), "p < 0.001"),
        (p_value(0.0491), "p = 0.049"),
        (p_value(None), "no test"),
    ],
)
def test_numbers_are_shown_in_one_way(text, expected):
    assert text == expected


def test_the_block_is_put_between_its_marks():
    readme = f"# x\n{BEGIN}\nold\n{END}\nrest"
    assert write_block(readme, "new\n") == f"# x\n{BEGIN}\nnew\n{END}\nrest"
    with pytest.raises(ConfigError, match=r"README\.md has no"):
        write_block("# x", "new")
    with pytest.raises(ConfigError, match=r"README\.md has no"):
        write_block(f"# x\n{BEGIN}\n", "new")
