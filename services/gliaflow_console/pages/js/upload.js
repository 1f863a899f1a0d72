/**
 * Send scans: by a drop anywhere on the page, by a choice of files or of a folder, or as a phantom.
 *
 * The rules are those of `gliaflow submit`: a file alone is always a scan. Of a folder or of several files, the console
 * takes the FLAIR scans and says what it leaves out.
 */

import { bytes, el, percent, plural, sequenceName, setText } from "./format.js";

const AT_ONCE = 4; // files of a folder that are sent side by side
const KEPT_MS = 4000; // how long the line of a sent scan stays

const list = el("ul", { class: "uploads", "aria-label": "Uploads" }); // in a corner of all pages
const results = el("ul", { class: "upload-results", "aria-label": "Results of uploads" }); // to read: above the page, so that it covers nothing

/** The place to drop scans or to choose them. */
export function uploadPanel(app) {
  const files = picker({ multiple: true }, (chosen) => sendFiles(app, chosen));
  const folder = picker({ webkitdirectory: true }, (chosen) => sendFolders(app, byTopFolder(chosen)));
  const { dicom, limits, sequences = [] } = app.status() ?? {};
  const kinds = `NIfTI (.nii, .nii.gz), up to ${bytes(limits?.upload_bytes)} a file, or a folder`;
  return el(
    "section",
    { "aria-labelledby": "send-title", class: "drop" },
    el(
      "div",
      {},
      el("h2", { id: "send-title" }, "Drop a FLAIR scan anywhere on this page"),
      el("p", { class: "muted small" }, kinds, dicom ? " of DICOM or NIfTI files." : ". DICOM needs: pip install 'gliaflow[dicom]'."),
      sequences.length > 0 &&
        el(
          "p",
          { class: "muted small" },
          `The bundle also reads ${sequences.map(sequenceName).join(", ")}. Send the files of a scan together: their folder, or all at once.`,
        ),
    ),
    el(
      "div",
      { class: "controls" },
      el("button", { type: "button", class: "primary", on: { click: () => files.click() } }, "Choose files…"),
      el("button", { type: "button", on: { click: () => folder.click() } }, "Choose a folder…"),
      ...phantoms(app),
      files,
      folder,
    ),
  );
}

function phantoms(app) {
  if (app.status()?.phantoms === false) return [];
  const title = "No scan at hand? A phantom is a drawn head with a tumour. The console sends it like a scan.";
  const buttons = ["HGG", "LGG"].map((grade) =>
    el("button", { type: "button", title, on: { click: () => sendPhantom(app, grade) } }, `Send a phantom ${grade}`),
  );
  return [el("span", { class: "muted small", title }, "No scan at hand?"), ...buttons];
}

function picker(attributes, take) {
  const input = el("input", { type: "file", ...attributes, hidden: true, tabindex: "-1", "aria-hidden": "true" });
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  return input;
}

/** Take what is dropped on the page, on whichever page. Without this, the browser would leave the page for the file. */
export function acceptDrops(app) {
  const over = el("div", { class: "drop-over", hidden: true, "aria-hidden": "true" }, "Drop to send it into the pipeline");
  document.body.append(list, over);
  document.querySelector(".notices").append(results);
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (change) => {
    depth = change ? Math.max(0, depth + change) : 0;
    over.hidden = depth === 0;
  };
  window.addEventListener("hashchange", () => results.querySelectorAll("[data-state=sent]").forEach((old) => old.remove()));
  window.addEventListener("beforeunload", (event) => list.querySelector("[data-state=sending]") && event.preventDefault());
  window.addEventListener("dragenter", (event) => hasFiles(event) && show(1));
  window.addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
  window.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(0);
    if (!/^#?\/?$/.test(location.hash)) location.hash = "#/";
    sendDropped(app, event.dataTransfer);
  });
}

