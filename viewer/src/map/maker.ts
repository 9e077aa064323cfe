// The map's tiles, computed from queries and keys as an atlas computes them: only what is looked at.

import { decodeHead, type Planes } from "../codec";
import { PageError } from "../data";
import type { BlockMaps, Factors, Layer } from "../document";
import { LayerWeights } from "../weights";
import { Grid, type Cells, type Place, type Pooling } from "./grid";

/** Heads whose numbers stay unpacked: a handful is on screen at once. */
const KEPT = 4;
/** Scores that are side by side in the inner loop: as many sums as a processor has registers for. */
const ROWS = 4;
const COLUMNS = 2;
/** exp(-25) is 1e-11: a cell of a million such weights is still nothing to be seen. */
const NOTHING = -25;

interface Unpacked {
  readonly dims: number;
  /** Queries times steps, ROWS side by side: [queries / ROWS, dims, ROWS]. */
  readonly queries: Float64Array;
  /** Keys, COLUMNS side by side. */
  readonly keys: Float64Array;
}

interface Level {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

export class TileMaker {
  readonly grid: Grid;
  readonly #weights: LayerWeights;
  readonly #unpacked = new Map<number, Unpacked>();
  readonly #levels = new Map<string, Level>();

  constructor(readonly layer: Layer) {
    this.grid = new Grid(layer.queryCount, layer.keyCount);
    this.#weights = new LayerWeights(layer);
  }

  /** A tile's cells, row by row; `head` is the head's place in the layer's list. */
  tile(head: number, place: Place, pooling: Pooling): Float32Array {
    if (!this.grid.has(place)) throw new PageError(`The map has no tile ${place.level}/${place.y}/${place.x}.`);
    const cells = this.grid.tile(place);
    const { blocks } = this.layer;
    if (blocks && 2 ** place.level >= blocks.side) return cut(this.#level(head, place.level, pooling, blocks), cells);
    return this.#computed(head, place.level, cells, pooling);
  }

  /** One cell in full precision, whatever was rounded to be drawn. */
  cell(head: number, level: number, row: number, column: number, pooling: Pooling): number {
    const queries = this.grid.queriesOf(level, row);
    const keys = this.grid.keysOf(level, column);
    let found = 0;
    for (let query = queries.from; query < queries.to; query++) {
      const weights = this.#weights.part(head, query, keys.from, keys.to);
      for (const weight of weights) found = pooling === "max" ? Math.max(found, weight) : found + weight;
    }
    return pooling === "max" ? found : found / Math.max(1, queries.to - queries.from);
  }

  #level(head: number, level: number, pooling: Pooling, blocks: BlockMaps): Level {
    const key = `${head}/${pooling}/${level}`;
    const known = this.#levels.get(key);
    if (known) return known;
    const base = Math.log2(blocks.side);
    const made = level === base ? opened(blocks, head, pooling)
      : halved(this.#level(head, level - 1, pooling, blocks), this.grid, level, pooling);
    this.#levels.set(key, made);
    return made;
  }

  #computed(head: number, level: number, cells: Cells, pooling: Pooling): Float32Array {
    const out = new Float32Array(cells.rows * cells.columns);
    if (!this.layer.qk) {
      for (let i = 0; i < out.length; i++) {
        out[i] = this.cell(head, level, cells.row + Math.floor(i / cells.columns), cells.column + (i % cells.columns), pooling);
      }
      return out;
    }
    const first = this.grid.queriesOf(level, cells.row).from;
    const last = this.grid.queriesOf(level, cells.row + cells.rows - 1).to;
    const unpacked = this.#numbers(head, this.layer.qk);
    const left = this.grid.keysOf(level, cells.column).from;
    const right = this.grid.keysOf(level, cells.column + cells.columns - 1).to;
    const width = COLUMNS * Math.ceil((right - left) / COLUMNS);
    const scores = new Float64Array(ROWS * width);
    for (let top = first; top < last; top += ROWS) {
      products(unpacked, top / ROWS, left / COLUMNS, width / COLUMNS, scores);
      for (let query = top; query < Math.min(top + ROWS, last); query++) {
        const row = scores.subarray((query - top) * width, (query - top + 1) * width);
        this.#weights.fromProducts(head, query, left, right, row, NOTHING);
        const to = ((query >> level) - cells.row) * cells.columns;
        if (pooling === "max") largest(row, right - left, level, out, to);
        else sums(row, right - left, level, out, to);
      }
    }
    if (pooling === "mean" && level > 0) {
      for (let row = 0; row < cells.rows; row++) {
        const { from, to } = this.grid.queriesOf(level, cells.row + row);
        for (let i = row * cells.columns; i < (row + 1) * cells.columns; i++) out[i]! /= to - from;
      }
    }
    return out;
  }

