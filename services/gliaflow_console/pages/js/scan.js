/** One scan: its answer in words, its slices, P(HGG) by slice, downloads, and feature maps. */

import { complain, get, remove } from "./api.js";
import { curve, lastSlice, sliceName, strongest } from "./curve.js";
import { confirmed, duration, el, EXPLAINED, fixed, gradeChip, ml, plural, probability, remedy, sequenceName, setText, STATUS, statusText, when } from "./format.js";
import { mapsPanel } from "./maps.js";
import { slicesPanel } from "./slices.js";

const CLOSE = 0.1; // to a P(HGG) of 0.5
const PHANTOMS = "The bundle that answered was trained on phantoms (drawings of scans): its answer says nothing about a patient.";

/** Show the scan in `root`. Returns the function that ends the page. */
export async function scanPage(root, id, app) {
  const path = `api/scans/${encodeURIComponent(id)}`;
  let row = null;
  let missed = false; // a change before the first answer to `get`
  let close = () => {};
  let turn = 0;

  const ends = [app.on("scans", changed), app.on("connected", reload)];
  const end = () => {
    turn = -1;
    ends.forEach((each) => each());
    close();
  };
  try {
    row = await get(path);
  } catch (error) {
    end();
    throw error;
  }
  if (!root.isConnected) return end; // the user has opened another page meanwhile
  show();
  if (missed) reload();
  return end;

  function changed({ rows, removed }) {
    if (!row) missed ||= removed.includes(id) || rows.some((each) => each.id === id);
    if (!row) return;
    const next = rows.find((each) => each.id === id);
    if (removed.includes(id)) gone();
    else if (next && fingerprint(next) !== fingerprint(row)) reload();
    else if (next) root.querySelector("#scan-state")?.replaceWith(stateLine({ ...row, ...next }));
  }

  async function reload() {
    if (!row) {
      missed = true;
      return;
    }
    const mine = ++turn;
    try {
      const next = await get(path);
      if (mine !== turn) return;
      const same = fingerprint(next) === fingerprint(row);
      row = next;
      if (!same || root.querySelector(".no-slices")) {
        show();
        app.announce?.(verdict(row).join(" "));
      }
    } catch (error) {
      if (mine === turn && error.status === 404) gone();
    }
  }

  function show() {
    close();
    document.title = `${row.name} – gliaflow console`;
    const parts = scanParts(row, path, Boolean(app.status()?.notice));
    close = parts.close;
    root.replaceChildren(...parts.elements);
  }

  function gone() {
    close();
    close = () => {};
    root.replaceChildren(
      el("h1", {}, row.name),
      el("p", { class: "notice" }, "The console no longer has this scan. It was deleted, or newer scans took its place. ", back()),
    );
  }
}

/** What makes the page draw anew. Progress does not. */
function fingerprint({ status, grade, p_hgg: p, tumour_ml: volume, reason, warnings, bundle, dicom }) {
  return JSON.stringify([status === "queued" ? "working" : status, grade, p, volume, reason, warnings, bundle, dicom]);
}

/** `noticed`: the page already says that its bundle was trained on phantoms. */
function scanParts(row, path, noticed) {
  const head = el("div", { class: "head" }, el("h1", {}, row.name), el("p", { class: "muted small" }, back()));
  const answered = ["ok", "no tumour", "failed"].includes(row.status);
  if (!answered) return { elements: [head, answerPanel(row, noticed)], close() {} };
  if (row.status === "failed") return { elements: [head, answerPanel(row, noticed), factsPanel(row, path)], close() {} };
  const clear = row.status === "ok" ? strongest(row) : null;
  const slices = slicesPanel(row, goTo);
  const graph = row.slice_p.length ? curve(row, goTo) : null;
  const maps = row.has_image ? mapsPanel(row) : null;

  function goTo(z) {
    for (const part of [slices, graph, maps]) part?.show(z);
  }

  goTo(clear?.z ?? Math.floor((row.depth ?? row.shape?.[2] ?? 2) / 2));
  return {
    elements: [
      head,
      answerPanel(row, noticed, clear, goTo),
      el("div", { class: "split" }, slices.element, el("div", { class: "stack" }, curvePanel(row, graph), factsPanel(row, path))),
      maps?.element,
    ].filter(Boolean),
    close() {
      slices.close();
      graph?.close();
    },
  };
}

/* The answer */

function answerPanel(row, noticed, clear = null, goTo = null) {
  const [lead, ...rest] = verdict(row);
  return el(
    "section",
    { class: "panel answer", "aria-label": "Answer" },
    el(
      "div",
      { class: "answer-line" },
      row.status === "ok" && gradeChip(row.grade),
      el("p", { class: row.status === "failed" ? "lead bad-text" : "lead" }, lead),
    ),
    rest.map((text) => el("p", {}, text)),
    clear &&
      el(
        "div",
        { class: "clear-slice" },
        el("p", {}, clearText(row, clear)),
        el("button", { type: "button", class: "primary", on: { click: () => goTo(clear.z) } }, `Show slice ${clear.z}`),
      ),
    row.drawn && el("p", { class: "drawn" }, drawnText(row)),
    ["queued", "working"].includes(row.status) && stateLine(row),
    row.trained_on === "phantoms" && !noticed && el("p", { class: "notice" }, PHANTOMS),
    row.warnings.length > 0 &&
      el("ul", { class: "warnings", "aria-label": "Warnings" }, row.warnings.map((text) => el("li", {}, text))),
  );
}

