"use strict";

// Sorting: a header's button turns its column around; cells without a value stay last.
const compare = new Intl.Collator("en", { numeric: true }).compare;
document.querySelectorAll("table thead button").forEach((button) => {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const table = header.closest("table");
    const numeric = header.classList.contains("num");
    const before = header.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : numeric;
    table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [row.cells[header.cellIndex].dataset.sort, row]);
    rows.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = numeric ? a - b : compare(a, b);
      return descending ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  });
});

// Tables that go on to the right fade out there, until they are scrolled to their end.
document.querySelectorAll(".scroll").forEach((region) => {
  const look = () => {
    region.classList.toggle("more", region.scrollWidth - region.clientWidth - region.scrollLeft > 1);
  };
  region.addEventListener("scroll", look);
  new ResizeObserver(look).observe(region);
});

// Menus: show the panels that have the chosen values; where there is none, follow the menu that was changed.
document.querySelectorAll("[data-picker]").forEach((picker) => {
  const menus = [...picker.querySelectorAll("select")];
  const panels = [...picker.querySelectorAll(".panel")];
  const fitting = (panel) => menus.filter((menu) => panel.dataset[menu.dataset.key] === menu.value).length;
  const show = (changed) => {
    if (!panels.some((panel) => fitting(panel) === menus.length)) {
      const possible = panels.filter((panel) => panel.dataset[changed.dataset.key] === changed.value);
      const nearest = possible.reduce((best, panel) => (fitting(panel) > fitting(best) ? panel : best));
      menus.forEach((menu) => { menu.value = nearest.dataset[menu.dataset.key]; });
    }
    panels.forEach((panel) => { panel.hidden = fitting(panel) !== menus.length; });
  };
  menus.forEach((menu) => menu.addEventListener("change", () => show(menu)));
  if (menus.length) show(menus[0]); // browsers keep a menu's choice when a page is reloaded
});

// A legend's row brings out its lines.
document.querySelectorAll(".legend").forEach((legend) => {
  const panel = legend.closest(".panel");
  const choose = (event) => {
    const row = event.target.closest("tr[data-run]");
    panel.classList.toggle("has-chosen", Boolean(row));
    panel.querySelectorAll(".mark").forEach((line) => {
      line.classList.toggle("chosen", Boolean(row) && line.dataset.run === row.dataset.run);
    });
  };
  const leave = () => panel.classList.remove("has-chosen");
  legend.addEventListener("pointerover", choose);
  legend.addEventListener("focusin", choose);
  legend.addEventListener("pointerleave", leave);
  legend.addEventListener("focusout", leave);
});

document.querySelectorAll("[data-filter]").forEach((input) => {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
  });
});

// Theme: the system's until the button is pressed, then the chosen one, kept where the browser allows it.
const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const stored = () => { try { return localStorage.getItem("gift-vit-theme"); } catch { return null; } };
const current = () => document.documentElement.dataset.theme || (system.matches ? "dark" : "light");
const label = () => { button.textContent = current() === "dark" ? "Light theme" : "Dark theme"; };
if (stored()) document.documentElement.dataset.theme = stored();
button.addEventListener("click", () => {
  document.documentElement.dataset.theme = current() === "dark" ? "light" : "dark";
  try { localStorage.setItem("gift-vit-theme", current()); } catch { /* private windows may refuse */ }
  label();
});
system.addEventListener("change", label);
label();
