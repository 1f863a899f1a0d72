/** The first page: the stages, the place to send scans, and the newest scans. */

import { EXPLAINED, STATUS, UNKNOWN, bar, duration, el, gradeChip, ml, plural, probability, remedy, sentence, setText, statusText, visible, when } from "./format.js";
import { uploadPanel } from "./upload.js";

const FRESH_MS = 10_000; // how long a new scan is marked, if no other comes
const PAGE = 50; // scans that are shown at first, and that "Show more" adds
const ENDED = ["ok", "no tumour", "failed"];
const STATES = { ok: "running", gone: "gone", stuck: "stuck" };
const COLUMNS = [
  ["scan", "Scan", "The name of the file or of the folder, and the patient"],
  ["state", "State", "waiting, in work, answered, no tumour, or failed"],
  ["grade", "Grade", "HGG: high-grade glioma. LGG: low-grade glioma"],
  ["p", "P(HGG)", "The probability of a high-grade glioma, from 0 to 1"],
  ["ml", "Tumour", "Volume of the tumour in millilitres"],
  ["slices", "Tumour slices", "Slices with tumour, of the slices that went through the U-Net"],
  ["time", "Sent", "When the scan was sent, and how long its answer took"],
];
const TASKS = {
  preprocessor: "Reads the scan, and cuts it into slices of equal size and brightness.",
  extractor: "Marks the tumour in each slice with the U-Net, and computes the slice's features.",
  classifier: "Grades the features of each slice with tumour: HGG or LGG.",
  assembler: "Joins the slices of a scan to its mask and its grade: the answer.",
  generator: "Makes synthetic features of a grade when a client asks for them.",
  balancer: "Makes synthetic features of the grade of which fewer labelled slices have passed, for training.",
  recorder: "Writes features to disk, for training.",
};
const MOST = 1000; // scans of one request
const NUMBERS = ["p", "ml", "slices", "time"];

export async function overviewPage(root, app) {
  const strip = stageStrip(app);
  const table = scanTable(app);
  root.append(el("h1", { class: "hidden-text" }, "Scans and stages"), strip.element, uploadPanel(app), table.element);
  strip.show(app.status());
  const ends = [
    app.on("status", strip.show),
    app.on("scans", table.change),
  ];
  await table.load();
  return () => ends.forEach((end) => end());
}

/* Stages */

function stageStrip(app) {
  const strip = el("ol", { class: "strip" });
  const line = el("p", { class: "strip-line muted small", role: "status" });
  const cards = new Map();
  const element = el(
    "section",
    { "aria-labelledby": "stages-title" },
    el("div", { class: "head" }, el("h2", { id: "stages-title" }, "Stages")),
    explanation(),
    strip,
    line,
  );
  const show = (status) => {
    if (!status) return;
    const known = status.stages.length > 0; // not while the broker is away
    const stages = known ? status.stages : [...cards.keys()].map((name) => ({ name }));
    for (const stage of stages) {
      if (!cards.has(stage.name)) cards.set(stage.name, stageCard(stage.name));
      cards.get(stage.name).show(stage, app);
    }
    const shown = stages.map((stage) => cards.get(stage.name).element);
    if (shown.length !== strip.children.length) strip.replaceChildren(...shown);
    const waiting = stages.reduce((sum, stage) => sum + (stage.waiting ?? 0), 0);
    const left = status.left_s ? `About ${duration(status.left_s)} until all waiting scans are answered.` : "";
    const problems = reasons(stages);
    if (status.problem) problems.unshift(status.problem);
    const counted = stages.some((stage) => stage.waiting !== null && stage.waiting !== undefined);
    const calm = status.problem || !counted ? "" : left || (waiting ? `${plural(waiting, "message")} waiting.` : "No scan waits.");
    setText(line, problems.join(" · ") || calm);
    line.classList.toggle("bad-text", problems.length > 0);
    for (const name of ["notice", "bad"]) line.classList.toggle(name, !shown.length && Boolean(status.problem));
  };
  return { element, show };
}

/** Why stages do not run: each reason once, with the names of its stages. */
function reasons(stages) {
  const names = new Map();
  for (const { name, state, reason } of stages) {
    if (state !== "ok" && reason) names.set(reason, [...(names.get(reason) ?? []), name]);
  }
  return [...names].map(([reason, [first, ...others]]) =>
    !others.length && reason.startsWith(`no ${first} runs`) ? reason : `${[first, ...others].join(", ")}: ${reason}`,
  );
}

