/** The console's NIfTI-1 files (/view/image.nii.gz, /view/mask.nii.gz): little-endian, canonical axes (RAS+). */

const ARRAYS = { 2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 256: Int8Array, 512: Uint16Array };
const HEADER = 348;

/**
 * A volume: `shape` and `spacing` [mm] of x (to the patient's right), y (to the front) and z (to the head), `data` with x
 * fastest, `grey` (the values that are drawn black and white), and `file` (the bytes without gzip). Raises Error.
 */
export async function read(bytes) {
  const file = await unzipped(bytes);
  if (file.byteLength < HEADER + 4) throw new Error("The slices broke off on their way. Load the page again.");
  const header = new DataView(file);
  const kind = ARRAYS[header.getInt16(70, true)];
  const shape = [42, 44, 46].map((place) => header.getInt16(place, true));
  const spacing = [80, 84, 88].map((place) => Math.abs(header.getFloat32(place, true)) || 1);
  const diagonal = [280, 300, 320].map((place) => header.getFloat32(place, true));
  const start = header.getFloat32(108, true);
  const grey = [header.getFloat32(128, true), header.getFloat32(124, true)]; // cal_min, cal_max
  const count = shape[0] * shape[1] * shape[2];
  if (header.getInt32(0, true) !== HEADER || !kind || !(count > 0) || !diagonal.every((step) => step > 0)) {
    throw new Error("The console sent slices that this page cannot read. Load the page again, without the cache.");
  }
  if (start + count * kind.BYTES_PER_ELEMENT > file.byteLength) {
    throw new Error("The slices broke off on their way. Load the page again.");
  }
  return { shape, spacing, grey, data: new kind(file, start, count), file };
}

async function unzipped(bytes) {
  const [first, second] = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** The middle [x, y] of the mask in slice z; null where it has none. */
export function middle({ shape, data }, z) {
  const [width, height] = shape;
  let count = 0;
  let x = 0;
  let y = 0;
  for (let index = 0, from = z * width * height; index < width * height; index++) {
    if (data[from + index]) {
      count++;
      x += index % width;
      y += Math.floor(index / width);
    }
  }
  return count ? [Math.round(x / count), Math.round(y / count)] : null;
}
