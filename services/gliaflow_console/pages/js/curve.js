/** P(HGG) by slice as a curve, over bars with the tumour's volume in each slice. A click or an arrow key goes to a slice. */

import { el, fixed, ml, probability, svg } from "./format.js";

const HEIGHT = 250;
const AREA = { left: 46, right: 12, top: 34, bottom: 40 };
const PAGE = 10; // slices that Page Up and Page Down go
const LABEL = 78; // half the width of the label over the plot

/**
 * The slice that speaks most for the scan's grade: {z, p, ml}. Null where no slice has tumour. Of slices that say the
 * same, the one with most tumour. ml is null where only the answer is known, not the mask.
 */
export function strongest({ grade, slice_p: points, slice_ml: volumes }) {
  const size = new Map(volumes);
  const high = grade === "HGG";
  const best = points
    .map(([z, p]) => ({ z, p, ml: size.get(z) ?? null }))
    .sort((a, b) => (high ? b.p - a.p : a.p - b.p) || b.ml - a.ml);
  return best[0] ?? null;
}

/** The number of the scan's last slice. Of another client's answer, perhaps only the slices with tumour are known. */
export function lastSlice({ depth, slice_p: points }) {
  return Math.max(0, (depth ?? 0) - 1, ...points.map(([z]) => z));
}

export function sliceName(z, details) {
  return details.depth ? `Slice ${z} (0 to ${lastSlice(details)})` : `Slice ${z}`;
}

/** What the answer says about slice z, in words. */
export function sliceText(z, details) {
  const { status, slice_p: points, slice_ml: volumes } = details;
  const name = sliceName(z, details);
  if (status !== "ok") return name;
  if (!points.length) return name; // stages of an earlier release answered
  const p = new Map(points).get(z);
  if (p === undefined) return `${name}: no tumour, so it has no part in the grade`;
  const volume = new Map(volumes).get(z);
  return `${name}: P(HGG) ${probability(p)}, so it speaks for ${p >= 0.5 ? "HGG" : "LGG"}${volume ? `; tumour ${ml(volume)}` : ""}`;
}

/**
 * The curve of an answer. `onSlice(z)` is called when the user chooses a slice. Returns an object with `element`,
 * `show(z)` and `close()`.
 */
