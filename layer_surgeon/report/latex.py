r"""The tables of a report for a paper: a file for \input, which only needs booktabs.

The best mean of a column is bold only if it is significantly better than the reference, because readers understand bold
type as a claim. A dagger marks every significant difference to the reference, better or worse.
"""

import unicodedata
from collections.abc import Iterator, Sequence

from layer_surgeon.report import words as say
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import LayerSweep, ShiftMatrix, layer_sweeps, place_of, shift_matrices
from layer_surgeon.study.tables import Row, Summary, Table
from layer_surgeon.study.verdict import say_p, say_share

# More columns don't fit the width of a page.
_COLUMNS = 4
_DAGGER = r"$^\dagger$"
_HEAD = r"""% Made by surgeon report. In the preamble: \usepackage{booktabs}. Then: \input{tables}
"""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # In braces, because LaTeX combines two such characters into another one. In babel's German, " is a command.
    '"': r"{\char34}",
    "'": "{'}",
    "`": "{`}",
    "-": "{-}",
    # At the start of a row, LaTeX would read these as options of the previous row's line break.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def escape(text: object) -> str:
    """Escape text from users. pdflatex shows the code of a letter that it doesn't support; other engines show it."""
    return "".join(map(_character, " ".join(str(text).split())))


def _character(char: str) -> str:
    if char in _SPECIAL:
        return _SPECIAL[char]
    if char.isascii():
        return char if char.isprintable() else ""
    if char <= "\u017f" and unicodedata.normalize("NFD", char)[0].isascii():
        return char
    return rf"\ifdefined\Umathchar {char}\else{{}}U+{ord(char):04X}\fi{{}}"


def latex(report: StudyReport) -> str:
    """Return the content of the file."""
    summary = report.summary
    shifts = shift_matrices(summary, report.plan)
    parts = [_HEAD + f"% {' '.join(summary.verdict.split())}"]
    for tables in _groups(report, split=bool(shifts)):
        common = f", trained on {tables[0].data}" if shifts else ""
        common = escape(f"{common}{say_share(tables[0].fraction)}")
        parts += [_results(tables, report, common), _comparisons(tables, summary, common)]
    parts += [_sweep(sweep, summary) for sweep in layer_sweeps(summary, report.plan)]
    parts += [_shift(shift, summary) for shift in shifts]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(report: StudyReport, *, split: bool) -> Iterator[Sequence[Table]]:
    """Yield groups of tables that share a float: those of the same share and, if `split`, of the same training set."""
    keys = dict.fromkeys((table.fraction, table.data if split else "") for table in report.summary.tables)
    for fraction in report.plan.fractions:
        for key in (key for key in keys if key[0] == fraction):
            tables = [table for table in report.summary.tables if (table.fraction, table.data if split else "") == key]
            for start in range(0, len(tables), _COLUMNS):
                yield tables[start : start + _COLUMNS]


