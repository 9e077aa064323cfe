// window.multihead: the numbers that the page draws, for readers and tests.

import { PageError } from "./data";
import type { Layer } from "./document";
import type { Pooling } from "./map/grid";
import type { Supply } from "./map/supply";
import { focusOf, type Store } from "./state";

export class Console {
  ready: Promise<void> = Promise.resolve();
  document: Readonly<Record<string, unknown>> | null = null;
  store: Store | null = null;
  supply: (() => Supply) | null = null;

  constructor() {
    for (const hidden of ["store", "supply"]) Object.defineProperty(this, hidden, { enumerable: false, writable: true, value: null });
  }

  /** Weights of one query over all keys; `layer` is a layer's number, or its name where a number is shared. */
  row(layer: number | string, head: number, query: number): Float64Array {
    const { store, found, place } = this.#find(layer, head);
    const row = store.weights[found.position]!.recordedRow(query);
    if (row === null) throw new PageError(`Query ${query} of layer ${found.index} was not recorded.`);
    return store.weights[found.position]!.row(place, row);
  }

  /** Weights that every token of the query text gives to one key; NaN where the query was not recorded. */
  column(layer: number | string, head: number, key: number): Float64Array {
    const { store, found, place } = this.#find(layer, head);
    if (!Number.isInteger(key) || key < 0 || key >= found.keyCount) throw new PageError(`Key ${key} is not among the ${found.keyCount} keys of layer ${found.index}.`);
    const recorded = store.weights[found.position]!.column(place, key);
    if (!found.queries) return recorded;
    const whole = new Float64Array(store.page.texts[found.queryText]!.tokens.length).fill(NaN);
    found.queries.forEach((position, row) => { whole[position] = recorded[row]!; });
    return whole;
  }

  /** A cell of the map: 2^level recorded queries by 2^level keys; the mean share of attention, or the largest weight. */
  async cell(layer: number | string, head: number, level: number, row: number, column: number, pooling: Pooling = "mean"): Promise<number> {
    const { found, place } = this.#find(layer, head);
    return this.supply!().cell(found.position, place, level, row, column, pooling, new AbortController().signal);
  }

  /** A tile of the map as it is drawn, row by row. */
  async tile(layer: number | string, head: number, level: number, y: number, x: number, pooling: Pooling = "mean"): Promise<Float32Array> {
    const { found, place } = this.#find(layer, head);
    return this.supply!().tile(found.position, place, { level, y, x }, pooling, new AbortController().signal);
  }

  /** What the map's tiles are computed with: "simd", "plain", or "remote" where they are asked for. */
  get tiles(): Supply["arithmetic"] {
    return this.supply!().arithmetic;
  }

  get state(): Record<string, unknown> | null {
    if (!this.store) return null;
    const { state, page } = this.store;
    const { layer, hover, ...rest } = state;
    const { index, name } = page.layers[layer]!;
    return { layer: index, layerName: name, ...rest, heads: [...rest.heads], hover: hover && focusOf(state) };
  }

  #find(layer: number | string, head: number): { store: Store; found: Layer; place: number } {
    if (!this.store) throw new PageError("The page is not ready: await multihead.ready first.");
    const found = this.store.page.layers.find((one) => one.index === layer || one.name === layer);
    if (!found) throw new PageError(`The page has no layer ${layer}.`);
    const place = found.heads.indexOf(head);
    if (place < 0) throw new PageError(`Layer ${layer} has heads ${found.heads.join(", ")}, not ${head}.`);
    return { store: this.store, found, place };
  }
}
