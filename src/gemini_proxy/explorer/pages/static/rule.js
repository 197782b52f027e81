// The editor of a rule: line numbers, a check while typing, and a trial on recorded traces.
"use strict";

(() => {
  const CHECK_AFTER_MS = 300;
  const INDENT = "    ";

  const form = document.querySelector("form.rule-form");
  const [text, gutter, status, tryButton, last, trial] =
    ["content", "gutter", "status", "try", "last", "trial"].map((id) => document.getElementById(id));

  let waiting = 0;
  let asked = 0;
  let numbered = 0;

  function element(name, className, ...content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
  }

  function number() {
    const lines = text.value.split("\n").length;
    if (lines !== numbered) {
      numbered = lines;
      gutter.textContent = Array.from({ length: lines }, (_, index) => index + 1).join("\n");
    }
    gutter.scrollTop = text.scrollTop;
  }

  async function ask(path, body) {
    const response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.detail);
    return answer;
  }

  function goTo(line, column) {
    const before = text.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    text.focus();
    text.setSelectionRange(before + column - 1, before + column);
  }

  function showCheck(check) {
    status.classList.toggle("bad", !check.ok);
    status.classList.toggle("good", check.ok);
    if (!check.ok) {
      const place = element("button", "link", `line ${check.line}, column ${check.column}`);
      place.type = "button";
      place.addEventListener("click", () => goTo(check.line, check.column));
      status.replaceChildren(element("p", "", place, `: ${check.reason}`), element("pre", "", check.caret));
      return;
    }
    const rules = check.rules === 1 ? "1 rule" : `${check.rules} rules`;
    status.replaceChildren(element("p", "", `Loads: ${rules}.`), ...check.warnings.map((one) => element("p", "dim", one)));
  }

  function showProblem(where, error) {
    where.replaceChildren(element("p", "wrong", `No response: ${error.message}`));
  }

  async function check() {
    const mine = ++asked;
    try {
      const answer = await ask("/explorer/api/check-policy", { policy: text.value });
      if (mine === asked) showCheck(answer);
    } catch (error) {
      if (mine === asked) showProblem(status, error);
    }
  }

  function changed() {
    number();
    clearTimeout(waiting);
    waiting = setTimeout(check, CHECK_AFTER_MS);
  }

  function excerpt(one) {
    const role = one.role ? element("span", "dim", `${one.role}: `) : "";
    return element("p", "excerpt", role, one.before, element("mark", "block", one.found), one.after);
  }

  function finding(one) {
    const link = element("a", "row-link", one.time);
    link.href = `/explorer/traces/${encodeURIComponent(one.trace)}`;
    const was = element("span", "outcome", one.outcome.replaceAll("_", " "));
    was.dataset.outcome = one.outcome;
    const made = element("li", "", element("p", "", link, " was ", was));
    if (one.failure) made.append(element("p", "wrong", `no verdict: ${one.failure}`));
    for (const violation of one.violations) {
      made.append(element("p", "", element("b", "", violation.message), element("span", "dim", ` line ${violation.line}`)));
      made.append(...violation.excerpts.map(excerpt));
    }
    return made;
  }

  function showTrial(result) {
    if (!result.ok) {
      showCheck(result);
      trial.replaceChildren(element("p", "wrong", "The policy does not load."));
      return;
    }
    const words = [`Would have refused ${result.refused} of ${result.checked}`];
    if (result.undecided) words.push(`${result.undecided} without a verdict`);
    if (!result.complete) words.push("stopped at the time limit");
    const head = element("h2", "", words.join(", "));
    const took = element("p", "dim", `${Math.round(result.milliseconds)} ms`);
    const list = element("ul", "", ...result.findings.map(finding));
    trial.replaceChildren(head, took, list);
    if (result.more) trial.append(element("p", "dim", `and ${result.more} more`));
  }

  async function tryOut() {
    tryButton.disabled = true;
    trial.replaceChildren(element("p", "dim", "Trying …"));
    try {
      const dataset = form.dataset.dataset;
      showTrial(await ask("/explorer/api/try-policy", { dataset, policy: text.value, last: Number(last.value) }));
    } catch (error) {
      showProblem(trial, error);
    } finally {
      tryButton.disabled = false;
    }
  }

  // Tab indents, as in any editor; after Escape it leaves the field, as everywhere else.
  let leaving = false;

  function typed(event) {
    if (event.key === "Tab" && !leaving && !event.shiftKey) {
      event.preventDefault();
      document.execCommand("insertText", false, INDENT);
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      tryOut();
    }
    leaving = event.key === "Escape";
  }

  // A rule that came back with a fault is not saved yet.
  let saved = status.classList.contains("bad") ? null : text.value;
  text.addEventListener("input", changed);
  text.addEventListener("scroll", () => { gutter.scrollTop = text.scrollTop; });
  text.addEventListener("keydown", typed);
  tryButton.addEventListener("click", tryOut);
  form.addEventListener("submit", () => { saved = text.value; });
  addEventListener("beforeunload", (event) => {
    if (text.value !== saved) event.preventDefault();
  });
  number();
  check();
})();
