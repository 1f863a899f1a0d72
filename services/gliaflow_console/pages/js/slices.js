/** A scan's slices with the mask: the viewer that this browser can run, the slider of the slices, and the opacity. */

import { complain, request } from "./api.js";
import { openCanvasViewer } from "./canvas_viewer.js";
import { lastSlice, sliceText } from "./curve.js";
import { el, sequenceName, setText } from "./format.js";
import { read } from "./nifti.js";
import { NoWebGL, openViewer } from "./viewer.js";

const OPACITY = 60; // percent, at first
const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
const WITHOUT_IMAGE = {
  own: "The console no longer has this scan's slices. Send the scan again to see them.",
  other: "Another client sent this scan, so the console has its answer and not its slices. Send the scan here to see them.",
};

/**
 * The panel for a scan's details. `onSlice(z)` is called when the user chooses a slice. Returns an object with `element`,
 * `show(z)` and `close()`.
 */
export function slicesPanel(details, onSlice) {
  const title = el("h2", { id: "slices-title" }, "Slices");
  const element = el("section", { class: "panel", "aria-labelledby": "slices-title" }, el("div", { class: "head" }, title));
  if (!details.has_image) {
    const text = el("p", { class: "slice-text" });
    element.append(el("p", { class: "muted" }, details.own ? WITHOUT_IMAGE.own : WITHOUT_IMAGE.other), text);
    return { element, show: (z) => setText(text, sliceText(z, details)), close() {} };
  }
  const stop = new AbortController();
  const host = el("div", { class: "viewer", on: { keydown: pressed } }, el("p", { class: "viewer-wait" }, "Loading the slices…"));
  const problem = el("p", { class: "notice info small", role: "status", hidden: true });
  const last = lastSlice(details);
  const slider = el("input", { type: "range", "aria-label": "Slice", min: 0, max: last, value: 0, on: { input: () => onSlice(Number(slider.value)) } });
  const number = el("span", { class: "slice-number" });
  const opacity = el("input", { type: "range", "aria-label": "Mask opacity", min: 0, max: 100, value: OPACITY, on: { input: fade } });
  const share = el("span", { class: "slice-number" }, `${OPACITY} %`);
  const plain = el("button", { type: "button", class: "quiet", "aria-pressed": "false", hidden: true, on: { click: swap } }, "Axial only");
  const coarse = el("span");
  const kinds = ["flair", ...details.sequences];
  const sequence = el(
    "select",
    { "aria-label": "Sequence", disabled: true, on: { change: choose } },
    kinds.map((name) => el("option", { value: name }, sequenceName(name))),
  );
  const said = el("p", { class: "slice-text" });
  const unread = el("p", { class: "bad-text small", role: "alert", hidden: true });
  let shown = 0;
  let viewer = null;
  let volumes = null;
  let drawn = kinds[0];

  async function start() {
    try {
      volumes = await Promise.all([load("image"), details.has_mask ? load("mask") : null]);
      if (volumes[0].step > 1) setText(coarse, ` The scan is large: 1 of ${volumes[0].step} pixels along each side is shown.`);
      await open(true);
      sequence.disabled = false;
    } catch (error) {
      if (stop.signal.aborted) return;
      const failed = el("p", { class: "bad-text no-slices", role: "alert" });
      complain(failed, error);
      element.replaceChildren(element.firstChild, failed, said);
    }
  }

  /** Draw the sequence that the user chose. */
  async function choose() {
    sequence.disabled = true;
    try {
      const image = await load("image", `?sequence=${encodeURIComponent(sequence.value)}`);
      volumes = [image, volumes[1]];
      await open(viewer.planes);
      drawn = sequence.value;
      unread.hidden = true;
    } catch (error) {
      if (stop.signal.aborted) return;
      sequence.value = drawn;
      unread.hidden = false;
      complain(unread, error);
    }
    sequence.disabled = false;
  }

  async function load(name, query = "") {
    const path = `api/scans/${encodeURIComponent(details.id)}/view/${name}.nii.gz${query}`;
    const response = await request(path, { signal: stop.signal });
    return { ...(await read(await response.arrayBuffer())), step: Number(response.headers.get("Gliaflow-Step")) };
  }

  async function open(planes) {
    let next = null;
    plain.disabled = true;
    delete host.dataset.state;
    viewer?.close();
    if (planes) {
      try {
        next = await openViewer(host, volumes, onSlice, withoutWebGL);
      } catch (error) {
        if (!(error instanceof NoWebGL)) throw error;
        explain(error.message);
      }
    }
    next ??= openCanvasViewer(host, volumes, onSlice);
    if (stop.signal.aborted) return next.close();
    viewer = next;
    host.querySelector(".viewer-wait")?.remove();
    const canvas = host.querySelector("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute(
      "aria-label",
      `${viewer.planes ? "Axial, coronal and sagittal slice" : "Axial slice"} with the mask. The patient's right is at the ` +
        "left of the picture. Arrow keys change the slice.",
    );
    plain.hidden = !problem.hidden;
    plain.disabled = false;
    plain.setAttribute("aria-pressed", String(!viewer.planes));
    viewer.setOpacity(opacity.value / 100);
    viewer.show(shown);
    host.dataset.state = "drawn";
  }

  function explain(reason) {
    problem.hidden = false;
    setText(
      problem,
      `Three planes need WebGL2, and ${reason}. The page shows axial slices on a 2-D canvas instead, with the same mask and ` +
        "the same sides.",
    );
  }

  function withoutWebGL(reason) {
    explain(reason);
    open(false);
  }

  function swap() {
    open(!viewer.planes);
  }

  function fade() {
    setText(share, `${opacity.value} %`);
    viewer?.setOpacity(opacity.value / 100);
  }

  function pressed(event) {
    const step = KEYS[event.key];
    if (!step) return;
    event.preventDefault();
    onSlice(Math.min(last, Math.max(0, shown + step)));
  }

  element.firstChild.append(plain);
  element.append(
    problem,
    unread,
    host,
    said,
    kinds.length > 1 ? el("div", { class: "controls", title: "Each is shown on the voxels of the FLAIR" }, el("label", {}, "Sequence", sequence)) : "",
    el(
      "div",
      { class: "controls sliders" },
      el("label", { title: "0 is the slice nearest the feet" }, el("span", {}, "Slice"), slider, number),
      details.has_mask &&
        el("label", { title: "How strongly the mask covers the scan. 0 % hides it" }, el("span", {}, "Mask opacity"), opacity, share),
    ),
    el(
      "p",
      { class: "muted small" },
      "Seen from the feet (radiological convention): the patient's right (R) is at the left of the picture. The mouse wheel over the ",
      "picture and the arrow keys change the slice.",
      details.has_mask && " The mask, where the pipeline sees tumour, is amber.",
      coarse,
    ),
  );
  start();
  return {
    element,
    show(z) {
      shown = z;
      slider.value = z;
      setText(number, `${z} (0 to ${last})`);
      const text = sliceText(z, details);
      slider.setAttribute("aria-valuetext", text);
      setText(said, text);
      viewer?.show(z);
    },
    close() {
      stop.abort();
      viewer?.close();
    },
  };
}
