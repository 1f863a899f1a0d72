/** A scan in three planes with its mask: NiiVue, on WebGL2. Its script is loaded when the first scan is opened. */

import { el } from "./format.js";
import { middle } from "./nifti.js";

const AMBER = { R: [0, 255], G: [0, 176], B: [0, 0], A: [0, 255], I: [0, 255] };
const SCRIPT_TIMEOUT_S = 60;
const WIDE = 560; // pixels: room for the small planes beside the axial slice
const [AXIAL, CORONAL, SAGITTAL] = [0, 1, 2]; // as NiiVue numbers them

/** Raised where the browser or its graphics card cannot draw with WebGL2. */
export class NoWebGL extends Error {}

/**
 * Draw into `host`. `onSlice(z)` is called when the user moves the crosshair, `onLost(text)` when the graphics card drops
 * the picture. Returns an object with `planes` (three, or only the axial one), `show(z)`, `setOpacity(share)` and
 * `close()`. Raises NoWebGL.
 */
export async function openViewer(host, [image, mask], onSlice, onLost) {
  requireWebGL(image.shape);
  const { Niivue, NVImage } = await niivue();
  const canvas = el("canvas");
  const frame = el("div", { class: "viewer-frame three-planes" }, canvas);
  host.append(frame);
  const drawing = new Niivue({
    isRadiologicalConvention: true,
    multiplanarShowRender: 0, // the three planes only, no 3-D picture
    dragAndDropEnabled: false, // the whole page is a drop target for scans to send
    scrollRequiresFocus: false, // the wheel over a plane changes its slice
    invertScrollDirection: true, // down is towards the feet, as on the 2-D canvas
    viewModeHotKey: "",
    clipPlaneHotKey: "",
    cycleClipPlaneHotKey: "",
    crosshairColor: [0.35, 0.75, 1, 0.7],
    fontColor: [1, 1, 1, 1],
    showAllOrientationMarkers: true,
    isAntiAlias: false,
    loadingText: "",
    logLevel: "error",
  });
  const lost = () => onLost("the graphics card dropped the picture");
  canvas.addEventListener("webglcontextlost", lost);
  const close = () => {
    canvas.removeEventListener("webglcontextlost", lost);
    drawing.onLocationChange = () => {};
    drawing.cleanup();
    canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext(); // browsers allow 16 contexts
    frame.remove();
  };
  try {
    await drawing.attachToCanvas(canvas);
    drawing.addColormap("mask", AMBER);
    const [low, high] = image.grey;
    const volumes = [{ url: image.file, name: "image.nii", colormap: "gray", opacity: 1, cal_min: low, cal_max: high }];
    if (mask) volumes.push({ url: mask.file, name: "mask.nii", colormap: "mask", opacity: 1, cal_min: 0, cal_max: 1 });
    drawing.volumes = await Promise.all(volumes.map((each) => NVImage.loadFromUrl(each)));
    drawing.setVolume(drawing.volumes[0], 0); // draws all volumes once; loadVolumes draws them again for each
    drawing.setCustomLayout(layout(frame.clientWidth > WIDE));
  } catch (error) {
    close();
    throw new NoWebGL(error.message);
  }
  let shown = -1;
  drawing.onLocationChange = (place) => {
    const z = Math.round(place.values[0].vox[2]);
    if (z !== shown) onSlice((shown = z));
  };
  return {
    planes: true,
    show(z) {
      if (z === shown) return;
      shown = z;
      const [x, y] = (mask && middle(mask, z)) ?? drawing.frac2vox(drawing.scene.crosshairPos);
      drawing.scene.crosshairPos = drawing.vox2frac([x, y, z]);
      drawing.drawScene();
    },
    setOpacity(share) {
      drawing.overlayAlphaShader = share; // setOpacity would draw the whole volume again: seconds without a graphics card
      drawing.drawScene();
    },
    close,
  };
}

/** A large axial slice, and the two other planes beside or under it. Positions are left, top, width, height. */
function layout(wide) {
  const places = wide
    ? [[0, 0, 0.62, 1], [0.63, 0, 0.36, 0.495], [0.63, 0.505, 0.36, 0.495]]
    : [[0, 0, 0.99, 0.69], [0, 0.7, 0.495, 0.3], [0.505, 0.7, 0.495, 0.3]];
  return [AXIAL, CORONAL, SAGITTAL].map((sliceType, index) => ({ sliceType, position: places[index] }));
}

function requireWebGL(shape) {
  const context = document.createElement("canvas").getContext("webgl2");
  if (!context) throw new NoWebGL("this browser has no WebGL2");
  const most = context.getParameter(context.MAX_3D_TEXTURE_SIZE);
  context.getExtension("WEBGL_lose_context")?.loseContext();
  if (Math.max(...shape) > most) throw new NoWebGL(`the graphics card draws at most ${most} slices`);
}

let script = null;

function niivue() {
  script ??= new Promise((resolve, reject) => {
    const failed = () => {
      script = null;
      reject(new NoWebGL("the viewer's script did not arrive"));
    };
    const timer = setTimeout(failed, SCRIPT_TIMEOUT_S * 1000);
    const loaded = () => {
      clearTimeout(timer);
      if (globalThis.niivue) resolve(globalThis.niivue);
      else failed();
    };
    document.head.append(el("script", { src: "niivue/niivue.umd.js", on: { load: loaded, error: failed } }));
  });
  return script;
}
