// The page's numbers: asks the API every 2 s and writes text into the page.
// Names come from other people's programs, so everything goes in as textContent.
"use strict";

const NOW_EVERY_MS = 2000;
const CHARTS_EVERY_MS = 10000;
const TODAY_EVERY_MS = 30000;
const TIMEOUT_MS = 8000;
const OVERDUE_MS = 30000;
const COMPONENTS = ["cpu", "dram", "gpu", "other"];
const COMPONENT_NAMES = { cpu: "CPU", dram: "Memory", gpu: "GPU", other: "Other" };
const RESERVED = {
  idle: ["idle", "drawn even when nothing runs"],
  system: ["system", "kernel and unowned processes"],
  unattributed: ["unattributed", "nobody could be named"],
};

const opened = Date.now();
let paused = false;
let lastAnswer = 0;
let lastNow = null;
let lastCharts = { power: null, intensity: null };

const at = (id) => document.getElementById(id);

function text(node, value) {
  // Writing the same text again would still repaint and disturb a selection.
  if (node.textContent !== value) node.textContent = value;
}

function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

function make(tag, className, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (parent) parent.append(node);
  return node;
}

// ---- numbers as people read them

function digits(value) {
  const size = Math.abs(value);
  const decimals = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function scaled(value, steps) {
  for (const [size, unit] of steps) if (Math.abs(value) >= size) return [digits(value / size), unit];
  const [size, unit] = steps[steps.length - 1];
  return [digits(value / size), unit];
}

const watts = (w) => scaled(w, Math.abs(w) < 10000 ? [[1, "W"]] : [[1e6, "MW"], [1e3, "kW"]]);
const grams = (g) => scaled(g, [[1e6, "t"], [1e3, "kg"], [1, "g"]]);
const energy = (uj) => scaled(uj / 3.6e9, [[1e6, "MWh"], [1e3, "kWh"], [1, "Wh"]]);
const joined = ([number, unit]) => number + " " + unit;
const percent = (share) => (share > 0 && share < 0.001 ? "<0.1" : (share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)) + " %";

function big(node, [number, unit]) {
  if (!node.firstChild) { make("span", "", node); node.append(" "); make("span", "unit", node); }
  text(node.firstChild, number);
  text(node.lastChild, unit);
}

const clock = (iso) => new Date(iso).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

// ---- the parts of the page

function drawPower(now) {
  // Of silent nodes nothing is known: that is no zero.
  big(at("power"), now.state === "silent" ? ["–", "W"] : watts(now.power_w));
  const bar = at("bar");
  const legend = at("components");
  const shown = COMPONENTS.filter((c) => c in now.components_w);
  if (bar.dataset.shown !== shown.join()) {
    bar.dataset.shown = shown.join();
    bar.replaceChildren();
    legend.replaceChildren();
    for (const component of shown) {
      make("span", component, bar);
      const item = make("li", "", legend);
      make("span", "swatch " + component, item);
      text(make("span", "", item), COMPONENT_NAMES[component]);
      make("span", "value", item);
    }
  }
  shown.forEach((component, i) => {
    const power = now.components_w[component];
    bar.children[i].style.width = (now.power_w ? (100 * power) / now.power_w : 0) + "%";
    text(legend.children[i].lastChild, joined(watts(power)));
  });
  const modelled = now.modelled_share;
  show(at("modelled"), modelled > 0);
  show(at("modelled-why"), modelled > 0);
  text(at("modelled-why"), modelled > 0.995
    ? "Estimated from load: no power sensor can be read here. joulegram check says why."
    : percent(modelled) + " of these watts are estimated, not measured.");
  show(at("simulated"), now.simulated);
}

function drawGrid(now) {
  const grid = now.intensity;
  const known = grid && grid.g_per_kwh !== null;
  if (now.g_per_hour === null) big(at("gph"), ["–", "g CO₂e per hour"]);
  else { const [number, unit] = grams(now.g_per_hour); big(at("gph"), [number, unit + " CO₂e per hour"]); }
  text(at("zone"), grid ? grid.zone : "");
  big(at("intensity"), [known ? digits(grid.g_per_kwh) : "–", "g CO₂e/kWh"]);
  show(at("grid-quality"), Boolean(known));
  if (!grid) return;
  text(at("pue"), grid.pue === 1 ? "Power × grid intensity; PUE 1." : "Power × PUE " + grid.pue + " × grid intensity.");
  if (!known) { text(at("grid-note"), "Nobody has said what this grid emits now."); return; }
  text(at("grid-quality"), grid.quality);
  at("grid-quality").className = "badge" + (grid.quality === "measured" ? "" : " warn");
  text(at("basis"), grid.basis.replaceAll("-", ", "));
  text(at("provider"), grid.provider);
  text(at("grid-note"), grid.quality === "fallback"
    ? "A yearly average: no live feed covers this moment."
    : grid.basis === grid.wanted_basis ? "For the running 5 minutes."
      : "Not the basis that is wanted (" + grid.wanted_basis.replaceAll("-", ", ") + ").");
}

function drawCoverage(now) {
  const coverage = now.coverage;
  big(at("coverage"), coverage === null ? ["–", ""] : [(coverage * 100).toFixed(coverage < 1 && coverage > 0.99 ? 1 : 0), "%"]);
  at("coverage-bar").style.width = 100 * (coverage || 0) + "%";
  text(at("reporting"), String(now.nodes.reporting));
  text(at("silent"), String(now.nodes.silent));
  text(at("coverage-note"), now.nodes.silent
    ? "Silent: " + now.nodes.silent_names.join(", ")
    : "The measured part of what should have been.");
}

// Rows are kept and rewritten in place, so that nothing flickers.
function fill(body, items, makeRow, drawRow) {
  while (body.children.length > items.length) body.lastChild.remove();
  while (body.children.length < items.length) body.append(makeRow());
  items.forEach((item, i) => drawRow(body.children[i], item));
}

function cells(row, classes) {
  return classes.map((className) => make("td", className, row));
}

function workloadRow() {
  const row = make("tr");
  const [name, , , share] = cells(row, ["name", "user", "team", "share", "num", "num"]);
  make("span", "what", name);
  make("span", "kind", name);
  shareBar(share);
  return row;
}

function shareBar(cell) {
  const line = make("div", "line", cell);
  make("span", "", make("div", "track", line));
  make("span", "percent", line);
}

function drawShare(cell, share) {
  cell.querySelector(".track span").style.width = 100 * Math.min(1, share) + "%";
  text(cell.querySelector(".percent"), percent(share));
}

function drawWorkload(row, w) {
  const [name, user, team, share, power, gph] = row.children;
  const reserved = RESERVED[w.kind];
  text(name.firstChild, reserved ? reserved[0] : w.name);
  text(name.lastChild, reserved ? reserved[1] : w.kind + (w.id && w.id !== w.name ? " " + w.id.slice(0, 24) : ""));
  if (name.title !== w.name + " (" + w.kind + " " + w.id + ")") name.title = w.name + " (" + w.kind + " " + w.id + ")";
  text(user, w.user);
  text(team, reserved && w.team === "unassigned" ? "" : w.team);
  drawShare(share, w.share);
  text(power, digits(w.power_w));
  text(gph, w.g_per_hour === null ? "–" : digits(w.g_per_hour));
}

function processRow() {
  const row = make("tr");
  const [name] = cells(row, ["name", "workload", "node", "num pid", "num"]);
  make("span", "what", name);
  return row;
}

function drawProcess(row, p) {
  const [name, workload, node, pid, power] = row.children;
  text(name.firstChild, p.command || "?");
  text(workload, p.workload + (p.kind === p.workload ? "" : " (" + p.kind + ")"));
  text(node, p.node);
  for (const cut of [workload, node]) if (cut.title !== cut.textContent) cut.title = cut.textContent;
  text(pid, String(p.pid));
  text(power, digits(p.power_w));
}

function drawTables(now) {
  show(at("no-workloads"), now.workloads.length === 0 && now.state !== "silent");
  text(at("no-workloads"), now.state === "nothing"
    ? "Nothing of your team runs now."
    : "Nothing here runs in a unit, session, container or job of its own: it counts as system.");
  fill(at("workload-rows"), now.workloads, workloadRow, drawWorkload);
  fill(at("reserved-rows"), now.reserved, workloadRow, drawWorkload);
  at("processes").classList.toggle("one-node", now.nodes.reporting + now.nodes.silent === 1);
  fill(at("process-rows"), now.processes, processRow, drawProcess);
}

function drawNow(now) {
  show(at("waiting"), now.state === "waiting");
  show(at("numbers"), now.state !== "waiting");
  if (now.state === "waiting") {
    show(at("overdue"), Date.now() - opened > OVERDUE_MS);
    return;
  }
  drawPower(now);
  drawGrid(now);
  drawCoverage(now);
  drawTables(now);
}

function drawToday(report) {
  show(at("today-simulated"), report.simulated);
  show(at("teams-simulated"), report.simulated);
  text(at("today-energy"), joined(energy(report.total.energy_uj)));
  text(at("today-grams"), report.total.g_co2e === null ? "unknown" : joined(grams(report.total.g_co2e)) + " CO₂e");
  const rows = [...report.rows].sort((a, b) => b.energy_uj - a.energy_uj);
  fill(at("team-rows"), rows, () => {
    const row = make("tr");
    const [name, share] = cells(row, ["name", "share", "num", "num"]);
    make("span", "what", name);
    shareBar(share);
    return row;
  }, (row, team) => {
    const [name, share, joules, co2e] = row.children;
    text(name.firstChild, team.key);
    drawShare(share, report.total.energy_uj ? team.energy_uj / report.total.energy_uj : 0);
    text(joules, joined(energy(team.energy_uj)));
    text(co2e, team.g_co2e === null ? "–" : joined(grams(team.g_co2e)));
  });
}

// ---- charts

function theme() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue("--" + name).trim();
}