async function sendDropped(app, transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => [item.webkitGetAsEntry?.(), item.getAsFile()]);
  const loose = [];
  const folders = new Map();
  for (const [entry, file] of entries) {
    if (entry?.isDirectory) folders.set(entry.name, await filesUnder(entry).catch((error) => error));
    else if (file) loose.push(file);
  }
  if (loose.length) sendFiles(app, loose);
  sendFolders(app, folders);
}

/** [name, file] of each file under a dropped folder. The names begin with the folder's name. */
async function filesUnder(folder) {
  const reader = folder.createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at once
    if (!some.length) return files;
    for (const entry of some) {
      if (entry.isDirectory) files.push(...(await filesUnder(entry)));
      else files.push([entry.fullPath.slice(1), await new Promise((resolve, reject) => entry.file(resolve, reject))]);
    }
  }
}

function byTopFolder(files) {
  const folders = new Map();
  for (const file of files) {
    const top = file.webkitRelativePath.split("/")[0];
    folders.set(top, [...(folders.get(top) ?? []), [file.webkitRelativePath, file]]);
  }
  return folders;
}

function sendFiles(app, files) {
  if (files.length === 1) sendFile(app, files[0]);
  else if (files.length) sendFolder(app, plural(files.length, "file"), files.map((file) => [file.name, file]));
}

function sendFolders(app, folders) {
  for (const [name, files] of folders) sendFolder(app, name, files);
}

async function sendPhantom(app, grade) {
  await upload(app, `phantom ${grade}`, null, async (_, __, say) => {
    say("the console draws a head with a tumour, and then sends it: some seconds");
    return { ids: [(await app.api.post("api/phantoms", { grade })).id] };
  });
}

async function sendFile(app, file) {
  await upload(app, file.name, file.size, async (progress, signal) => {
    checkSize(app, file.name, file);
    const path = `api/scans?name=${encodeURIComponent(file.name)}`;
    return { ids: [(await app.api.send("POST", path, file, { progress, signal })).id] };
  });
}

async function sendFolder(app, name, files) {
  const total = Array.isArray(files) ? files.reduce((sum, [, file]) => sum + file.size, 0) : 0;
  await upload(app, name, total, async (progress, signal) => {
    if (!Array.isArray(files)) throw new Error(`The browser cannot read the folder (${files.message || files.name}). Check its permissions.`);
    if (!files.length) throw new Error("The folder has no files. Drop the folder that holds the scan's files.");
    for (const [path, file] of files) checkSize(app, path, file);
    const { folder } = await app.api.post("api/folders");
    const url = `api/folders/${encodeURIComponent(folder)}`;
    try {
      await sendAll(app, url, files, progress, signal);
    } catch (error) {
      app.api.remove(url).catch(() => {}); // its files; the console deletes them within an hour too
      throw error;
    }
    return { ...(await take(url)), files: files.length };
  });

  async function take(url, series) {
    try {
      return await app.api.post(url, series && { series });
    } catch (error) {
      if (error.status === 422 && app.status()?.dicom) error.again = seriesForm((text) => upload(app, name, 0, () => take(url, text)));
      throw error;
    }
  }
}

/** Another try with a DICOM series that the user names. The files are in the console already. */
function seriesForm(send) {
  const input = el("input", { type: "text", required: true, maxlength: 128, size: 30 });
  const submit = (event) => {
    event.preventDefault();
    event.target.closest(".upload-results > li").remove();
    send(input.value);
  };
  return el(
    "form",
    { class: "controls small", on: { submit } },
    el("label", {}, "DICOM series to take (number or part of its description)", input),
    el("button", {}, "Try again"),
  );
}

