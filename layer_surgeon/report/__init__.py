"""Show a study: a typed summary in, one page, Markdown, CSV, LaTeX and pictures out.

load        `load_report`: a study's folder -> what a report shows
series      layers, costs, domain shift and learning, from the summary and the cells
words       numbers as they are said; cells: the tables of the page and the Markdown
encodings   what charts share; charts, line_charts: the charts, in Altair
figures     which chart shows what; curve_figures: those of lines; figure_style: what they share
render      the page and the Markdown, from templates
latex, csv_files, pictures    the other formats
export      `write_report`: the files
"""
