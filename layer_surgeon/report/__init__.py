"""Show a study: turns a typed summary into a page, Markdown, CSV, LaTeX and pictures.

load        `load_report`: a study's folder -> the content of a report
series      layer sweeps, domain shift and learning curves, from the summary and the cells
words       numbers as text; cells: the tables of the page and the Markdown
encodings   parts that charts share; charts, line_charts: the charts, in Altair
figures     content -> figures; curve_figures: the line plots; figure_style: the style that figures share
render      the page and the Markdown, from templates
latex, csv_files, pictures    the other formats
export      `write_report`: writes the files
"""
