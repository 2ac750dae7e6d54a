
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
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
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
    // ── sorting: up, down, and as it was ──
    const body = one("[data-rows]", table);
    const original = all("tr", body);
    const status = one("[data-status]");
    const key = (row, column) => row.children[column].dataset.value;
    const compare = (a, b, column) =>
      column ? Number(key(a, column)) - Number(key(b, column)) : key(a, 0).localeCompare(key(b, 0));
    const next = { none: "ascending", ascending: "descending", descending: "none" };
    for (const button of all("[data-sort]", table)) {
      button.addEventListener("click", () => {
        const heading = button.closest("th");
        const order = next[heading.getAttribute("aria-sort")];
        const column = Number(button.dataset.sort);
        for (const other of all("[aria-sort]", table)) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", order);
        // Rows without a number stay last in either direction.
        const [full, empty] = [true, false].map((has) => original.filter((r) => Boolean(key(r, column)) === has));
        const sign = order === "descending" ? -1 : 1;
        const rows = order === "none" ? original : [...full.sort((a, b) => sign * compare(a, b, column)), ...empty];
        body.append(...rows);
        status.textContent = order === "none" ? "In the original order." : `Sorted by ${button.textContent}, ${order}.`;
      });
    }

    // ── the numbers are one stop of the tab key; arrows move among them ──
    const line = one("[data-source-line]");
    const linkIn = (cell) => cell && one("a.value", cell);
    const links = () => all("tr", body).map((row) => all("td", row).map(linkIn));
    const stops = all("a.value", body);
    stops.forEach((link, index) => { link.tabIndex = index ? -1 : 0; });
    if (stops.length) {
      line.hidden = false;
      line.textContent = "Point at a number, or move to it with the arrow keys: its source appears here.";
    }
    const tell = (link) => { if (link) line.textContent = link.title; };
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    body.addEventListener("focusin", (event) => {
      const link = event.target.closest("a.value");
      if (!link) return;
      for (const other of stops) other.tabIndex = other === link ? 0 : -1;
      tell(link);
    });
    body.addEventListener("pointerover", (event) => tell(event.target.closest("a.value")));
    body.addEventListener("keydown", (event) => {
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
