"use strict";
// A heading's button sorts the rows of its table: first down for figures, up for names, then back.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const figures = head.classList.contains("figure");
      const before = head.getAttribute("aria-sort");
      const first = figures ? "descending" : "ascending";
      const other = figures ? "ascending" : "descending";
      const order = before === first ? other : first;
      for (const each of heads) if (each.hasAttribute("aria-sort")) each.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const value = (row) => {
        const cell = row.cells[column];
        return figures ? Number(cell.dataset.value) : cell.textContent;
      };
      const compare = (a, b) =>
        figures ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true });
      const rows = [...table.tBodies[0].rows].sort(compare);
      if (order === "descending") rows.reverse();
      table.tBodies[0].append(...rows);
    });
  }
}
