r"""The tables of a report for a paper: a file to \input, which needs booktabs and nothing else.

The best mean of a column is bold only where it is significantly better than the reference: readers take bold type for a
claim. A dagger marks what differs significantly from the reference, better or worse.
"""

import unicodedata
from collections.abc import Iterator, Sequence

from layer_surgeon.report import words as say
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import LayerSweep, ShiftMatrix, layer_sweeps, place_of, shift_matrices
from layer_surgeon.study.tables import Row, Summary, Table
from layer_surgeon.study.verdict import say_p, say_share

# More do not fit a page's width.
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
    # In braces of their own, so that two of them make no other sign; in babel's German a bare " is a command.
    '"': r"{\char34}",
    "'": "{'}",
    "`": "{`}",
    "-": "{-}",
    # At the beginning of a row, LaTeX would take these for options of the line before.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def escape(text: object) -> str:
    """Text that people wrote. A letter that pdflatex does not have becomes its code there; other engines set it."""
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
    """The whole file."""
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
    """Tables that stand side by side: of one share, and of one training set if `split`."""
    keys = dict.fromkeys((table.fraction, table.data if split else "") for table in report.summary.tables)
    for fraction in report.plan.fractions:
        for key in (key for key in keys if key[0] == fraction):
            tables = [table for table in report.summary.tables if (table.fraction, table.data if split else "") == key]
            for start in range(0, len(tables), _COLUMNS):
                yield tables[start : start + _COLUMNS]


def _float(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table; all of it is escaped already."""
    import pandas as pd

    frame = pd.DataFrame([list(row) for row in rows], dtype=object)
    styler = frame.style.hide(axis="index").format(str).format_index(lambda index: header[index], axis="columns")
    text: str = styler.to_latex(
        column_format=columns, hrules=True, position="htbp", position_float="centering", caption=caption
    )
    return text.rstrip("\n")


def _results(tables: Sequence[Table], report: StudyReport, common: str) -> str:
    """Arms by test sets, as papers have them."""
    summary = report.summary
    spread = ", mean and standard deviation over the seeds" if len(report.plan.seeds) > 1 else ""
    by_arm = [{row.arm: row for row in table.rows} for table in tables]
    rows = []
    for name, arm in summary.arms.items():
        means = [_mean(own[name], t, summary) if name in own else "--" for own, t in zip(by_arm, tables, strict=True)]
        if set(means) != {"--"}:
            counts = arm.parameters
            trained = "--" if counts is None else say.say_count(counts.trained).replace(" ", "\\,")
            rows.append((escape(name), trained, *means))
    caption = (
        f"{escape(summary.title)}: {escape(say.metric_name(summary))}{spread}{common}. $\\dagger$: differs "
        f"significantly from {escape(summary.reference)} (Holm). Bold: the best, where significantly better."
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
            f"{escape(entry.arm)} $-$ {escape(entry.against)}",
            _signed(say.say_gain(entry.mean, summary, 2)),
            "--"
            if entry.interval is None
            else f"[{', '.join(_signed(say.say_gain(end, summary, 2)) for end in entry.interval)}]",
            _p(entry.p_holm),
            _signed(say.say_effect(entry)) or "--",
        )
        for table in tables
        for entry in table.comparisons
    ]
    if not rows:
        return ""
    place = "each test set" if several else escape(tables[0].test)
    unit = " in points" if summary.is_share else ""
    caption = (
        f"Differences{unit} on {place}{common}, with 95\\,\\% intervals; $p$ is corrected by Holm over all comparisons "
        "on a test set."
    )
    header = [*(["Test set"] if several else []), "Comparison", "Difference", r"95\,\%", "$p$", "Effect size"]
    return _float("l" * (2 if several else 1) + "rrrr", header, rows, caption)


def _signed(text: str) -> str:
    return f"${text}$" if text else ""


def _p(value: float | None) -> str:
    if value is None:
        return "--"
    text = say_p(value)
    return f"${text}$" if text.startswith("<") else text


def _sweep(sweep: LayerSweep, summary: Summary) -> str:
    entries = [(point.label, point.row, point.best, point.outcome) for point in sweep.points]
    if sweep.reference is not None:
        entries.append((sweep.reference.arm, sweep.reference, False, None))
    rows = [
        (
            escape(label),
            _marked(row, outcome, summary, best=best),
            "--" if row.deviation is None else say.say_score(row.deviation, summary, 2),
        )
        for label, row, best, outcome in entries
    ]
    caption = f"{escape(sweep.donor)} in {escape(sweep.host)} by {sweep.varied}, on {escape(place_of(sweep.table))}."
    return _float("lrr", (escape(sweep.axis), escape(say.metric_name(summary)), "Deviation"), rows, caption)


def _shift(shift: ShiftMatrix, summary: Summary) -> str:
    rows = [
        [escape(name), *("--" if mean is None else say.say_score(mean, summary, 2) for mean in means)]
        for name, means in zip(shift.trained_on, shift.means, strict=True)
    ]
    caption = (
        f"Domain shift, {escape(shift.arm + say_share(shift.fraction))}: {escape(say.metric_name(summary))}; rows are "
        "what was trained on, columns what was tested on."
    )
    return _float("l" + "r" * len(shift.tested_on), ["", *map(escape, shift.tested_on)], rows, caption)