/** The answer in sentences, the most important first. */
function verdict(row) {
  if (row.status === "ok") {
    const [kind, other] = row.grade === "HGG" ? ["high-grade", "low-grade"] : ["low-grade", "high-grade"];
    const even = Math.abs(row.p_hgg - 0.5) < CLOSE ? ", but close to even" : "";
    const unseen = row.depth > row.slices ? `${plural(row.depth - row.slices, "slice shows", "slices show")} no head. ` : "";
    return [
      `P(HGG) ${probability(row.p_hgg)}: more like a ${kind} glioma than a ${other} one${even}`,
      `The tumour has ${ml(row.tumour_ml)} in ${row.tumour_slices} of the ${plural(row.slices, "slice")} that went through the U-Net. ${unseen}` +
        "Only slices with tumour speak for a grade, and P(HGG) is their average (on the log-odds scale).",
    ];
  }
  if (row.status === "no tumour") return ["No tumour found", "No slice has tumour, so there is no grade and no slice speaks for one."];
  if (row.status === "failed") return ["The pipeline could not answer", remedy(row.reason)];
  return [STATUS[row.status] ?? row.status, EXPLAINED[row.status] ?? ""];
}

function clearText(row, clear) {
  const which = row.slice_p.length === 1 ? "is the only slice with tumour" : `speaks most for ${row.grade}`;
  const against = row.slice_p.filter(([, p]) => p >= 0.5 !== (row.grade === "HGG")).length;
  const others = against ? ` ${plural(against, "slice speaks", "slices speak")} against it.` : "";
  return `${sliceName(clear.z, row)} ${which}: P(HGG) ${probability(clear.p)} there${clear.ml === null ? "" : `, with ${ml(clear.ml)} of tumour`}.${others}`;
}

/** A phantom's true grade beside the pipeline's. */
function drawnText({ drawn, status, grade }) {
  const known = `This scan is a phantom that was drawn with ${drawn === "HGG" ? "a high-grade" : "a low-grade"} tumour (${drawn})`;
  if (status === "no tumour") return `${known}. The pipeline found no tumour, which is wrong.`;
  if (status !== "ok") return `${known}.`;
  if (grade === drawn) return `${known}. The pipeline says ${grade}, which is right.`;
  return `${known}. The pipeline says ${grade}, which is wrong. That happens: some phantoms have the looks of neither grade, on purpose.`;
}

function stateLine(row) {
  return el(
    "div",
    { id: "scan-state", class: "scan-state" },
    el("p", { class: "muted" }, statusText(row), ". The answer appears here without reloading."),
    el("progress", { max: 1, value: row.progress || null, "aria-label": "Progress" }),
  );
}

/* The curve */

function curvePanel(row, graph) {
  const panel = el("section", { class: "panel", "aria-labelledby": "curve-title" }, el("h2", { id: "curve-title" }, "P(HGG) by slice"));
  if (graph) {
    panel.append(
      graph.element,
      el(
        "p",
        { class: "muted small" },
        "Each mark is a slice with tumour: ■ speaks for HGG, ● for LGG. The ring is the slice that speaks most for the grade. ",
        row.slice_ml.length > 0 && "Grey bars: volume of tumour. ",
        `Slices are numbered from 0 at the feet${row.depth ? ` to ${lastSlice(row)} at the top of the head` : ""}. `,
        "Click, or use the arrow keys, to go to a slice.",
      ),
    );
  } else if (row.status === "ok") {
    panel.append(el("p", { class: "muted" }, "This answer has no P(HGG) by slice: stages of an earlier release made it."));
  } else {
    panel.append(el("p", { class: "muted" }, "No slice has tumour."));
  }
  return panel;
}

/* Facts and downloads */

function factsPanel(row, path) {
  const facts = [
    ["Patient", row.patient],
    ["Sequences", row.own && ["flair", ...row.sequences].map(sequenceName).join(", ")],
    ["Sent", row.own ? when(row.created) : `${when(row.created)}, by another client`],
    ["Answer took", row.seconds === null ? null : duration(row.seconds)],
    ["Voxels", row.shape && row.shape.join(" × ")],
    ["Spacing", row.spacing && `${row.spacing.map((step) => fixed(step, 2)).join(" × ")} mm`],
    ["Bundle", row.bundle && el("span", { class: "mono" }, row.bundle)],
    ["Trained on", row.bundle && (row.trained_on || "not stated")],
  ].filter(([, value]) => value);
  const problem = el("p", { class: "bad-text", role: "alert", hidden: true });
  return el(
    "section",
    { class: "panel", "aria-labelledby": "facts-title" },
    el("h2", { id: "facts-title" }, "Details and downloads"),
    el("dl", { class: "facts" }, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el(
      "div",
      { class: "controls downloads" },
      row.has_mask && download(`${path}/mask.nii.gz`, "Mask (NIfTI)", "The mask on the scan's own voxels, as gliaflow submit writes it"),
      row.has_dicom && download(`${path}/mask.dcm`, "Mask (DICOM SEG)", "The mask as a DICOM segmentation of the series that was sent"),
      download(`${path}/row.json`, "Answer (JSON)", "All numbers of this page for a program"),
      el("button", { type: "button", class: "danger", on: { click: drop } }, "Delete"),
    ),
    problem,
  );

  async function drop() {
    if (!(await confirmed("Delete this scan and its answer from the console?", "Delete"))) return;
    try {
      await remove(path);
      location.hash = "#/";
    } catch (error) {
      problem.hidden = false;
      complain(problem, error);
    }
  }
}

function download(address, text, title) {
  return el("a", { class: "button", href: address, download: "", title }, text);
}

function back() {
  return el("a", { href: "#/" }, "All scans");
}
