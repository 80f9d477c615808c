r"""The tables of a report for a paper: a file to \input, which needs booktabs and nothing else.

The best mean of a column is bold only where it is significantly better than the reference: bold type is read as a
claim. A dagger marks what differs significantly from the reference, better or worse.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from layer_surgeon.study import report_text as say
from layer_surgeon.study.report_types import LayerSweep, Row, ShiftMatrix, StudyReport, Table
from layer_surgeon.study.verdict import say_p, say_share

# More do not fit a page's width.
_COLUMNS = 4
_HEAD = r"""% Made by surgeon report. In the preamble: \usepackage{booktabs}. Then: \input{tables}
"""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Alone in braces, so that two of them make no other sign; in babel's German a bare " is a command.
    '"': r"{\char34}",
    "'": "{'}",
    "`": "{`}",
    "-": "{-}",
    "±": r"$\pm$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def escape(text: object) -> str:
    """Text of people. What pdflatex has no letter for becomes its code there, and stays itself under the others."""
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
    parts = [_HEAD + f"% {' '.join(report.verdict.split())}"]
    for tables in _groups(report):
        parts += [_results(tables, report), _comparisons(tables, report)]
    parts += [_sweep(sweep, report) for sweep in report.sweeps]
    parts += [_shift(matrix, report) for matrix in report.shifts]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(report: StudyReport) -> Iterator[Sequence[Table]]:
    """Tables that stand beside each other: of one share, and in a domain shift of one training set."""
    key = (lambda table: (table.fraction, table.data)) if report.shifts else (lambda table: (table.fraction, ""))
    for fraction in report.fractions:
        of_share = [table for table in report.tables if table.fraction == fraction]
        for data in dict.fromkeys(key(table)[1] for table in of_share):
            tables = [table for table in of_share if key(table)[1] == data]
            for start in range(0, len(tables), _COLUMNS):
                yield tables[start : start + _COLUMNS]


def _trained_on(tables: Sequence[Table], report: StudyReport) -> str:
    """What the columns of a group have in common."""
    data = f", trained on {tables[0].data}" if report.shifts else ""
    return escape(f"{data}{say_share(tables[0].fraction)}")


def _float(columns: str, header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table; all of it is escaped already."""
    lines = [f"    {' & '.join(cells)} \\\\" for cells in rows]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"  \centering",
            f"  \\caption{{{caption}}}",
            r"  \smallskip",
            f"  \\begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {' & '.join(header)} \\\\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _results(tables: Sequence[Table], report: StudyReport) -> str:
    """Arms by test sets, as papers have them."""
    spread = ", mean and standard deviation over the seeds" if len(report.seeds) > 1 else ""
    by_arm = [{row.arm: row for row in table.rows} for table in tables]
    rows = [
        (
            escape(arm.name),
            _trained(arm.trained),
            *(_mean(rows[arm.name], report) if arm.name in rows else "--" for rows in by_arm),
        )
        for arm in report.arms
        if any(arm.name in rows for rows in by_arm)
    ]
    caption = (
        f"{escape(report.title)}: {escape(say.metric_name(report))}{spread}{_trained_on(tables, report)}. $\\dagger$: "
        f"differs significantly from {escape(report.reference)} (Holm). Bold: the best, where significantly better."
    )
    header = ["Arm", "Trained", *(escape(table.test) for table in tables)]
    return _float("l" + "r" * (len(header) - 1), header, rows, caption)


def _mean(row: Row, report: StudyReport) -> str:
    text = say.say_score(row.mean, report, 2)
    if row.best and row.verdict == "better":
        text = rf"\textbf{{{text}}}"
    if row.deviation is not None:
        text += rf" $\pm$ {say.say_score(row.deviation, report, 2)}"
    return text + (r"$^\dagger$" if row.verdict in ("better", "worse") else "")


def _trained(count: int | None) -> str:
    return "--" if count is None else say.say_count(count).replace(" ", "\\,")


def _comparisons(tables: Sequence[Table], report: StudyReport) -> str:
    rows: list[Sequence[str]] = []
    for table in tables:
        if len(tables) > 1 and table.comparisons:
            rows.append([rf"\multicolumn{{5}}{{l}}{{\emph{{{escape(table.test)}}}}}"])
        rows += [
            (
                f"{escape(entry.arm)} $-$ {escape(entry.against)}",
                _signed(say.say_gain(entry.mean, report, 2)),
                "--" if entry.interval is None else f"[{', '.join(_signed(_gain(v, report)) for v in entry.interval)}]",
                _p(entry.p_holm),
                _signed(say.say_effect(entry)) or "--",
            )
            for entry in table.comparisons
        ]
    if not rows:
        return ""
    place = escape(tables[0].test) if len(tables) == 1 else "each test set"
    unit = " in points" if report.is_share else ""
    caption = (
        f"Differences{unit} on {place}{_trained_on(tables, report)}, with 95\\,\\% intervals; $p$ is corrected by Holm "
        "over all comparisons on a test set."
    )
    return _float("lrrrr", ("Comparison", "Difference", r"95\,\%", "$p$", "Effect size"), rows, caption)


def _gain(value: float, report: StudyReport) -> str:
    return say.say_gain(value, report, 2)


def _signed(text: str) -> str:
    return f"${text}$" if text else ""


def _p(value: float | None) -> str:
    if value is None:
        return "--"
    text = say_p(value)
    return f"${text}$" if text.startswith("<") else text


def _sweep(sweep: LayerSweep, report: StudyReport) -> str:
    rows = []
    for point in sweep.points:
        mean = say.say_score(point.mean, report, 2)
        mean = rf"\textbf{{{mean}}}" if point.best and point.verdict == "better" else mean
        deviation = "--" if point.deviation is None else say.say_score(point.deviation, report, 2)
        dagger = r"$^\dagger$" if point.verdict in ("better", "worse") else ""
        rows.append((escape(point.label), mean + dagger, deviation))
    if sweep.reference is not None:
        spread = sweep.reference.deviation
        deviation = "--" if spread is None else say.say_score(spread, report, 2)
        rows.append((escape(sweep.reference.arm), say.say_score(sweep.reference.mean, report, 2), deviation))
    caption = f"{escape(sweep.donor)} in {escape(sweep.host)} by {sweep.varied}, on {escape(sweep.place)}."
    return _float("lrr", (escape(sweep.axis), escape(say.metric_name(report)), "Deviation"), rows, caption)


def _shift(matrix: ShiftMatrix, report: StudyReport) -> str:
    rows = [[escape(row[0]), *(cell or "--" for cell in row[1:])] for row in say.shift_rows(matrix, report, 2)]
    caption = (
        f"Domain shift, {escape(matrix.arm + say_share(matrix.fraction))}: {escape(say.metric_name(report))}; "
        "rows are what was trained on, columns what was tested on."
    )
    header = ["", *map(escape, matrix.tested_on)]
    return _float("l" + "r" * len(matrix.tested_on), header, rows, caption)
