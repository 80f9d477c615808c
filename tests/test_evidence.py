"""How the evidence is collected, summed up and put into words, on made-up studies."""

import itertools
import json
import math
import random

import pytest
import yaml
from scipy import stats

from benchmarks.evidence import BEGIN, END, put_block
from benchmarks.evidence_facts import Gap
from benchmarks.evidence_figures import figures
from benchmarks.evidence_layers import correlate
from benchmarks.evidence_store import pack_bits, plans, unpack_bits
from benchmarks.evidence_text import fixed
from benchmarks.evidence_verdicts import UNKNOWN, for_one, judge, judge_gate, together
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.layout import StudyFolder, read_json, write_json
from layer_surgeon.study.summary import summarize
from tests.support.evidence import LITTLE, OTHER, SHIFT, SWEEP, Desk


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path, LITTLE, OTHER, SWEEP, SHIFT)
    desk.train("a-gemma")
    desk.collect()
    return desk


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
    plan = plans(desk.plans)["a-gemma"]
    summary = summarize(plan, StudyFolder(root=desk.work / "a-gemma"))
    table = next(table for table in summary.tables if (table.data, table.test) == ("sst2", "cr"))
    entry = next(entry for entry in table.comparisons if (entry.arm, entry.against) == ("graft", "random"))
    low, high = (f"{100 * end:+.1f}" for end in entry.crossed.interval)
    p = "p < 0.001" if entry.p_holm < 0.001 else f"p = {entry.p_holm:.3f}"
    assert desk.render("{{diff a-gemma sst2 cr graft random}}") == (
        f"{100 * entry.mean:+.1f} points ({low} to {high}; {p})"
    )
    row = next(row for row in table.rows if row.arm == "random")
    line = next(line for line in desk.render("{{table a-gemma sst2 cr}}").splitlines() if line.startswith("| `random`"))
    assert f"{100 * row.mean:.1f} ± {100 * row.deviation:.1f}" in line
    assert f"{100 * entry.mean:+.1f}" in line
    assert desk.render("{{score a-gemma sst2 cr random accuracy}}") == f"{row.mean:.2f}"
    assert desk.render("{{mean a-gemma sst2 cr random}}") == f"{100 * row.mean:.1f} %"


def test_a_difference_can_be_asked_for_from_both_sides(desk):
    there, back = (
        float(desk.render(f"{{{{points a-gemma sst2 sst2 {pair}}}}}")) for pair in ("graft gated", "gated graft")
    )
    assert there == -back < 0
    assert desk.load().study("a-gemma").gap("sst2", "sst2", "gated", "graft").interval[0] > 0
    assert desk.render("{{p a-gemma sst2 sst2 gated graft}}") == desk.render("{{p a-gemma sst2 sst2 graft gated}}")


def test_every_arm_that_is_ahead_of_the_host_is_named(desk):
    assert desk.render("{{ahead}}") == "None."
    folder = StudyFolder(root=desk.work / "a-qwen")
    desk.train("a-qwen")
    for cell in plans(desk.plans)["a-qwen"].cells():
        if (cell.arm.name, cell.data) == ("random", "cr"):
            content = read_json(folder.result(cell.id))
            content["tests"]["sst2"] |= {"correct": "1" * 90, "scores": {"accuracy": 1.0}}
            write_json(folder.result(cell.id), content)
    desk.collect()
    _, _, *lines = desk.render("{{ahead}}").splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in lines] == [["a-qwen", "cr", "sst2", "`random`"]]
    assert desk.render("{{points a-qwen cr sst2 random host}}") in lines[0]


def test_a_study_under_way_has_the_seeds_that_all_arms_have(tmp_path):
    desk = Desk(tmp_path, LITTLE)
    desk.train("a-gemma", lambda cell: cell.seed < 3 and (cell.arm.name, cell.seed) != ("gated", 2))
    desk.collect()
    text = desk.render(
        "{{table a-gemma sst2 sst2}}\n\n{{missing}}\n\n{{runs}}/{{planned}}/{{runs a-gemma}}, {{seeds a-gemma}}"
    )
    assert "1 of 3 seeds:" in text
    assert "±" not in text
    assert "(one run)" in text
    assert "18 of 30 trainings, 8 of them of seeds that not all arms have" in text
    assert "18/30/18, 1 of 3 seeds" in text
    assert "figure" not in desk.render("{{#if a-gemma}}{{figure little}}{{/if}}")


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
    told = desk.collect()
    assert told == ["a-gemma: 40 of 40 trainings, 10 of them new"]
    after = read_json(path)["cells"]
    assert [cell for cell in after if cell["seed"] < 4] == cells
    assert len(path.read_text().splitlines()) == len(before.decode().splitlines()) + 10 + 1


