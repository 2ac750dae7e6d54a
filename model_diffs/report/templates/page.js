
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);

  // ── one comparison at a time, or all; without this script all are shown ──
  const choice = one("[data-switch]");
  const panels = all("[data-panel]");
  const choices = all("input", choice);
  const show = (value) => {
    for (const panel of panels) panel.hidden = value !== "all" && panel.dataset.panel !== value;
  };
  const choose = (value) => {
    const wanted = choices.find((input) => input.value === value);
    if (wanted) wanted.checked = true;
    show(value);
  };
  if (choices.length > 1) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => {
      // What is read stays in view: sections above it may have grown or shrunk.
      const section = all("section.axis").find((s) => s.getBoundingClientRect().bottom > 120);
      const before = section ? section.getBoundingClientRect().top : 0;
      show(event.target.value);
      if (section && before < 0) {
        window.scrollBy({ top: section.getBoundingClientRect().top - before, behavior: "instant" });
      }
      event.target.closest("label").scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    });
    show((choices.find((input) => input.checked) || choices[0]).value);
  }

  // ── a link to a number shows the comparison that it is of ──
  const follow = () => {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch {
      return;  // no id of this page: all ids can be decoded
    }
    const target = document.getElementById(name);
    if (!target) return;
    const panel = target.closest("[data-panel]");
    if (panel && panel.hidden) choose(panel.dataset.panel);
    if (panel) {
      target.scrollIntoView({ block: "center" });
      target.focus({ preventScroll: true });
    }
  };
  window.addEventListener("hashchange", follow);
  follow();

  // ── the table ──
  function serve(table) {
    // ── models in the order of a measure: up, down, and as they were ──
    const rows = all("tr", table).filter((row) => one("[data-model]", row));
    const measured = all("[data-measure]", table);
    const models = (row) => all("[data-model]", row);
    const original = models(rows[0]).map((cell) => cell.dataset.model);
    const status = one("[data-status]");
    const next = { none: "ascending", ascending: "descending", descending: "none" };
    const arrange = (order) => {
      for (const row of rows) {
        const cells = new Map(models(row).map((cell) => [cell.dataset.model, cell]));
        row.append(...order.map((model) => cells.get(model)));
      }
    };
    for (const row of measured) {
      const button = one("[data-sort]", row);
      button.addEventListener("click", () => {
        const heading = button.closest("th");
        const order = next[heading.getAttribute("aria-sort")];
        for (const other of all("[aria-sort]", table)) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", order);
        const values = new Map(models(row).map((cell) => [cell.dataset.model, cell.dataset.value]));
        // Models without a number stay last in either direction.
        const full = original.filter((model) => values.get(model) !== "");
        const empty = original.filter((model) => values.get(model) === "");
        const sign = order === "descending" ? -1 : 1;
        full.sort((a, b) => sign * (Number(values.get(a)) - Number(values.get(b))));
        arrange(order === "none" ? original : [...full, ...empty]);
        status.textContent = order === "none"
          ? "Models in their original order."
          : `Models sorted by ${button.textContent}, ${order}.`;
      });
    }

    // ── the numbers are one stop of the tab key; arrows move among them ──
    const line = one("[data-source-line]");
    const links = () => measured.map((row) => models(row).map((cell) => one("a.value", cell)));
    const stops = all("a.value", table);
    stops.forEach((link, index) => { link.tabIndex = index ? -1 : 0; });
    if (stops.length) {
      line.hidden = false;
      line.textContent = "Point at a number, or move to it with the arrow keys: its source appears here.";
    }
    const tell = (link) => { if (link) line.textContent = link.title; };
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    table.addEventListener("focusin", (event) => {
      const link = event.target.closest("a.value");
      if (!link) return;
      for (const other of stops) other.tabIndex = other === link ? 0 : -1;
      tell(link);
    });
    table.addEventListener("pointerover", (event) => tell(event.target.closest("a.value")));
    table.addEventListener("keydown", (event) => {
      const move = step[event.key];
      const link = event.target.closest("a.value");
      if (!move || !link) return;
      const grid = links();
      let row = grid.findIndex((cells) => cells.includes(link));
      let column = grid[row].indexOf(link);
      do {
        row += move[0];
        column += move[1];
      } while (grid[row] && column >= 0 && column < grid[row].length && !grid[row][column]);
      const target = grid[row] && grid[row][column];
      if (target) {
        event.preventDefault();
        target.focus();
        // A number must not hide behind the column that stays in place.
        target.closest("td").scrollIntoView({ block: "nearest", inline: "center", behavior: "instant" });
      }
    });
  }

  const found = one(".measures");
  if (found) serve(found);

  // ── paper shows what is folded away, and what is not chosen (by style) ──
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const details of folded) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });
})();