export function curve(details, onSlice) {
  const last = Math.max(1, lastSlice(details));
  const clear = strongest(details);
  const element = el("div", {
    class: "curve",
    tabindex: 0,
    role: "slider",
    "aria-label": "P(HGG) by slice: choose a slice",
    "aria-valuemin": 0,
    "aria-valuemax": last,
    on: { click: chosen, keydown: pressed },
  });
  let shown = 0;
  let width = 0;
  const measure = new ResizeObserver(([entry]) => {
    const fresh = Math.round(entry.contentRect.width);
    if (fresh && fresh !== width) {
      width = fresh;
      draw();
    }
  });
  measure.observe(element);

  const x = (z) => AREA.left + (z / last) * (width - AREA.left - AREA.right);
  const y = (p) => AREA.top + (1 - p) * (HEIGHT - AREA.top - AREA.bottom);

  function chosen(event) {
    const from = element.getBoundingClientRect().left + AREA.left;
    const z = Math.round(((event.clientX - from) / (width - AREA.left - AREA.right)) * last);
    onSlice(Math.min(last, Math.max(0, z)));
  }

  function pressed(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -PAGE, PageUp: PAGE };
    const z = event.key === "Home" ? 0 : event.key === "End" ? last : shown + steps[event.key];
    if (Number.isNaN(z)) return;
    event.preventDefault();
    onSlice(Math.min(last, Math.max(0, z)));
  }

  function draw() {
    const most = Math.max(...details.slice_ml.map(([, volume]) => volume), 1e-9);
    const column = Math.max(1, (x(1) - x(0)) * 0.8);
    const drawing = svg(
      "svg",
      { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" },
      svg("rect", { class: "half-hgg", x: x(0), y: y(1), width: x(last) - x(0), height: y(0.5) - y(1) }),
      svg("rect", { class: "half-lgg", x: x(0), y: y(0.5), width: x(last) - x(0), height: y(0) - y(0.5) }),
      ...details.slice_ml.map(([z, volume]) => {
        const height = (volume / most) * (y(0) - y(0.45));
        return svg("rect", { class: "volume", x: x(z) - column / 2, y: y(0) - height, width: column, height });
      }),
      svg("line", { class: "even", x1: x(0), x2: x(last), y1: y(0.5), y2: y(0.5) }),
      [0, 0.5, 1].map((p) => svg("text", { class: "end", x: AREA.left - 7, y: y(p) + 4 }, fixed(p, 1))),
      svg("text", { class: "side-name", transform: `rotate(-90 12 ${y(0.75)})`, x: 12, y: y(0.75) + 3 }, "HGG ▶"),
      svg("text", { class: "side-name", transform: `rotate(-90 12 ${y(0.25)})`, x: 12, y: y(0.25) + 3 }, "◀ LGG"),
      ticks(last, width).map((z) => svg("text", { class: "middle", x: x(z), y: HEIGHT - AREA.bottom + 17 }, z)),
      svg("text", { x: x(0), y: HEIGHT - 5 }, "feet"),
      svg("text", { class: "middle", x: (x(0) + x(last)) / 2, y: HEIGHT - 5 }, "slice"),
      details.depth && svg("text", { class: "end", x: x(last), y: HEIGHT - 5 }, "top of the head"),
      svg("g", { class: "cursor" }, svg("line", { y1: AREA.top - 6, y2: y(0) })),
      clear && label(x(clear.z), y(clear.p), width, `slice ${clear.z}: most for ${details.grade}`),
      runs(details.slice_p).map((run) => svg("polyline", { points: run.map(([z, p]) => `${x(z)},${y(p)}`).join(" ") })),
      details.slice_p.map(([z, p]) => dot(x(z), y(p), p >= 0.5)),
      clear && svg("circle", { class: "ring", cx: x(clear.z), cy: y(clear.p), r: 8 }),
    );
    element.replaceChildren(drawing);
    point();
  }

  function point() {
    element.setAttribute("aria-valuenow", shown);
    element.setAttribute("aria-valuetext", sliceText(shown, details));
    element.querySelector(".cursor")?.setAttribute("transform", `translate(${x(shown)} 0)`);
  }

  return {
    element,
    show(z) {
      shown = z;
      point();
    },
    close: () => measure.disconnect(),
  };
}

/** HGG is a square, LGG is a disc: the colour is not the only sign. */
function dot(x, y, high) {
  return high
    ? svg("rect", { class: "dot hgg", x: x - 2.6, y: y - 2.6, width: 5.2, height: 5.2 })
    : svg("circle", { class: "dot lgg", cx: x, cy: y, r: 2.9 });
}

/** The label is above the plot, where it covers no mark. A line leads to the ring at (x, y). */
function label(x, y, width, text) {
  const middle = Math.min(width - LABEL, Math.max(LABEL, x));
  return svg(
    "g",
    { class: "label" },
    svg("line", { x1: x, x2: x, y1: 17, y2: y - 8 }),
    svg("text", { class: "middle", x: middle, y: 13 }, text),
  );
}

/** The parts of the curve without a gap: slices without tumour have no probability. */
function runs(points) {
  const parts = [];
  for (const point of points) {
    const part = parts.at(-1);
    if (part && point[0] === part.at(-1)[0] + 1) part.push(point);
    else parts.push([point]);
  }
  return parts;
}

function ticks(last, width) {
  const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500].find((each) => (each / last) * width >= 55) ?? 1000;
  return Array.from({ length: Math.floor(last / step) + 1 }, (_, index) => index * step);
}
