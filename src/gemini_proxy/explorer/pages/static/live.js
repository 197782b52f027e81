// The live view. Expects on the page: a tbody #live whose columns are time, dataset, model, outcome, rule and
// milliseconds, and whose data-zone-seconds is the server's time zone; #live-state for the connection; a button
// #live-pause; the filters #live-refused (a checkbox) and #live-dataset (a select or an input; empty means all). Rows carry the classes "refused" or "missed" for the style.
"use strict";

(() => {
  const MAX_ROWS = 200;
  const FIRST_ROWS = 50;
  const REDRAW_MS = 200;
  const FIRST_PAUSE_MS = 1000;
  const LONGEST_PAUSE_MS = 30000;

  const [table, state, pauseButton, refused, dataset] =
    ["live", "live-state", "live-pause", "live-refused", "live-dataset"].map((id) => document.getElementById(id));
  if (!table) return;

  let source = null;
  let newest = ""; // the id of the newest event, to go on from where the browser gives up
  let arrived = []; // the newest events not drawn yet, oldest first
  let count = 0; // all events not drawn yet
  let drawing = 0;
  let reconnecting = 0;
  let paused = false;
  let pauseMs = FIRST_PAUSE_MS;
  let connection = "";

  function show(text) {
    if (text !== undefined) connection = text;
    const waiting = paused ? `, paused, ${count} new` : "";
    state.textContent = connection + waiting;
  }

  function cell(row, text, className) {
    const made = row.insertCell();
    made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function linkCell(row, href, className) {
    const link = document.createElement("a");
    link.href = href;
    if (className) link.className = className;
    row.insertCell().append(link);
    return link;
  }

  // In the server's time zone, as on all pages.
  function clock(at) {
    const there = new Date(at.getTime() + Number(table.dataset.zoneSeconds) * 1000);
    return there.toISOString().slice(0, 19).replace("T", " ");
  }

  function timeCell(row, exchange) {
    const at = new Date(exchange.created * 1000);
    const time = document.createElement("time");
    time.dateTime = at.toISOString();
    time.title = at.toISOString();
    time.textContent = clock(at);
    linkCell(row, `/explorer/traces/${encodeURIComponent(exchange.id)}`, "row-link").append(time);
  }

  function datasetCell(row, name) {
    const path = name ? `/explorer/datasets/${encodeURIComponent(name)}` : "/explorer/traces";
    linkCell(row, path, name ? "" : "dim").append(name ?? "none");
  }

  function exchangeRow(exchange) {
    const row = document.createElement("tr");
    row.dataset.outcome = exchange.outcome;
    if (exchange.outcome.startsWith("refused")) row.className = "refused";
    timeCell(row, exchange);
    datasetCell(row, exchange.dataset);
    cell(row, exchange.model ?? "").title = exchange.model ?? "";
    cell(row, exchange.outcome.replaceAll("_", " "), "outcome");
    cell(row, exchange.rule ?? "", "rule").title = exchange.rule ?? "";
    cell(row, Math.round(exchange.duration_ms).toLocaleString("en-US"), "number");
    return row;
  }

  function missedRow(missed) {
    const row = document.createElement("tr");
    row.className = "missed";
    cell(row, `missed ${missed.exact ? "" : "at most "}${missed.count} exchanges`).colSpan = 6;
    return row;
  }

  function draw() {
    drawing = 0;
    if (paused) return show();
    const rows = arrived.map(({ make, data }) => make(data)).reverse();
    arrived = [];
    count = 0;
    table.prepend(...rows);
    while (table.rows.length > MAX_ROWS) table.deleteRow(-1);
  }

  function add(event, make) {
    newest = event.lastEventId;
    arrived.push({ make, data: JSON.parse(event.data) });
    count += 1;
    if (arrived.length > MAX_ROWS) arrived.shift();
    if (!drawing) drawing = setTimeout(draw, REDRAW_MS);
  }

  function address() {
    const query = new URLSearchParams(filters());
    if (newest) query.set("after", newest);
    else query.set("last", FIRST_ROWS);
    return `/api/v1/feed?${query}`;
  }

  function filters() {
    const set = {};
    if (dataset.value) set.dataset = dataset.value;
    if (refused.checked) set.refused = "1";
    return set;
  }

  function connect() {
    reconnecting = 0;
    show("connecting");
    source = new EventSource(address());
    source.addEventListener("open", () => {
      pauseMs = FIRST_PAUSE_MS;
      show("connected");
    });
    source.addEventListener("exchange", (event) => add(event, exchangeRow));
    source.addEventListener("missed", (event) => add(event, missedRow));
    source.addEventListener("position", (event) => { newest = event.lastEventId; });
    source.addEventListener("error", failed);
  }

  // The browser connects again by itself after a lost connection, but not after a response other than 200.
  function failed() {
    if (source.readyState !== EventSource.CLOSED) return show("reconnecting");
    show("no connection (signed out, no such dataset, or the server is busy)");
    reconnecting = setTimeout(connect, pauseMs);
    pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
  }

  function restart() {
    const query = new URLSearchParams(filters()).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    if (source) source.close();
    clearTimeout(reconnecting);
    newest = "";
    arrived = [];
    count = 0;
    pauseMs = FIRST_PAUSE_MS;
    table.replaceChildren();
    connect();
  }

  function togglePause() {
    paused = !paused;
    pauseButton.textContent = paused ? "Resume" : "Pause";
    if (!paused) draw();
    show();
  }

  const asked = new URLSearchParams(location.search);
  refused.checked = asked.has("refused");
  if (asked.get("dataset")) dataset.value = asked.get("dataset");
  pauseButton.addEventListener("click", togglePause);
  refused.addEventListener("change", restart);
  dataset.addEventListener("change", restart);
  restart();
})();
