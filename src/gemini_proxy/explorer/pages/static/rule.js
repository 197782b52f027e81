// The form of a rule: an editor that says what is wrong as one types, and a trial on recorded traces.
"use strict";

(() => {
  const form = document.querySelector("form.rule-form");
  const [field, status, tryButton, last, trial] =
    ["content", "status", "try", "last", "trial"].map((id) => document.getElementById(id));

  function element(name, className, ...content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
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

  function placed({ line, column }) {
    const place = element("button", "link", `line ${line}, column ${column}`);
    place.type = "button";
    place.addEventListener("click", () => editor.goTo(line, column));
    return place;
  }

  const advice = ({ message, suggestion }) => suggestion ? `${message} (${suggestion})` : message;

  function warning(one) {
    return element("p", "dim", ...(one.line ? [placed(one), ": "] : []), advice(one));
  }

  function showCheck(check) {
    status.classList.toggle("bad", !check.ok);
    status.classList.toggle("good", check.ok);
    if (!check.ok) {
      status.replaceChildren(element("p", "", placed(check), `: ${check.reason}`), element("pre", "", check.caret));
      return;
    }
    const rules = check.rules === 1 ? "1 rule" : `${check.rules} rules`;
    status.replaceChildren(element("p", "", `Loads: ${rules}.`), ...check.warnings.map(warning));
  }

  function showProblem(where, error) {
    where.replaceChildren(element("p", "wrong", `No response: ${error.message}`));
  }

  // Of answers that come out of order the last question's counts.
  let asked = 0;

  async function check(policy) {
    const mine = ++asked;
    try {
      const answer = await ask("/explorer/api/check-policy", { policy });
      if (mine !== asked) return [];
      showCheck(answer);
      if (!answer.ok) return [{ ...answer, message: answer.reason, severity: "error" }];
      return answer.warnings.filter((one) => one.line).map((one) => ({ ...one, message: advice(one), severity: "warning" }));
    } catch (error) {
      if (mine === asked) showProblem(status, error);
      return [];
    }
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
      showTrial(await ask("/explorer/api/try-policy", { dataset, policy: editor.text, last: Number(last.value) }));
    } catch (error) {
      showProblem(trial, error);
    } finally {
      tryButton.disabled = false;
    }
  }

  const editor = editPolicy(field, {
    vocabulary: JSON.parse(field.parentElement.dataset.vocabulary),
    check,
    submit: tryOut,
    labelledBy: "policy",
    describedBy: "status keys",
  });
  // A rule that came back with a fault is not saved yet.
  let saved = status.classList.contains("bad") ? null : editor.text;
  tryButton.addEventListener("click", tryOut);
  form.addEventListener("submit", () => { saved = editor.text; });
  addEventListener("beforeunload", (event) => {
    if (editor.text !== saved) event.preventDefault();
  });
})();
