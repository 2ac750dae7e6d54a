
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);

  // ── one comparison at a time, or all; without this script all are shown ──
  const choice = one("[data-switch]");
  const choices = all("input", choice);
  const show = (value) => {
    for (const input of choices) input.checked = input.value === value;
    for (const panel of all("[data-panel]")) panel.hidden = value !== "all" && panel.dataset.panel !== value;
  };
  if (choices.length > 2) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => {
      // What is read stays in view: sections above it may have grown or shrunk.
      const section = all("section.axis").find((s) => s.getBoundingClientRect().bottom > 120);
      const before = section ? section.getBoundingClientRect().top : 0;
      show(event.target.value);
      if (before < 0) {
        window.scrollBy({ top: section.getBoundingClientRect().top - before, behavior: "instant" });
      }
      event.target.closest("label").scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    });
    show((choices.find((input) => input.checked) || choices[0]).value);
  }

  // ── a link to a number shows the comparison that it is of; all ids are plain ASCII ──
  const follow = () => {
    const target = document.getElementById(location.hash.slice(1));
    const panel = target && target.closest("[data-panel]");
    if (!panel) return;
    if (panel.hidden) show(panel.dataset.panel);
    target.scrollIntoView({ block: "center" });
    target.focus({ preventScroll: true });
  };
  window.addEventListener("hashchange", follow);
  follow();

  // ── the table: models in the order of a measure: up, down, and as they were ──
  const table = one(".measures");
  const models = (row) => all("[data-model]", row);
  const rows = table ? all("tr", table).filter((row) => models(row).length) : [];
  const original = rows.length ? models(rows[0]).map((cell) => cell.dataset.model) : [];
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const sort = (button) => {
    const heading = button.closest("th");
    const order = next[heading.getAttribute("aria-sort")];
    for (const other of all("[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", order);
    const sign = { ascending: 1, descending: -1, none: 0 }[order];
    const values = new Map(models(heading.parentElement).map((cell) => [cell.dataset.model, cell.dataset.value]));
    // Models without a number stay last in either direction.
    const sorted = [...original].sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      return sign && ((x === "") - (y === "") || sign * (Number(x) - Number(y)));
    });
    for (const row of rows) {
      const cells = new Map(models(row).map((cell) => [cell.dataset.model, cell]));
      row.append(...sorted.map((model) => cells.get(model)));
    }
    const how = order === "none" ? "in their original order" : `sorted by ${button.textContent}, ${order}`;
    one("[data-status]").textContent = `Models ${how}.`;
  };
  for (const button of all("[data-sort]")) button.addEventListener("click", () => sort(button));

  // ── its numbers are one stop of the tab key; arrows move among them ──
  const line = one("[data-source-line]");
  const stops = table ? all("a.value", table) : [];
  const tell = (link) => { if (link) line.textContent = link.title; };
  const stop = (link) => { for (const other of stops) other.tabIndex = other === link ? 0 : -1; };
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (stops.length) {
    stop(stops[0]);
    line.hidden = false;
    line.textContent = "Point at a number, or move to it with the arrow keys: its source appears here.";
    table.addEventListener("pointerover", (event) => tell(event.target.closest("a.value")));
    table.addEventListener("focusin", (event) => { if (event.target.matches("a.value")) { stop(event.target); tell(event.target); } });
    table.addEventListener("keydown", (event) => {
      const [down, right] = steps[event.key] || [];
      const link = event.target.closest("a.value");
      if (down === undefined || !link) return;
      const grid = rows.map((row) => models(row).map((cell) => one("a.value", cell)));
      let row = grid.findIndex((cells) => cells.includes(link));
      let column = grid[row].indexOf(link);
      do { row += down; column += right; } while (grid[row] && column in grid[row] && !grid[row][column]);
      const target = grid[row] && grid[row][column];
      if (!target) return;
      event.preventDefault();
      target.focus();
      // A number must not hide behind the column that stays in place.
      target.closest("td").scrollIntoView({ block: "nearest", inline: "center", behavior: "instant" });
    });
  }

  // ── print shows what is folded away; what is not chosen is shown by style ──
  let folded = [];
  const fold = (open) => { for (const details of folded) details.open = open; };
  window.addEventListener("beforeprint", () => { folded = all("details:not([open])"); fold(true); });
  window.addEventListener("afterprint", () => fold(false));
})();
