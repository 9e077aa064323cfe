// Small maps of heads, drawn side by side: one canvas a row, since a thousand canvases are slow to show.

import { rgb } from "./colours";
import type { Layer } from "./document";
import { h } from "./dom";

const LARGEST = 96;
/** Room around a map, as a share of its cell; style.css draws the frame at the same place. */
const MARGIN = 0.04;

/** Shrinks a map to at most LARGEST cells a side, by the mean. */
function shrink(layer: Layer, place: number): { values: Uint8Array; rows: number; columns: number } {
  const { values, rows, columns } = layer.overview;
  const map = values.subarray(place * rows * columns, (place + 1) * rows * columns);
  const R = Math.min(rows, LARGEST);
  const C = Math.min(columns, LARGEST);
  if (R === rows && C === columns) return { values: map, rows, columns };
  const sum = new Float64Array(R * C);
  const count = new Float64Array(R * C);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const to = Math.floor((row * R) / rows) * C + Math.floor((column * C) / columns);
      sum[to]! += map[row * columns + column]!;
      count[to]! += 1;
    }
  }
  return { values: Uint8Array.from(sum, (total, i) => total / count[i]!), rows: R, columns: C };
}

/** The maps of one row. */
export class MapStrip {
  readonly canvas = h("canvas", { "aria-hidden": true });
  readonly #map = document.createElement("canvas");
  readonly #pitch: number;

  /** `pitch` is a cell's side in pixels of the page. */
  constructor(columns: number, pitch: number) {
    this.#pitch = Math.round(pitch * (window.devicePixelRatio || 1));
    this.canvas.width = this.#pitch * columns;
    this.canvas.height = this.#pitch;
  }

  /** Draws the head at a place of its layer into a column of the row. */
  paint(layer: Layer, place: number, column: number, colour: string): void {
    const { values, rows, columns } = shrink(layer, place);
    const context = this.canvas.getContext("2d");
    const source = this.#map.getContext("2d");
    if (!context || !source || rows * columns === 0) return;
    const image = source.createImageData(columns, rows);
    const [red, green, blue] = rgb(colour);
    for (let i = 0; i < values.length; i++) {
      image.data[4 * i] = red;
      image.data[4 * i + 1] = green;
      image.data[4 * i + 2] = blue;
      image.data[4 * i + 3] = values[i]!;
    }
    this.#map.width = columns;
    this.#map.height = rows;
    source.putImageData(image, 0, 0);
    const margin = Math.round(this.#pitch * MARGIN);
    const side = this.#pitch - 2 * margin;
    const left = column * this.#pitch + margin;
    context.imageSmoothingEnabled = Math.max(rows, columns) > 24;
    context.imageSmoothingQuality = "high";
    context.clearRect(left, margin, side, side);
    context.drawImage(this.#map, left, margin, side, side);
  }
}
