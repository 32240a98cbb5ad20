"use strict";
// A click on a heading sorts its table by that column: numbers by their exact values, the rest as text; again: backwards.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const column = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const order = (a, b) =>
      typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    rows.sort((a, b) => (down ? -1 : 1) * order(a[0], b[0]));
    body.append(...rows.map((pair) => pair[1]));
  });
}
