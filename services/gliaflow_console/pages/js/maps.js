/** Feature maps as pictures, a canvas for each channel, and the panel that shows those of a scan's slice. */

import { complain, get } from "./api.js";
import { el, setText } from "./format.js";

const COUNT = 25; // channels, the strongest first

/**
 * The panel for a scan's details: the U-Net's feature maps of the slice that is shown. Returns an object with `element`
 * and `show(z)`.
 */
export function mapsPanel(details) {
  const element = el(
    "section",
    { class: "panel", "aria-labelledby": "maps-title" },
    el("h2", { id: "maps-title" }, "Feature maps"),
    el(
      "p",
      { class: "muted" },
      "What the U-Net makes of a slice, before anything is graded. Each picture is one channel of one layer (a tap), with the ",
      `channel's number under it; those that respond most are shown, ${COUNT} at most, the strongest first. `,
      `The classifier gets tap ${details.tap || "–"} and nothing else.`,
    ),
  );
  if (details.maps_problem) {
    element.append(el("p", { class: "notice info" }, details.maps_problem));
    return { element, show() {} };
  }
  const tap = el(
    "select",
    { on: { change: load } },
    details.taps.map((name) =>
      el("option", { value: name, selected: name === details.tap }, name === details.tap ? `${name} (the classifier's)` : name),
    ),
  );
  const button = el("button", { type: "button", on: { click: load } });
  const state = el("p", { class: "muted small", role: "status" });
  const pictures = el("div");
  const stale = el("p", { class: "notice info small", role: "status", hidden: true });
  let shown = 0;
  let drawn = null; // the slice of the pictures
  let requests = 0;

  async function load() {
    const turn = ++requests;
    const slice = shown;
    button.disabled = true;
    setText(state, `The console computes the maps of slice ${slice}…`);
    state.classList.remove("bad-text");
    try {
      const query = new URLSearchParams({ tap: tap.value, slice, count: COUNT });
      const maps = await get(`api/scans/${encodeURIComponent(details.id)}/maps?${query}`);
      if (turn !== requests) return;
      pictures.replaceChildren(mapGrid(maps, `Feature maps of slice ${slice} at ${maps.tap}`));
      drawn = slice;
      compare();
      const size = `${maps.channels.length} channels of ${maps.height} × ${maps.width} pixels`;
      setText(state, `Slice ${slice}, tap ${maps.tap}: ${size}. Each has its own grey scale.`);
    } catch (error) {
      if (turn !== requests) return;
      state.classList.add("bad-text");
      complain(state, error);
    } finally {
      if (turn === requests) button.disabled = false;
    }
  }

  function compare() {
    stale.hidden = drawn === null || drawn === shown;
    setText(stale, `These are the maps of slice ${drawn}. The page shows slice ${shown} now.`);
  }

  element.append(el("div", { class: "controls" }, el("label", {}, "Tap", tap), button), state, stale, pictures);
  return {
    element,
    show(z) {
      shown = z;
      setText(button, `Show the maps of slice ${z}`);
      compare();
    },
  };
}

/** A list of pictures of Maps {channels, height, width, white, pixels}. Each channel has its own grey scale. */
export function mapGrid(maps, label) {
  const pixels = Uint8Array.from(atob(maps.pixels), (character) => character.charCodeAt(0));
  const size = maps.height * maps.width;
  return el(
    "ul",
    { class: "maps", "aria-label": label },
    maps.channels.map((channel, index) =>
      el(
        "li",
        { title: `Channel ${channel}: black is 0, white is ${maps.white[index].toPrecision(3)}` },
        picture(pixels.subarray(index * size, (index + 1) * size), maps),
        el("span", {}, channel),
      ),
    ),
  );
}

function picture(pixels, { height, width }) {
  const canvas = el("canvas", { width, height, "aria-hidden": "true" });
  const image = new ImageData(width, height);
  pixels.forEach((level, index) => image.data.set([level, level, level, 255], 4 * index));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
