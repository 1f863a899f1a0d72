/**
 * Axial slices with the mask on a 2-D canvas, for browsers without WebGL2. Pictures follow the radiological convention:
 * the patient is seen from the feet, the patient's right (R) is at the left, and the front is at the top.
 */

import { el } from "./format.js";

const AMBER = [255, 176, 0];

/**
 * Draw into `host`. `onSlice(z)` is called when the user turns the wheel over the canvas. Returns an object with
 * `planes` (three, or only the axial one), `show(z)`, `setOpacity(share)` and `close()`.
 */
export function openCanvasViewer(host, [image, mask], onSlice) {
  const [width, height, depth] = image.shape;
  const tall = (height * image.spacing[1]) / (width * image.spacing[0]); // pixels need not be square
  const canvas = el("canvas", { class: "slice", width: 640, height: Math.round(640 * tall) });
  const frame = el(
    "div",
    { class: "viewer-frame one-plane" },
    canvas,
    ...["R", "L", "A", "P"].map((side) => el("span", { class: `side side-${side}`, "aria-hidden": "true" }, side)),
  );
  host.append(frame);
  let shown = 0;
  let opacity = 0.5;

  function draw() {
    const paper = canvas.getContext("2d");
    const size = [canvas.width, canvas.height];
    paper.imageSmoothingEnabled = true;
    paper.drawImage(layer(image, (value) => grey(value, image.grey)), 0, 0, ...size);
    if (!mask || !opacity) return;
    paper.imageSmoothingEnabled = false;
    paper.globalAlpha = opacity;
    paper.drawImage(layer(mask, (value) => (value ? [...AMBER, 255] : [0, 0, 0, 0])), 0, 0, ...size);
    paper.globalAlpha = 1;
  }

  function layer(volume, colour) {
    const picture = new ImageData(width, height);
    for (let row = 0, pixel = 0; row < height; row++) {
      for (let column = 0; column < width; column++, pixel += 4) {
        const voxel = width - 1 - column + width * (height - 1 - row + height * shown);
        picture.data.set(colour(volume.data[voxel]), pixel);
      }
    }
    const sheet = el("canvas", { width, height });
    sheet.getContext("2d").putImageData(picture, 0, 0);
    return sheet;
  }

  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      onSlice(Math.min(depth - 1, Math.max(0, shown - Math.sign(event.deltaY))));
    },
    { passive: false },
  );
  draw();
  return {
    planes: false,
    show(z) {
      if (z === shown) return;
      shown = z;
      draw();
    },
    setOpacity(share) {
      opacity = share;
      draw();
    },
    close: () => frame.remove(),
  };
}

function grey(value, [low, high]) {
  const level = Number.isFinite(value) ? (255 * (value - low)) / (high - low) : 0;
  return [level, level, level, 255];
}