function explanation() {
  return el(
    "details",
    { class: "small what" },
    el("summary", {}, "What is this?"),
    el(
      "p",
      { class: "muted" },
      "A scan passes the stages from left to right, through one queue before each. Waiting: messages in the queue. ",
      "In work: messages that a process has taken. Messages: how many the stage completes; a scan is several messages. Processes: how many take ",
      "messages from the queue; with none, the stage is gone and its scans wait. Dead: messages that the stage gave up; ",
      "the page Dead letters shows why and sends them back.",
    ),
    el("dl", { class: "facts" }, Object.entries(TASKS).flatMap(([name, task]) => [el("dt", {}, name), el("dd", {}, task)])),
  );
}

function stageCard(name) {
  const state = el("span", { class: "state" });
  const values = Object.fromEntries(["waiting", "in_work", "rate", "consumers", "dead"].map((key) => [key, el("dd")]));
  const term = (key, text) => [el("dt", {}, text), values[key]];
  const element = el(
    "li",
    { class: "stage", title: TASKS[name.split(".")[0]], data: { stage: name } },
    el("h3", {}, el("span", {}, name), state),
    el(
      "dl",
      {},
      ...term("waiting", "Waiting"),
      ...term("in_work", "In work"),
      ...term("rate", "Messages"),
      ...term("consumers", "Processes"),
      ...term("dead", "Dead"),
    ),
  );
  const show = (stage, app) => {
    const before = element.dataset.state;
    element.dataset.state = stage.state in STATES ? stage.state : "unknown";
    if (before && before !== element.dataset.state) app.announce(`Stage ${name}: ${STATES[stage.state] ?? "unknown"}`);
    setText(state, STATES[stage.state] ?? "unknown");
    for (const key of ["waiting", "in_work", "consumers", "dead"]) setText(values[key], String(stage[key] ?? UNKNOWN));
    setText(values.rate, rate(stage.rate));
    values.dead.classList.toggle("dead-some", Boolean(stage.dead));
  };
  return { element, show };
}

function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return UNKNOWN;
  if (perSecond === 0) return "0 / s";
  return perSecond >= 0.95 ? `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} / s` : `${(60 * perSecond).toFixed(perSecond < 0.1 ? 1 : 0)} / min`;
}

/* Scans */

function scanTable(app) {
  const rows = new Map(); // id → {row, tr}
  let most = PAGE;
  let total = 0;
  let version = 0; // of the newest event
  let loaded = false;
  let marked = 0; // the timer that ends the mark of new scans
  const body = el("tbody");
  const count = el("span", { class: "muted small" });
  const more = el("button", { type: "button", class: "more", hidden: true, on: { click: showMore } }, "Show more");
  const heads = COLUMNS.map(([key, text, title]) => el("th", { class: `c-${key}${NUMBERS.includes(key) ? " number" : ""}`, scope: "col" }, el("abbr", { title }, text)));
  const table = el("table", { class: "scans", "aria-labelledby": "scans-title" }, el("thead", {}, el("tr", {}, heads)), body);
  const empty = el(
    "div",
    { class: "empty", hidden: true },
    el("p", { class: "lead" }, "No scans yet"),
    el("p", {}, "Drop a FLAIR scan on this page, or press “Send a phantom HGG”: the console draws a head with a tumour and sends it, so that you see an answer."),
  );
  const problem = el("p", { class: "notice bad", role: "alert", hidden: true });
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "scans-title" },
    el("div", { class: "head" }, el("h2", { id: "scans-title" }, "Newest scans"), count),
    problem,
    table,
    empty,
    more,
    app.status()?.kept === false &&
      el("p", { class: "muted small" }, "Scans and answers live as long as the console's process. “gliaflow console --out DIR” keeps them."),
  );

  async function load() {
    try {
      const answer = await app.api.get(`api/scans?limit=${Math.min(most, MOST)}`);
      if (answer.version < version) return load(); // an event was faster
      replace(answer.scans);
      total = answer.total;
    } catch (error) {
      report(error);
    }
    draw();
  }

  /** Say why the list is not there. Of a console that is away, and of a wrong token, the banner says it. */
  function report(error) {
    problem.hidden = error.away || error.status === 401;
    setText(problem, error.message);
  }

  function replace(newest) {
    const known = new Set(newest.map(({ id }) => id));
    drop([...rows.keys()].filter((id) => !known.has(id)));
    put(newest, false);
    loaded = true;
    problem.hidden = true;
  }

  /** An event. The first of a connection has the newest scans, which replace all: the console may have started anew. */
  function change(event) {
    version = event.version;
    total = event.total;
    if (event.first && most > PAGE) return load(); // it has fewer scans than the table
    if (event.first) {
      replace(event.rows);
    } else {
      unmark();
      drop(event.removed);
      put(event.rows, loaded);
      clearTimeout(marked);
      marked = setTimeout(unmark, FRESH_MS);
    }
    draw();
  }

  /** New scans are no longer marked. An animation would draw the page without a pause while scans come. */
  function unmark() {
    for (const tr of body.querySelectorAll(".fresh")) tr.classList.remove("fresh");
  }

  function drop(ids) {
    for (const id of ids) {
      rows.get(id)?.tr.remove();
      rows.delete(id);
    }
  }

  function put(changed, live) {
    for (const row of changed) {
      const old = rows.get(row.id);
      const tr = old?.tr ?? scanRow(row.id);
      tr.show(row);
      rows.set(row.id, { row, tr });
      if (live && !old) tr.classList.add("fresh");
      if (live && row.own && ENDED.includes(row.status) && old && !ENDED.includes(old.row.status)) app.announce(sentence(row));
    }
  }

  function draw() {
    const sorted = [...rows.values()].sort((a, b) => b.row.created - a.row.created || (a.row.id < b.row.id ? 1 : -1));
    for (const { row, tr } of sorted.splice(most)) {
      tr.remove();
      rows.delete(row.id);
    }
    sorted.forEach(({ tr }, place) => {
      if (body.children[place] !== tr) body.insertBefore(tr, body.children[place] ?? null);
    });
    table.hidden = loaded && !sorted.length;
    empty.hidden = !table.hidden;
    more.hidden = sorted.length >= total;
    setText(count, !sorted.length ? "" : sorted.length < total ? `${sorted.length} of ${total}` : plural(total, "scan"));
  }

  async function showMore() {
    const oldest = [...body.children].at(-1)?.dataset.id;
    most += PAGE;
    try {
      const answer = await app.api.get(`api/scans?limit=${PAGE}&before=${encodeURIComponent(oldest)}`);
      put(answer.scans, false);
      total = answer.total;
    } catch (error) {
      report(error);
    }
    draw();
    const newest = [...body.children].findIndex((tr) => tr.dataset.id === oldest) + 1;
    if (more.hidden) body.children[newest]?.querySelector("a").focus(); // the button has gone
  }

  return { element, load, change };
}