  #numbers(head: number, factors: Factors): Unpacked {
    const known = this.#unpacked.get(head);
    if (known) return known;
    const { dims } = factors.q;
    const steps = factors.steps.subarray(head * dims, (head + 1) * dims);
    const made = { dims, queries: packed(factors.q, head, ROWS, steps), keys: packed(factors.k, head, COLUMNS, null) };
    if (this.#unpacked.size >= KEPT) this.#unpacked.delete(this.#unpacked.keys().next().value!);
    this.#unpacked.set(head, made);
    return made;
  }
}

/** [length / together, dims, together], the last ones filled up with zeros. */
function packed(planes: Planes, head: number, together: number, steps: Float64Array | null): Float64Array {
  const { dims, length } = planes;
  const numbers = decodeHead(planes, head);
  const out = new Float64Array(Math.ceil(length / together) * together * dims);
  for (let dim = 0; dim < dims; dim++) {
    const step = steps ? steps[dim]! : 1;
    for (let i = 0; i < length; i++) {
      const group = Math.floor(i / together);
      out[(group * dims + dim) * together + (i - group * together)] = numbers[dim * length + i]! * step;
    }
  }
  return out;
}

/** Inner products of ROWS queries with `groups` times COLUMNS keys, a row after the other. */
function products({ dims, queries, keys }: Unpacked, queryGroup: number, keyGroup: number, groups: number, out: Float64Array): void {
  const width = groups * COLUMNS;
  const from = queryGroup * dims * ROWS;
  for (let group = 0; group < groups; group++) {
    let a = from;
    let b = (keyGroup + group) * dims * COLUMNS;
    let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
    for (let dim = 0; dim < dims; dim++, a += ROWS, b += COLUMNS) {
      const k0 = keys[b]!;
      const k1 = keys[b + 1]!;
      const q0 = queries[a]!;
      s00 += q0 * k0; s01 += q0 * k1;
      const q1 = queries[a + 1]!;
      s10 += q1 * k0; s11 += q1 * k1;
      const q2 = queries[a + 2]!;
      s20 += q2 * k0; s21 += q2 * k1;
      const q3 = queries[a + 3]!;
      s30 += q3 * k0; s31 += q3 * k1;
    }
    const at = group * COLUMNS;
    out[at] = s00; out[at + 1] = s01;
    out[width + at] = s10; out[width + at + 1] = s11;
    out[2 * width + at] = s20; out[2 * width + at + 1] = s21;
    out[3 * width + at] = s30; out[3 * width + at + 1] = s31;
  }
}

function sums(weights: Float64Array, count: number, level: number, out: Float32Array, to: number): void {
  const side = 2 ** level;
  for (let from = 0; from < count; from += side, to++) {
    let sum = 0;
    for (let i = from; i < Math.min(from + side, count); i++) sum += weights[i]!;
    out[to]! += sum;
  }
}

function largest(weights: Float64Array, count: number, level: number, out: Float32Array, to: number): void {
  for (let i = 0; i < count; i++) {
    const cell = to + (i >> level);
    if (weights[i]! > out[cell]!) out[cell] = weights[i]!;
  }
}

function opened(blocks: BlockMaps, head: number, pooling: Pooling): Level {
  const { rows, columns } = blocks;
  const coded = (pooling === "max" ? blocks.max : blocks.mean).subarray(head * rows * columns, (head + 1) * rows * columns);
  return { rows, columns, values: Float32Array.from(coded, (code) => (code / 255) ** 2) };
}

/** The next level: four cells in one. Shares add up over keys and are averaged over queries. */
function halved(finer: Level, grid: Grid, level: number, pooling: Pooling): Level {
  const [rows, columns] = [grid.rows(level), grid.columns(level)];
  const values = new Float32Array(rows * columns);
  for (let row = 0; row < finer.rows; row++) {
    const own = grid.queriesOf(level - 1, row);
    const all = grid.queriesOf(level, row >> 1);
    const part = (own.to - own.from) / (all.to - all.from);
    for (let column = 0; column < finer.columns; column++) {
      const at = (row >> 1) * columns + (column >> 1);
      const value = finer.values[row * finer.columns + column]!;
      values[at] = pooling === "max" ? Math.max(values[at]!, value) : values[at]! + part * value;
    }
  }
  return { rows, columns, values };
}

function cut(level: Level, { row, column, rows, columns }: Cells): Float32Array {
  const out = new Float32Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    const from = (row + r) * level.columns + column;
    out.set(level.values.subarray(from, from + columns), r * columns);
  }
  return out;
}