async function sendAll(app, url, files, progress, signal) {
  let sent = 0;
  const left = files.values(); // all workers take from it
  const work = async () => {
    for (const [path, file] of left) {
      let before = 0;
      const count = (loaded) => {
        sent += loaded - before;
        before = loaded;
        progress(sent);
      };
      await app.api.send("PUT", `${url}?name=${encodeURIComponent(path)}`, file, { progress: count, signal });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

function checkSize(app, name, file) {
  const most = app.status()?.limits?.upload_bytes;
  if (most && file.size > most) {
    throw new Error(`${name} has ${bytes(file.size)}, the limit is ${bytes(most)}. The operator raises it with GLIAFLOW_CONSOLE_UPLOAD_MIB.`);
  }
}

/** Show a line for the upload, run it, and say how it ended. `total`: bytes; null: it cannot be cancelled. */
async function upload(app, name, total, run) {
  const abort = new AbortController();
  const state = el("span", { class: "muted small" }, "starting");
  const label = el("strong", {}, name);
  const meter = total ? el("progress", { max: 1, value: 0, "aria-label": `Upload of ${name}` }) : null;
  const button = el("button", { type: "button", class: "quiet", hidden: total === null, on: { click: () => abort.abort() } }, "Cancel");
  const item = el(
    "li",
    { data: { state: "sending" } },
    el("div", { class: "upload-line" }, el("span", {}, label, " ", state), button),
    meter,
  );
  list.prepend(item);
  const progress = (loaded) => {
    const share = Math.min(1, loaded / total);
    if (meter) meter.value = share;
    setText(state, share < 1 ? `uploading, ${percent(share)} of ${bytes(total)}` : "uploaded, the console checks it");
  };
  const say = (text) => setText(state, text);
  const finish = (kind, text, extra = []) => {
    item.dataset.state = kind;
    say(text);
    state.classList.toggle("bad-text", kind === "failed");
    meter?.remove();
    const close = () => {
      item.remove();
      document.getElementById("main").focus();
    };
    button.replaceWith(el("button", { type: "button", class: "quiet", on: { click: close } }, "Close"));
    item.append(...extra);
    if (kind === "failed" || extra.length) results.prepend(item);
    app.announce(`${name}: ${text}`);
  };
  try {
    const { ids = [], left_out: leftOut = [], files = 0 } = await run(progress, abort.signal, say);
    const [head, text] = sentText(ids.length, leftOut, files);
    if (head) setText(label, name === plural(files, "file") ? head : `${name}: ${head}`);
    finish("sent", text, leftOutList(leftOut));
    if (!leftOut.length) setTimeout(() => item.remove(), KEPT_MS);
  } catch (error) {
    abort.abort(); // the other files of the folder
    if (error.name === "AbortError" || error.status === 401) item.remove(); // the banner says what is wrong with the token
    else finish("failed", error.message, [error.again ?? "", ...leftOutList(error.body?.left_out ?? [])]);
    if (error.away) item.dataset.away = ""; // until the list of scans is there again
  }
}

/** What became of an upload of so many files: a headline, or none, and the rest. Where each scan is a file, files are counted. */
function sentText(sent, leftOut, files) {
  if (!leftOut.length) return ["", sent === 1 ? "received, its row is in the table" : `${plural(sent, "scan")} received`];
  const counted = sent + leftOut.length === files;
  const head = counted ? `${sent} of ${plural(files, "file")} ${sent === 1 ? "was" : "were"} sent:` : `${plural(sent, "scan was", "scans were")} sent:`;
  return [head, leftOut.length === 1 ? `${leftOut[0].name} was left out` : `${leftOut.length} were left out`];
}

function leftOutList(leftOut) {
  if (!leftOut.length) return [];
  const lines = leftOut.slice(0, 100).map(({ name, why }) => el("li", {}, el("span", { class: "mono" }, name), `: ${why}`));
  if (leftOut.length > lines.length) lines.push(el("li", {}, `and ${leftOut.length - lines.length} more`));
  return [el("details", { open: leftOut.length <= 5 }, el("summary", {}, `${plural(leftOut.length, "file")} left out`), el("ul", {}, lines))];
}
