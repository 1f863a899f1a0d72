/** Elements and texts. All text goes in with textContent: names come from the sender and are untrusted. */

/**
 * An element. Properties: "class", "on" ({event: handler}), "data" ({name: value}); others are attributes, and null or
 * false leaves one out. Children: elements, texts, or null.
 */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** An SVG element, with the same arguments. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    } else if (name === "data") {
      Object.assign(element.dataset, value);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : visible(String(value)));
    }
  }
  if (element.localName === "abbr") element.tabIndex = 0; // style.css shows the title of the one with the focus
  const parts = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...parts.map((part) => (part instanceof Node ? part : visible(String(part)))));
  return element;
}

/** The text with each character that hides or reverses others as \u{202e}, as gliaflow_runtime.visible. */
export function visible(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (hidden) => `\\u{${hidden.codePointAt(0).toString(16)}}`);
}

/** Change the text of an element only if it differs, so that selections stay and live regions are quiet. */
export function setText(element, text) {
  const shown = visible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

export const UNKNOWN = "–";

export function fixed(value, digits) {
  return value === null || value === undefined ? UNKNOWN : value.toFixed(digits);
}

/** P(HGG): never 0.00, 0.50 or 1.00 unless it is exactly that, so that it agrees with the grade. */
export function probability(p) {
  if (p === null || p === undefined) return UNKNOWN;
  if (p !== 0.5 && p.toFixed(3) === "0.500") return p < 0.5 ? "< 0.5" : "> 0.5";
  if (p !== 0.5 && p.toFixed(2) === "0.50") return p.toFixed(3);
  if (p > 0 && p < 0.005) return "< 0.01";
  if (p < 1 && p >= 0.995) return "> 0.99";
  return p.toFixed(2);
}

export function ml(value) {
  return value === null || value === undefined ? UNKNOWN : `${value.toFixed(value < 100 ? 1 : 0)} ml`;
}

export function percent(share) {
  return share === null || share === undefined ? UNKNOWN : `${Math.round(100 * share)} %`;
}

export function bytes(count) {
  if (count === null || count === undefined) return UNKNOWN;
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(count, 1)) / 10), units.length - 1);
  return `${(count / 1024 ** power).toFixed(power > 1 ? 1 : 0)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** The time of the day, and the date if it is another day. */
export function when(seconds) {
  if (!seconds) return UNKNOWN;
  const date = new Date(1000 * seconds);
  const today = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], today ? { timeStyle: "medium" } : { timeStyle: "short" });
  return today ? time : `${date.toLocaleDateString([], { dateStyle: "medium" })}, ${time}`;
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

const MEANING = {
  HGG: "HGG: high-grade glioma (WHO grade 3 or 4)",
  LGG: "LGG: low-grade glioma (WHO grade 2)",
};

/** The grade as a chip. HGG is a square, LGG is a disc: the colour is not the only sign. */
export function gradeChip(grade) {
  if (!grade) return el("span", { class: "muted" }, UNKNOWN);
  const kind = grade === "HGG" ? "hgg" : grade === "LGG" ? "lgg" : "";
  return el("span", { class: `chip ${kind}`, title: MEANING[grade] ?? grade }, grade);
}

export const STATUS = {
  queued: "waiting",
  working: "in work",
  ok: "answered",
  "no tumour": "no tumour",
  failed: "failed",
};

export const EXPLAINED = {
  queued: "The scan waits to be sent into the pipeline.",
  working: "The stages work on this scan.",
  ok: "The pipeline has found a tumour and graded it.",
  "no tumour": "The pipeline has found no tumour, so there is no grade.",
  failed: "The pipeline could not answer. The reason is under the scan's name.",
};

export function statusText(row) {
  const text = STATUS[row.status] ?? row.status;
  return row.status === "working" && row.progress ? `${text}, ${percent(row.progress)}` : text;
}

const SEQUENCES = { flair: "FLAIR", t1: "T1", t1ce: "T1 after contrast", t2: "T2" };
const MISSING = /([\w, ]+): the scan came without it, and this bundle needs/;

/** The name of a sequence in words. */
export function sequenceName(name) {
  return SEQUENCES[name] ?? name;
}

/** Why a scan failed or a message died, with a remedy that the page has. */
export function remedy(reason) {
  if (/4-D image/.test(reason)) return `Several volumes in one file. Save the FLAIR volume as a 3-D file and send that, or use “gliaflow submit --channel”. (${reason})`;
  if (/not a NIfTI file/.test(reason)) return `${reason}. Send a NIfTI file (.nii, .nii.gz) or a DICOM series.`;
  const missing = MISSING.exec(reason)?.[1].trim();
  if (missing) {
    const names = missing.split(", ").map(sequenceName).join(", ");
    return `The scan came without ${names}, which this bundle needs. Send the folder of the study, or all its files at once. Beside another pipeline, the console must be started with --sequences ${missing.replaceAll(" ", "")}.`;
  }
  return reason ?? "";
}

/** One sentence about a scan, for screen readers and titles. */
export function sentence(row) {
  if (row.status === "ok") return `${row.name}: ${row.grade}, P(HGG) ${probability(row.p_hgg)}, tumour ${ml(row.tumour_ml)}`;
  if (row.status === "no tumour") return `${row.name}: no tumour`;
  if (row.status === "failed") return `${row.name}: failed. ${row.reason}`;
  return `${row.name}: ${statusText(row)}`;
}

/** A horizontal bar for a share from 0 to 1. */
export function bar(share, kind = "") {
  const width = Math.max(0, Math.min(1, share)) * 100;
  return svg(
    "svg",
    { class: `bar ${kind}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width, height: 8 }),
  );
}

/** Ask before something that cannot be undone. The promise gives true for the action. */
export function confirmed(question, action) {
  return new Promise((resolve) => {
    const dialog = el(
      "dialog",
      { "aria-label": question, on: { close: () => (resolve(dialog.returnValue === "yes"), dialog.remove()) } },
      el("p", {}, question),
      el(
        "div",
        { class: "controls" },
        el("button", { type: "button", on: { click: () => dialog.close("no") } }, "Cancel"),
        el("button", { type: "button", class: "danger", on: { click: () => dialog.close("yes") } }, action),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
