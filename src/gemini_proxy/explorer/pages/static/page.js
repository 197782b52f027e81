// For every page: the color switch, keyboard shortcuts, and selects that submit their form.
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
      // Then the choice applies to this page only.
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
    "g t": go("/explorer/traffic"),
    "g d": go("/explorer"),
    "g r": go("/explorer/guardrails"),
    "g l": go("/explorer/live"),
    "g b": go("/explorer/dashboard"),
    "g a": go("/explorer/approvals"),
  };

  let first = "";

  function pressed(event) {
    const typing = event.target.closest("input, textarea, select, dialog, [contenteditable]");
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
  // Empty filters are left out of the link.
  for (const form of document.querySelectorAll("form.filters[method=get]")) {
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
    });
  }
  // Links back to a listing restore its last filters.
  const listing = (path) => `listing ${path}`;
  try {
    if (document.querySelector("form.filters[role=search]")) sessionStorage.setItem(listing(location.pathname), location.search);
    for (const link of document.querySelectorAll("a[data-listing]")) {
      if (link.pathname !== location.pathname) link.search = sessionStorage.getItem(listing(link.pathname)) ?? "";
    }
  } catch {
    // Then the links lead to the whole listing.
  }
  // The browser restores the fields when it goes back in the history.
  addEventListener("pageshow", () => {
    for (const field of document.querySelectorAll("form.filters :disabled")) field.disabled = false;
  });

  // Fold long outputs, unless a rule marked something in the hidden part.
  const FOLDED_PX = 420;
  const TOLERATED_PX = 200;

  function foldable(block) {
    if (block.classList.contains("folded") || block.scrollHeight < FOLDED_PX + TOLERATED_PX) return false;
    const last = [...block.querySelectorAll("mark:not(.wide), .anchor")].at(-1);
    return !last || last.getBoundingClientRect().bottom - block.getBoundingClientRect().top < FOLDED_PX;
  }

  function fold(block) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet unfold";
    button.textContent = "Show all";
    button.addEventListener("click", () => {
      block.classList.remove("folded");
      // The next Tab continues from here.
      block.tabIndex = -1;
      block.focus({ preventScroll: true });
      button.remove();
    });
    block.classList.add("folded");
    block.after(button);
  }

  // Measure everything first: otherwise the browser lays out the page again for each element.
  const foldAll = (within) => [...within.querySelectorAll(".fold")].filter(foldable).forEach(fold);

  for (const button of document.querySelectorAll("[data-copy]")) {
    const words = button.textContent;
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).innerText;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        button.textContent = "The browser does not allow it";
      }
      setTimeout(() => { button.textContent = words; }, 2000);
    });
  }

  // Nothing can be opened on paper.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of closed) one.open = false;
  });

  foldAll(document);
  document.addEventListener("toggle", (event) => event.target.open && foldAll(event.target), true);
  showTheme();
})();