function layout(color, range) {
  const axis = { gridcolor: color("line"), linecolor: color("line"), zeroline: false, tickfont: { color: color("muted"), size: 12 }, fixedrange: true };
  return {
    margin: { l: 46, r: 12, t: 8, b: 26 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", color: color("ink") },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
    xaxis: { ...axis, type: "date", showgrid: false, nticks: 7, tickformat: "%H:%M", hoverformat: "%H:%M:%S", range },
    yaxis: { ...axis, rangemode: "tozero", nticks: 5 },
  };
}

// plotly.js has no zones of its own: it is given the local time, as text.
function local(seconds) {
  const date = new Date(seconds * 1000);
  return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

function draw(id, traces, shape, empty) {
  const node = at(id);
  if (!traces.length) {
    if (node.data && window.Plotly) window.Plotly.purge(node);
    node.classList.add("empty");
    text(node, empty);
    return;
  }
  if (node.classList.contains("empty")) { node.classList.remove("empty"); node.textContent = ""; }
  window.Plotly.react(node, traces, shape, { displayModeBar: false, responsive: true });
}

// Stacked areas know no gaps, and a gap is not zero: each run of measured steps is its own stack.
function runs(series, shown) {
  const found = [];
  let run = null;
  series.t.forEach((_, i) => {
    if (!shown.some((c) => series[c][i] !== null)) { run = null; return; }
    if (!run) found.push(run = []);
    run.push(i);
  });
  return found;
}

function drawPowerChart(series) {
  const color = theme();
  const shown = COMPONENTS.filter((c) => series[c].some((w) => w !== null && w > 0));
  const traces = runs(series, shown).flatMap((run, number) => shown.map((component) => ({
    type: "scatter", mode: "lines", stackgroup: "run" + number, name: COMPONENT_NAMES[component],
    // The last step lasts too.
    x: [...run.map((i) => series.t[i]), series.t[run[run.length - 1]] + series.step_s].map(local),
    y: [...run, run[run.length - 1]].map((i) => series[component][i] || 0),
    line: { width: 1.2, color: color(component), shape: "hv" }, fillcolor: color(component) + "b0",
    hovertemplate: "%{y:.2f} W",
  })));
  const end = series.t[series.t.length - 1] + series.step_s;
  draw("power-chart", traces, layout(color, [local(series.t[0]), local(end)]), "Nothing metered in the last hour yet.");
}

function drawIntensityChart(points) {
  const color = theme();
  const known = points.filter((p) => p.g_per_kwh !== null);
  const traces = known.length ? [{
    type: "scatter", mode: "lines", x: points.map((p) => local(p.t)), y: points.map((p) => p.g_per_kwh),
    line: { width: 2, color: color("accent"), shape: "hv" },
    text: points.map((p) => p.quality || ""), hovertemplate: "%{y:.0f} g/kWh, %{text}<extra></extra>",
  }] : [];
  const range = known.length ? [local(points[0].t), local(points[points.length - 1].t + 300)] : undefined;
  draw("intensity-chart", traces, layout(color, range), "No intensity known for the last day.");
}

function drawCharts() {
  if (!window.Plotly || at("numbers").hidden) return;
  if (lastCharts.power) drawPowerChart(lastCharts.power);
  if (lastCharts.intensity) drawIntensityChart(lastCharts.intensity);
}

// ---- asking

// A token stays in this tab, and goes nowhere but to this collector.
let token = sessionStorage.getItem("token") || "";
let locked = false;

async function ask(path) {
  const headers = token ? { authorization: "Bearer " + token } : {};
  const answer = await fetch(path, { headers, signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
  locked = answer.status === 401;
  if (!answer.ok) throw new Error(path + " answered " + answer.status);
  return answer.json();
}

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  sessionStorage.setItem("token", token);
  refreshNow().catch(() => {}).then(drawState);
});

async function refreshNow() {
  lastNow = await ask("/api/v1/now?top=15");
  lastAnswer = Date.now();
  const first = at("numbers").hidden;
  drawNow(lastNow);
  if (first && !at("numbers").hidden) { refreshCharts().catch(() => {}); refreshToday().catch(() => {}); }
}

async function refreshCharts() {
  if (!lastNow || lastNow.state === "waiting") return;
  const [power, intensity] = await Promise.allSettled([ask("/api/v1/power?since=1h"), ask("/api/v1/intensity?since=24h")]);
  if (power.status === "fulfilled") {
    lastCharts.power = power.value;
    show(at("power-simulated"), power.value.simulated);
  }
  else if (String(power.reason).endsWith("403")) draw("power-chart", [], {}, "A team's token does not show this: joulegram report has its energy over any time.");
  if (intensity.status === "fulfilled") lastCharts.intensity = intensity.value.points;
  drawCharts();
}

async function refreshToday() {
  if (!lastNow || lastNow.state === "waiting") return;
  const midnight = new Date();
  midnight.setHours(0, 0, 0, 0);
  drawToday(await ask("/api/v1/report?by=team&since=" + encodeURIComponent(midnight.toISOString())));
}

function drawState() {
  const silentMs = Date.now() - lastAnswer;
  const offline = lastAnswer ? silentMs > 7000 : Date.now() - opened > 7000;
  const alert = at("alert");
  document.body.classList.toggle("stale", (offline && lastAnswer > 0) || Boolean(lastNow && lastNow.state === "silent"));
  let dot = "";
  let state = "Connecting…";
  let problem = "";
  show(at("sign-in"), locked);
  if (locked) {
    dot = "warn";
    state = "Locked";
    problem = token ? "This collector does not know that token." : "";
  } else if (paused) {
    dot = "warn";
    state = "Paused";
  } else if (offline) {
    dot = "bad";
    state = "Not answering";
    problem = lastAnswer
      ? "The collector stopped answering. These are its last numbers, of " + clock(lastNow.at) + ". Is it running?"
      : "The collector does not answer. Is it running?";
  } else if (lastNow && lastNow.state === "live") {
    dot = "live";
    state = "Live, window to " + clock(lastNow.window_end);
  } else if (lastNow && lastNow.state === "silent") {
    dot = "bad";
    state = "No node reports";
    problem = "No node has reported since " + clock(lastNow.window_end) + ", so what is drawn now is not known. Are the agents running?";
  } else if (lastNow && lastNow.state === "nothing") {
    dot = "live";
    state = "Nothing of your team runs now";
  } else if (lastNow) {
    dot = "warn";
    state = "Waiting for an agent";
  }
  if (at("dot").className !== "dot " + dot) at("dot").className = "dot " + dot;
  text(at("state"), state);
  text(alert, problem);
  show(alert, Boolean(problem));
}

// Each of them waits for its answer before it asks again: a slow collector is not pressed.
async function repeat(refresh, everyMs) {
  for (;;) {
    if (!paused && !document.hidden) {
      try { await refresh(); } catch { /* drawState says so */ }
      drawState();
    }
    await new Promise((wake) => setTimeout(wake, everyMs));
  }
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  text(at("pause"), paused ? "Resume" : "Pause");
  if (!paused) refreshNow().catch(() => {}).then(drawState);
  drawState();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
document.querySelector("script[src*=plotly]").addEventListener("load", drawCharts);
document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused) refreshNow().catch(() => {}).then(drawState); });

ask("/api/v1/health").then((health) => text(at("version"), "joulegram " + health.version)).catch(() => {});
repeat(refreshNow, NOW_EVERY_MS);
repeat(refreshCharts, CHARTS_EVERY_MS);
repeat(refreshToday, TODAY_EVERY_MS);
