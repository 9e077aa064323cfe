// Where patches and frames stand, and how several heads' weights become one colour. No DOM.

import type { Picture } from "./read";
import { linear, logarithmic, ranked, type Scale, type Shade } from "../map/shade";

/** What stands under full weight can still be seen. */
export const MOST_OPAQUE = 0.86;

/** A patch by row and column, counted from 0. */
export interface Patch {
  readonly row: number;
  readonly column: number;
}

export type Grid = Pick<Picture, "rows" | "columns" | "first">;

/** The patch under a point of a picture that is drawn `width` × `height`, or null beside it. */
export function patchAt(grid: Grid, x: number, y: number, width: number, height: number): Patch | null {
  const [column, row] = [Math.floor((x / width) * grid.columns), Math.floor((y / height) * grid.rows)];
  return row >= 0 && row < grid.rows && column >= 0 && column < grid.columns ? { row, column } : null;
}

export const tokenOf = (grid: Grid, patch: Patch): number => grid.first + patch.row * grid.columns + patch.column;

/** The patch that a token is, null for the class token and others beside the picture. */
export function patchOf(grid: Grid, token: number): Patch | null {
  const place = token - grid.first;
  return place >= 0 && place < grid.rows * grid.columns ? { row: Math.floor(place / grid.columns), column: place % grid.columns } : null;
}

/** The patch that a key leads to, within the grid; null for other keys. */
export function stepped(grid: Grid, from: Patch, key: string, far: boolean): Patch | null {
  const step = far ? 5 : 1;
  const moves: Record<string, [number, number]> = {
    ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step],
    Home: [0, -Infinity], End: [0, Infinity], PageUp: [-Infinity, 0], PageDown: [Infinity, 0],
  };
  const move = moves[key];
  if (!move) return null;
  const within = (value: number, count: number) => Math.min(Math.max(value, 0), count - 1);
  return { row: within(from.row + move[0], grid.rows), column: within(from.column + move[1], grid.columns) };
}

/** The frame under a point of a strip that is drawn `width` wide. */
export function frameAt(frames: number, x: number, width: number): number {
  return Math.min(Math.max(Math.floor((x / width) * frames), 0), frames - 1);
}

/** The largest of the frames that share each of `width` pixels; a frame wider than a pixel fills several. */
export function pixelPeaks(weights: ArrayLike<number>, width: number): Float64Array {
  const out = new Float64Array(width);
  const frames = weights.length;
  for (let x = 0; x < width; x++) {
    const from = Math.floor((x * frames) / width);
    const to = Math.max(from + 1, Math.floor(((x + 1) * frames) / width));
    for (let i = from; i < Math.min(to, frames); i++) out[x] = Math.max(out[x]!, weights[i]!);
  }
  return out;
}

/** Round seconds from 0 on, at most `most` of them. */
export function timeTicks(seconds: number, most: number): { readonly at: number; readonly label: string }[] {
  const rough = seconds / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough * (1 - 1e-9)) ?? 10);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.floor(seconds / step + 1e-9) + 1 }, (_, i) => ({ at: i * step, label: `${(i * step).toFixed(digits)} s` }));
}

/** How opaque weights are painted: linear is measured by the largest of those that are drawn. */
export function shadeOf(scale: Scale, weights: readonly ArrayLike<number>[]): { readonly shade: Shade; readonly largest: number } {
  let largest = 0;
  for (const one of weights) for (let i = 0; i < one.length; i++) largest = Math.max(largest, one[i]!);
  if (scale === "log") return { shade: logarithmic, largest };
  if (scale === "rank") return { shade: ranked(Float32Array.from(weights.flatMap((one) => Array.from(one)))), largest };
  return { shade: (value) => (largest > 0 ? linear(value / largest) : 0), largest };
}

/** One colour for several that lie over each other, in whatever order; `opacities` from 0 to 1. */
export function blended(colours: readonly (readonly [number, number, number])[], opacities: readonly number[]): [number, number, number, number] {
  const total = opacities.reduce((sum, one) => sum + one, 0);
  if (total === 0) return [0, 0, 0, 0];
  const mix = (channel: 0 | 1 | 2) => colours.reduce((sum, colour, i) => sum + colour[channel] * opacities[i]!, 0) / total;
  return [mix(0), mix(1), mix(2), 1 - opacities.reduce((left, one) => left * (1 - one), 1)];
}
