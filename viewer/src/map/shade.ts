// From a share of attention to how strongly it is painted.

export type Scale = "linear" | "log" | "rank";

export const isScale = (value: unknown): value is Scale => value === "linear" || value === "log" || value === "rank";

/** Painted fully at 1, not at all at this and below. */
export const FAINTEST = 1e-5;
const STEPS = 4096;

/** 0 to 255, how opaque a cell is painted. */
export type Shade = (value: number) => number;

export function linear(value: number): number {
  return 255 * Math.min(1, Math.max(0, value));
}

export function logarithmic(value: number): number {
  return value <= FAINTEST ? 0 : 255 * Math.min(1, 1 - Math.log(value) / Math.log(FAINTEST));
}

/** The share of the visible cells of the whole map that are at most this strong. */
export function ranked(cells: Float32Array): Shade {
  const sorted = cells.filter((value) => value > 0).sort();
  if (sorted.length === 0) return () => 0;
  const picked = Float32Array.from({ length: Math.min(STEPS, sorted.length) }, (_, i) => sorted[Math.floor((i * sorted.length) / Math.min(STEPS, sorted.length))]!);
  return (value) => {
    if (value <= 0) return 0;
    let low = 0;
    let high = picked.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (picked[middle]! <= value) low = middle + 1;
      else high = middle;
    }
    return (255 * low) / picked.length;
  };
}

/** Cells as pixels of one colour, the value as opacity. */
export function paint(cells: Float32Array, colour: readonly [number, number, number], shade: Shade, pixels: Uint8ClampedArray): void {
  const [red, green, blue] = colour;
  for (let i = 0; i < cells.length; i++) {
    pixels[4 * i] = red;
    pixels[4 * i + 1] = green;
    pixels[4 * i + 2] = blue;
    pixels[4 * i + 3] = shade(cells[i]!);
  }
}