/** A <tr> with a method `show(row)`. */
function scanRow(id) {
  const link = el("a", { href: `#/scan/${encodeURIComponent(id)}`, class: "line" });
  const note = el("span", { class: "line small muted" });
  const state = el("span");
  const meter = el("progress", { max: 1, "aria-hidden": "true" });
  const seconds = el("span", { class: "line small muted" });
  const time = el("span", { class: "line" });
  const cells = Object.fromEntries(COLUMNS.map(([key]) => [key, el(key === "scan" ? "th" : "td", { class: `c-${key}${NUMBERS.includes(key) ? " number" : ""}`, scope: key === "scan" ? "row" : null })]));
  cells.scan.append(link, note);
  cells.state.append(state, meter);
  cells.time.append(time, seconds);
  const reason = el("td", { class: "c-reason bad-text", colspan: 4, hidden: true });
  const tr = el("tr", { data: { id } }, ...Object.values(cells));
  cells.grade.before(reason); // instead of the numbers of a scan that failed
  tr.show = (row) => {
    tr.dataset.status = row.status;
    setText(link, row.name);
    link.title = visible(row.name);
    const text = noteText(row);
    setText(note, text);
    note.title = (row.warnings ?? []).map(visible).join("\n");
    setText(state, STATUS[row.status] ?? row.status);
    state.title = EXPLAINED[row.status] ?? "";
    meter.title = statusText(row);
    state.classList.toggle("bad-text", row.status === "failed");
    meter.hidden = row.status !== "working";
    if (row.progress === null || row.progress === undefined) meter.removeAttribute("value");
    else meter.value = row.progress;
    const failed = row.status === "failed";
    reason.hidden = !failed;
    const why = remedy(row.reason);
    reason.replaceChildren(el("span", { class: "clamp", title: why }, why));
    for (const key of ["grade", "p", "ml", "slices"]) cells[key].hidden = failed;
    cells.grade.replaceChildren(gradeChip(row.grade));
    const known = row.p_hgg !== null && row.p_hgg !== undefined;
    cells.p.replaceChildren(probability(row.p_hgg), ...(known ? [bar(row.p_hgg, row.grade === "HGG" ? "hgg" : "lgg")] : []));
    setText(cells.ml, ml(row.tumour_ml));
    setText(cells.slices, row.slices === null || row.slices === undefined ? UNKNOWN : `${row.tumour_slices ?? UNKNOWN} of ${row.slices}`);
    setText(time, when(row.created));
    setText(seconds, row.seconds ? duration(row.seconds) : "");
  };
  return tr;
}

function noteText(row) {
  const parts = [];
  if (row.own === false) parts.push("by another client");
  if (row.patient && row.patient !== row.name) parts.push(`patient ${row.patient}`);
  const warnings = row.warnings ?? [];
  if (warnings.length) parts.push(`⚠ ${warnings[0]}${warnings.length > 1 ? ` (and ${warnings.length - 1} more)` : ""}`);
  return parts.join(" · ");
}