def _float(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a LaTeX table; all texts are already escaped."""
    import pandas as pd

    frame = pd.DataFrame([list(row) for row in rows], dtype=object)
    styler = frame.style.hide(axis="index").format(str).format_index(lambda index: header[index], axis="columns")
    text: str = styler.to_latex(
        column_format=columns, hrules=True, position="htbp", position_float="centering", caption=caption
    )
    return text.rstrip("\n")


def _results(tables: Sequence[Table], report: StudyReport, common: str) -> str:
    """Return a table with a row per arm and a column per test set, as in papers."""
    summary = report.summary
    spread = ", mean and standard deviation over the seeds" if len(report.plan.seeds) > 1 else ""
    by_arm = [{row.arm: row for row in table.rows} for table in tables]
    rows = []
    for name, arm in summary.arms.items():
        means = [
            _mean(arm_rows[name], table, summary) if name in arm_rows else "--"
            for arm_rows, table in zip(by_arm, tables, strict=True)
        ]
        if set(means) != {"--"}:
            counts = arm.parameters
            trained = "--" if counts is None else say.say_count(counts.trained).replace(" ", "\\,")
            rows.append((escape(name), trained, *means))
    caption = (
        f"{escape(summary.title)}: {escape(say.metric_name(summary))}{spread}{common}. $\\dagger$: differs "
        f"significantly from {escape(summary.reference)} (Holm). Bold: the best, if significantly better."
    )
    header = ["Arm", "Trained", *(escape(table.test) for table in tables)]
    return _float("l" + "r" * (len(header) - 1), header, rows, caption)


def _mean(row: Row, table: Table, summary: Summary) -> str:
    outcome = summary.outcome(summary.against_reference(table, row.arm))
    text = _marked(row, outcome, summary, best=row.mean == summary.best(table.rows), dagger="")
    if row.deviation is not None:
        text += rf" $\pm$ {say.say_score(row.deviation, summary, 2)}"
    return text + (_DAGGER if outcome in ("better", "worse") else "")


def _marked(row: Row, outcome: str | None, summary: Summary, *, best: bool, dagger: str = _DAGGER) -> str:
    text = say.say_score(row.mean, summary, 2)
    text = rf"\textbf{{{text}}}" if best and outcome == "better" else text
    return text + (dagger if outcome in ("better", "worse") else "")


def _comparisons(tables: Sequence[Table], summary: Summary, common: str) -> str:
    several = len(tables) > 1
    rows = [
        (
            *([escape(table.test)] if several else []),
            f"{escape(comparison.arm)} $-$ {escape(comparison.against)}",
            _signed(say.say_gain(comparison.mean, summary, 2)),
            "--"
            if comparison.interval is None
            else f"[{', '.join(_signed(say.say_gain(end, summary, 2)) for end in comparison.interval)}]",
            _p(comparison.p),
            _p(comparison.p_holm),
            _signed(say.say_effect(comparison)) or "--",
        )
        for table in tables
        for comparison in table.comparisons
    ]
    if not rows:
        return ""
    test_text = "each test set" if several else escape(tables[0].test)
    unit = " in points" if summary.is_share else ""
    caption = (
        f"Differences{unit} on {test_text}{common}, with 95\\,\\% intervals. $p_H$ is $p$ after Holm's correction over "
        "all comparisons on a test set."
    )
    header = [*(["Test set"] if several else []), "Comparison", "Difference", r"95\,\%", "$p$", "$p_H$", "Effect size"]
    return _float("l" * (2 if several else 1) + "rrrrr", header, rows, caption)


def _signed(text: str) -> str:
    return f"${text}$" if text else ""


def _p(value: float | None) -> str:
    if value is None:
        return "--"
    text = say_p(value)
    return f"${text}$" if text.startswith("<") else text


def _sweep(sweep: LayerSweep, summary: Summary) -> str:
    labelled_rows = [(point.label, point.row, point.best, point.outcome) for point in sweep.points]
    if sweep.reference is not None:
        labelled_rows.append((sweep.reference.arm, sweep.reference, False, None))
    rows = [
        (
            escape(label),
            _marked(row, outcome, summary, best=best),
            "--" if row.deviation is None else say.say_score(row.deviation, summary, 2),
        )
        for label, row, best, outcome in labelled_rows
    ]
    caption = f"{escape(sweep.donor)} in {escape(sweep.host)} by {sweep.varied}, on {escape(place_of(sweep.table))}."
    return _float("lrr", (escape(sweep.axis), escape(say.metric_name(summary)), "Deviation"), rows, caption)


def _shift(shift: ShiftMatrix, summary: Summary) -> str:
    rows = [
        [escape(name), *("--" if mean is None else say.say_score(mean, summary, 2) for mean in means)]
        for name, means in zip(shift.trained_on, shift.means, strict=True)
    ]
    caption = (
        f"Domain shift, {escape(shift.arm + say_share(shift.fraction))}: {escape(say.metric_name(summary))}. Rows are "
        "training sets, columns are test sets."
    )
    return _float("l" + "r" * len(shift.tested_on), ["", *map(escape, shift.tested_on)], rows, caption)