def test_a_file_of_another_study_is_not_written_over(desk):
    (desk.evidence / "a-gemma.json").rename(desk.evidence / "a-qwen.json")
    desk.train("a-qwen")
    with pytest.raises(ConfigError, match=r"a-qwen\.json is of the study a-gemma"):
        desk.collect()


def test_a_training_that_studies_share_counts_once_and_for_both(desk):
    desk.train("a-qwen", lambda cell: cell.arm.name != "host")
    desk.collect()
    evidence = desk.load()
    assert len(evidence.trainings) == 30 + 24
    assert evidence.study("a-qwen").seeds == {"sst2": (1, 2, 3), "cr": (1, 2, 3)}
    assert "host" in desk.render("{{table a-qwen cr cr}}")
    assert desk.render("{{hours}}") == f"{54 * 0.5:.1f} hours"


def test_layers_are_compared_by_analysis_of_variance(desk):
    desk.train("e-gemma")
    desk.collect()
    sweep = desk.load().study("e-gemma").sweep()
    assert [point.label for point in sweep.points] == ["0", "1", "2"]
    found = stats.f_oneway(*(point.row.by_seed for point in sweep.points))
    assert desk.render("{{anova e-gemma}}") == f"F(2, 6) = {found.statistic:.2f}, p = {found.pvalue:.3f}"
    best = max(sweep.points, key=lambda point: point.row.mean)
    assert desk.render("{{best e-gemma}}; {{last e-gemma}}; {{behind e-gemma}}") == (
        f"layer {best.label} ({100 * best.row.mean:.1f} %); layer 2 ({100 * sweep.points[2].row.mean:.1f} %); "
        f"{100 * (best.row.mean - sweep.points[2].row.mean):.1f} points"
    )
    assert len(desk.render("{{sweep e-gemma}}").splitlines()) == 2 + 2 + 4


def with_gains(desk, *gains):
    """Measured loudness for the layers 0, 1 and 2: two seeds each, whose geometric mean is the given number."""
    numbers = {f"graft+gemma-3-270m-L{layer}": {"gain": [gain / 2, gain * 2]} for layer, gain in enumerate(gains)}
    (desk.results / "layers.json").write_text(json.dumps({"sweeps": {"e-gemma": numbers}}))


def test_layers_are_told_with_their_loudness(desk):
    desk.train("e-gemma")
    desk.collect()
    with pytest.raises(ConfigError, match="does not have e-gemma"):
        desk.render("{{rank e-gemma}}")
    with_gains(desk, 1624, 3, 0.5)
    told = desk.render("{{sweep e-gemma}}").splitlines()
    assert [line.split("|")[2].strip() for line in told[4:]] == ["", "1,620", "3", "0.5"]
    means = [point.row.mean for point in desk.load().study("e-gemma").sweep().points]
    expected = stats.spearmanr([3, 2, 1], means).statistic
    assert desk.render("{{rank e-gemma}}").startswith(f"rho = {expected:.2f}, p = ")
    assert desk.render("{{rank e-gemma}}").endswith(", 3 layers")
    assert "Gemma 0 (adds 1,620 times its input)" in figures(desk.load())["layers"][1]


@pytest.mark.parametrize("seed", [0, 1])
def test_rank_correlation_is_spearmans_and_its_p_comes_of_all_orders(seed):
    draw = random.Random(seed)
    # Rounded, so that there are ties.
    first, second = ([round(draw.gauss(0, 1), 1) for _ in range(6)] for _ in range(2))
    found = correlate(first, second)
    assert found.rho == pytest.approx(stats.spearmanr(first, second).statistic)
    orders = [stats.spearmanr(order, second).statistic for order in itertools.permutations(first)]
    tails = [sum(other <= found.rho + 1e-9 for other in orders), sum(other >= found.rho - 1e-9 for other in orders)]
    assert found.p == pytest.approx(min(1, 2 * min(tails) / len(orders)))


