// What every page has: the switch of colours, keyboard shortcuts, selects that submit their form.
"use strict";

(() => {
  const root = document.documentElement;
  const help = document.getElementById("help");
  const themes = ["", "light", "dark"];
  const names = { "": "◐ Auto", light: "○ Light", dark: "● Dark" };

  function showTheme() {
    document.getElementById("theme").textContent = names[root.dataset.theme ?? ""];
  }

  function nextTheme() {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      if (next) localStorage.setItem("theme", next);
      else localStorage.removeItem("theme");
    } catch {
      // Then it holds for this page only.
    }
    showTheme();
  }

  const entries = () => [...document.querySelectorAll("a.row-link")].filter((link) => link.offsetParent !== null);

  function move(by) {
    const links = entries();
    if (!links.length) return;
    const at = links.indexOf(document.activeElement);
    const to = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + by, 0), links.length - 1);
    links[to].focus();
    links[to].scrollIntoView({ block: "nearest" });
  }

  const follow = (selector) => () => document.querySelector(selector)?.click();
  const go = (path) => () => location.assign(path);
  const shortcuts = {
    j: () => move(1),
    k: () => move(-1),
    n: follow("[data-older]"),
    p: follow("[data-newer]"),
    "/": () => document.querySelector("[data-search]")?.focus(),
    "?": () => help.showModal(),
    "g d": go("/explorer"),
    "g l": go("/explorer/live"),
    "g b": go("/explorer/dashboard"),
  };

  let first = "";

  function pressed(event) {
    const typing = event.target.closest("input, textarea, select, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const shortcut = shortcuts[first ? `${first} ${event.key}` : event.key];
    first = !first && event.key === "g" ? "g" : "";
    if (!shortcut) return;
    event.preventDefault();
    shortcut();
  }

  document.addEventListener("keydown", pressed);
  document.getElementById("theme").addEventListener("click", nextTheme);
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
  for (const select of document.querySelectorAll("select[data-submit]")) {
    select.addEventListener("change", () => select.form.submit());
  }
  // An empty filter has no place in a link.
  for (const form of document.querySelectorAll("form.filters[method=get]")) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
    });
  }
  // Back in the history the fields are as they were left.
  addEventListener("pageshow", () => {
    for (const field of document.querySelectorAll("form.filters :disabled")) field.disabled = false;
  });
  showTheme();
})();
