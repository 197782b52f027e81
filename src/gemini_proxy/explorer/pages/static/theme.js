// Runs before the body exists, so that nothing is drawn in the wrong colors.
"use strict";

(() => {
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // A browser that stores nothing follows the system.
  }
})();