def test_domains_are_averaged_by_seed(desk):
    desk.train("d-domains")
    desk.collect()
    study = desk.load().study("d-domains")
    own, other, shift = study.domains()["graft"]
    tables = [study.table("sst2", "sst2"), study.table("cr", "cr")]
    rows = [{row.arm: row.by_seed for row in table.rows} for table in tables]
    by_seed = [sum(row["graft"][at] - row["host"][at] for row in rows) / 2 for at in range(3)]
    assert own.by_seed == pytest.approx(by_seed)
    assert shift.mean == pytest.approx(other.mean - own.mean)
    half = stats.t.ppf(0.975, 2) * stats.tstd(by_seed) / math.sqrt(3)
    assert own.interval == pytest.approx((own.mean - half, own.mean + half))
    # Holm's correction, over four arms with three tests each.
    raw = stats.ttest_1samp(by_seed, 0).pvalue
    assert raw < own.p <= 12 * raw
    assert desk.render("{{domain d-domains graft own}}").startswith(f"{100 * own.mean:+.1f} points (")
    assert desk.render("{{shift d-domains graft host}}").count("p ") == 4
    assert desk.render("{{domains d-domains}}").count("| `") == 4


def test_a_selection_is_placed_in_its_sweep(desk):
    desk.train("e-gemma")
    folder = desk.train("e-gemma").root.rename(desk.work / "select-gemma")
    desk.train("e-gemma")
    plans(desk.plans)["e-gemma"].write(folder / "study.yaml")
    write_json(folder / "selection.json", {"format": 1, "best": "x", "layers": [1], "cost": 0.17, "path": "/somewhere"})
    assert "select-gemma: x" in desk.collect()
    assert "/somewhere" not in (desk.evidence / "select-gemma.json").read_text()
    line = desk.render("{{selection select-gemma e-gemma}}").splitlines()[-1]
    assert line.startswith("| 1 ")
    assert "of 3" in line
    assert line.endswith("17 % |")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{tabel a-gemma sst2 sst2}}", "no such directive"),
        ("{{table a-gemma sst2}}", "missing a required argument: 'test'"),
        ("{{table a-gemma sst2 cola}}", "no table for sst2 cola"),
        ("{{table a-qwen sst2 sst2}}", "no evidence for a-qwen"),
        ("{{mean a-gemma sst2 sst2 lora}}", "no arm lora"),
        ("{{diff a-gemma sst2 sst2 random gated}}", "does not compare random with gated"),
        ("{{score a-gemma sst2 sst2 host f1}}", "has no f1 there"),
        ("{{sweep a-gemma}}", "sweeps over no layers"),
        ("{{figure domains}}", "can't be drawn yet"),
        ("{{efficiency}}", "is not there"),
        ("{{value loudness a}}", "is not there"),
        ("{{planned nothing}}", "not planned"),
        ("{{#if nothing}}x{{/if}}", "nothing is not planned"),
        ("{{#if a-qwen}}{{tabel}}{{/if}}", "no such directive"),
        ("{{#if a-qwen}}x", "no {{/if}}"),
        ("x{{/if}}", "without an {{#if}}"),
    ],
)
def test_what_can_not_be_said_is_an_error(desk, template, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{").replace("}", r"\}").replace("(", r"\(")):
        desk.render(template)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{#if a-qwen}}{{table a-qwen x y}}{{else}}none{{/if}}", "none"),
        ("{{#if a-gemma}}yes{{else}}{{mean a-qwen x y z}}{{/if}}", "yes"),
        ("a\n\n{{#if a-qwen}}\nb\n{{/if}}\n\nc", "a\n\nc"),
        ("a\n{{#if a-gemma}}\nb\n{{#if a-qwen}}\nc\n{{else}}\nd\n{{/if}}\n{{/if}}\ne", "a\nb\nd\ne"),
        ("{{#if a-gemma a-qwen}}both{{else}}not both{{/if}}", "not both"),
        ("{{#if loudness}}loud{{/if}}{{#if select-gemma}}selected{{/if}}", ""),
        ("{{#if a-qwen}}{{#if a-gemma}}{{mean a-qwen x y z}}{{/if}}{{/if}}", ""),
    ],
)
def test_sections_are_there_where_what_they_are_about_is(desk, template, text):
    assert desk.render(template) == text


@pytest.mark.parametrize(
    ("mean", "interval", "p", "better", "harmless"),
    [
        (0.02, (0.01, 0.03), 0.01, "yes", "no"),
        (0.02, (0.001, 0.04), 0.2, "can't be told", "no"),
        (-0.02, (-0.04, 0.009), 0.2, "no", "yes"),
        (-0.02, (-0.04, 0.011), 0.2, "can't be told", "yes"),
        (-0.04, (-0.05, -0.03), 0.001, "no", "no"),
        (0.0, (-0.031, 0.031), 0.9, "can't be told", "can't be told"),
        (0.0, None, 0.9, "can't be told", "can't be told"),
    ],
)
def test_claims_are_judged_by_the_rules_of_the_plan(mean, interval, p, better, harmless):
    gap = Gap(arm="graft", against="host", mean=mean, interval=interval, p=p, seeds=5, by_seed=(mean,) * 5)
    assert judge(gap) == better
    assert judge_gate(gap) == harmless


def test_a_claim_about_controls_needs_all_of_them_and_one_about_donors_needs_one():
    assert [together(two) for two in (("yes", "yes"), ("yes", UNKNOWN), (UNKNOWN, "no"))] == ["yes", UNKNOWN, "no"]
    assert [for_one(two) for two in (("no", "yes"), ("no", UNKNOWN), ("no", None), ("no", "no"))] == [
        "yes",
        UNKNOWN,
        UNKNOWN,
        "no",
    ]


def test_every_hypothesis_has_its_line(tmp_path):
    desk = Desk(
        tmp_path, LITTLE | {"arms": [*LITTLE["arms"], "projections-only", "donor-trained"]}, OTHER, SWEEP, SHIFT
    )
    desk.train("a-gemma")
    desk.collect()
    lines = desk.render("{{hypotheses}}").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["H1", "H2", "H3", "H4", "H5", "H6", "", "H7"]
    gap = desk.load().study("a-gemma").gap("sst2", "sst2", "graft", "host")
    assert f"{100 * gap.mean:+.1f} (" in lines[2]
    assert lines[2].rstrip(" |").endswith("can't be told")
    assert all("not run" in line for line in lines[2:])
    desk.train("e-gemma")
    desk.train("d-domains")
    desk.collect()
    lines = desk.render("{{hypotheses}}").splitlines()
    assert "F(2, 6)" in lines[7]
    assert lines[6].rstrip(" |").endswith("no")


def test_what_others_measured_is_said(desk):
    content = {"start": {"gemma": {"graft": {"rms_host": 0.23, "rms_inside": 0.1, "rms_added": 384.2, "loss": 25.0}}}}
    (desk.results / "loudness.json").write_text(json.dumps(content))
    assert "384" in desk.render("{{loudness}}")
    assert desk.render("{{value loudness start/gemma/graft/rms_added}}") == "384"
    with pytest.raises(ConfigError, match="has no nothing there"):
        desk.render("{{value loudness start/nothing}}")


def test_costs_are_said(desk):
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
    (desk.results / "efficiency.json").write_text(json.dumps({"rows": [row, host]}))
    graft, alone = desk.render("{{efficiency}}").splitlines()[2:]
    said = [cell.strip() for cell in graft.split("|")[1:-1]]
    assert said == [
        *(
            "`graft`, small, large",
            "23.2 M",
            "29 M",
            "34.0",
            "98.0",
            "1.23 s",
            "1.50 (1.40 to 1.60)",
            "800 MB",
            "115 MB",
        ),
    ]
    assert alone.rstrip(" |").endswith(" 93 MB")


def test_figures_are_files_of_their_own(desk):
    desk.train("e-gemma")
    desk.train("d-domains")
    desk.collect()
    evidence = desk.load()
    drawn = figures(evidence)
    assert list(drawn) == ["little", "sweep", "domains"]
    for svg, text in drawn.values():
        assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        assert 'fill="#fff"' in svg
        assert "var(" not in svg
        assert "[" not in text
    assert drawn == figures(desk.load())
    gap = evidence.study("a-gemma").gap("sst2", "sst2", "graft", "host")
    assert f"graft, Gemma {100 * gap.mean:+.1f}" in drawn["little"][1]


def test_the_block_is_put_between_its_marks():
    readme = f"# x\n{BEGIN}\nold\n{END}\nrest"
    assert put_block(readme, "new\n") == f"# x\n{BEGIN}\nnew\n{END}\nrest"
    with pytest.raises(ConfigError, match=r"README\.md has no"):
        put_block("# x", "new")
    with pytest.raises(ConfigError, match=r"README\.md has no"):
        put_block(f"# x\n{BEGIN}\n", "new")
