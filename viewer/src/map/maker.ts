// The map's tiles, computed from queries and keys as an atlas computes them: only what is looked at.

import { PageError } from "../data";
import type { BlockMaps, Factors, Layer } from "../document";
import { LayerWeights } from "../weights";
import { Grid, TILE, type Cells, type Place, type Pooling, type Range } from "./grid";
import { plain, ROWS, type Arithmetic, type Products } from "./products";

/** Heads whose numbers stay unpacked: a handful is on screen at once. */
const KEPT = 4;

interface Level {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

export class TileMaker {
  readonly grid: Grid;
  readonly #weights: LayerWeights;
  readonly #unpacked = new Map<number, Products>();
  readonly #levels = new Map<string, Level>();

  constructor(readonly layer: Layer, readonly arithmetic: Arithmetic = plain) {
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
    const products = this.#numbers(head, this.layer.qk);
    const left = this.grid.keysOf(level, cells.column).from;
    const right = this.grid.keysOf(level, cells.column + cells.columns - 1).to;
    const first = this.grid.queriesOf(level, cells.row).from;
    const last = this.grid.queriesOf(level, cells.row + cells.rows - 1).to;
    products.sums.fill(0);
    for (let top = first; top < last; top += ROWS) {
      const ranges = Array.from({ length: Math.min(ROWS, last - top) }, (_, i) => this.#seen(head, top + i, left, right));
      const seen = ranges.filter(({ from, to }) => from < to);
      if (seen.length > 0) products.multiply(top, Math.min(...seen.map(({ from }) => from)), Math.max(...seen.map(({ to }) => to)), left);
      for (const [i, { from, to }] of ranges.entries()) {
        if (from < to) this.#fold(products, head, top, i, from, to, left, pooling);
        const row = (top + i) >> level;
        const whole = this.grid.queriesOf(level, row);
        if (top + i + 1 < whole.to) continue;
        const cell = (row - cells.row) * cells.columns;
        pool(products.sums, right - left, level, pooling, whole.to - whole.from, out.subarray(cell, cell + cells.columns));
        products.sums.fill(0, 0, right - left);
      }
    }
    return out;
  }

  /** The keys of a tile among which are all that a recorded row sees. */
  #seen(head: number, row: number, left: number, right: number): Range {
    if (this.#weights.lse(head, row) === -Infinity) return { from: right, to: right };
    const range = this.layer.mask?.range?.(head, this.#weights.queryPosition(row));
    return range ? { from: Math.max(left, range.from), to: Math.min(right, range.to) } : { from: left, to: right };
  }

  /** Takes the weights of one row of products into the sums. */
  #fold(products: Products, head: number, top: number, row: number, from: number, to: number, left: number, pooling: Pooling): void {
    const { layer } = this;
    if ((!layer.mask || layer.mask.range) && !layer.bias && layer.softcap === null) {
      products.fold(row, from - left, to - left, this.#weights.lse(head, top + row), pooling);
      return;
    }
    const { scores, sums, unit } = products;
    const query = this.#weights.queryPosition(top + row);
    for (let key = from; key < to; key++) {
      const at = key - left;
      const weight = this.#weights.ofProduct(head, top + row, query, key, scores[row * products.stride + at]! * unit);
      sums[at] = pooling === "max" ? Math.max(sums[at]!, weight) : sums[at]! + weight;
    }
  }

  #numbers(head: number, factors: Factors): Products {
    const known = this.#unpacked.get(head);
    if (known) return known;
    const { layer, grid } = this;
    const highest = layer.blocks ? Math.log2(layer.blocks.side) - 1 : grid.top;
    const made = this.arithmetic.open(factors, head, Math.min(layer.keyCount, TILE * 2 ** highest));
    if (this.#unpacked.size >= KEPT) this.#unpacked.delete(this.#unpacked.keys().next().value!);
    this.#unpacked.set(head, made);
    return made;
  }
}

/** A row of cells from the weights of each key, added over `queries` or the largest of them. */
function pool(weights: Products["sums"], count: number, level: number, pooling: Pooling, queries: number, out: Float32Array): void {
  const side = 2 ** level;
  for (let from = 0, cell = 0; from < count; from += side, cell++) {
    const to = Math.min(from + side, count);
    let found = 0;
    if (pooling === "max") for (let i = from; i < to; i++) found = Math.max(found, weights[i]!);
    else for (let i = from; i < to; i++) found += weights[i]! / queries;
    out[cell] = found;
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
