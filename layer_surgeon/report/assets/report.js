// The page can be read without this script. The script adds interactive charts that follow the theme, sorting,
// hiding columns, copying, and unfolding everything before printing.
(() => {
"use strict";
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();
// Elements in a folded part have no width, so the chart gets its share of the section's width.
const widthOf = (chart) => {
  if (chart.clientWidth) return chart.clientWidth;
  const grid = getComputedStyle(chart.closest(".panels")).getPropertyValue("--columns") || 1;
  return Math.floor((chart.closest("section").clientWidth - 32 * (grid - 1)) / grid);
};
const draw = async (chart) => {
  const width = widthOf(chart);
  drawn.get(chart)?.view?.finalize();
  const state = { width, view: null };
  drawn.set(chart, state);
  const spec = JSON.parse(chart.closest(".panel").querySelector("script").textContent);
  const result = await vegaEmbed(
    chart,
    { ...spec, width, autosize: { type: "fit-x", contains: "padding" } },
    // Use the expression interpreter, because the page's policy forbids code made from text.
    { ast: true, actions: false, renderer: "svg", defaultStyle: false, config: themes[dark.matches ? "dark" : "light"],
      tooltip: { theme: dark.matches ? "dark" : "light" } },
  );
  state.view = result.view;
};
const charts = [...document.querySelectorAll(".chart")];
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting && !drawn.has(target)) draw(target);
}, { rootMargin: "400px" });
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const state = drawn.get(target);
    if (state?.view && target.clientWidth && state.width !== target.clientWidth) draw(target);
  }
});
for (const chart of charts) {
  seen.observe(chart);
  resized.observe(chart);
}
dark.addEventListener("change", () => { for (const chart of drawn.keys()) draw(chart); });
// Draw the remaining charts in idle time, so they are there for printing; go on if one fails.
const drawRest = () => {
  const next = charts.find((chart) => !drawn.has(chart));
  if (next) draw(next).finally(() => setTimeout(drawRest, 50));
};
setTimeout(drawRest, 1500);
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.v;
    return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
  };
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });
  const sort = (head, column) => {
    const down = head.getAttribute("aria-sort") === "ascending" || (head.classList.contains("n") && !head.hasAttribute("aria-sort"));
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    // Rows without a value come last in both directions.
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return down ? compare(other, one) : compare(one, other);
    });
    body.append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, column));
    head.append(button);
  });
}
// In narrow windows, rare columns are hidden until a button shows them.
for (const table of document.querySelectorAll("table:has(th.rare)")) {
  const names = [...table.querySelectorAll("th.rare")].map((head) => head.textContent);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "more";
  const fold = (isFolded) => {
    table.classList.toggle("fewer", isFolded);
    button.setAttribute("aria-expanded", String(!isFolded));
    button.textContent = isFolded ? `Show more columns: ${names.join(", ")}` : "Show fewer columns";
  };
  fold(true);
  button.addEventListener("click", () => fold(!table.classList.contains("fewer")));
  table.closest(".scroll").after(button);
}
for (const block of document.querySelectorAll(".command")) {
  const text = block.querySelector("pre");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      // Without permission to write to the clipboard, select the text instead.
      getSelection().selectAllChildren(text);
      copied = document.execCommand("copy");
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  block.append(button);
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.place")) details.open = true;
});
})();
