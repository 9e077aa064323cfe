import { describe, expect, it } from "vitest";
import { readPage } from "../src/document";
import { Grid, type Pooling } from "../src/map/grid";
import { TileMaker } from "../src/map/maker";
import { LayerWeights } from "../src/weights";
import { buildPage, DataBlock, random } from "./page";

/** What rounding to 65535ths moves a weight by. */
const HALF = 0.5 / 65535;

/** A page whose layer carries weights and nothing to compute them from; one row of each head is all 0. */
function given(queries: number, keys: number, recorded: number[] | null = null) {
  const { document, layer } = buildPage({ lengths: [queries, keys], queries: recorded });
  const next = random(5);
  const weights = [0, 3, 7].map(() => Array.from({ length: recorded?.length ?? queries }, (_, row) => Array.from({ length: keys }, () => (row === 2 ? 0 : next() ** 3))));
  const data = new DataBlock();
  const filler = data.add([7], "u8", [1]);
  const held = data.add(weights.flat(2).map((weight) => Math.round(weight * 65535)), "u16", [3, weights[0]!.length, keys]);
  const changed: Record<string, unknown> = {
    ...layer, q: null, k: null, steps: null, lse: null, weights: held,
    overview: data.add(new Uint8Array(3), "u8", [3, 1, 1]), overview_peak: data.add(new Float32Array(3), "f32", [3]),
  };
  document["layers"] = [changed];
  return { document, layer: changed, buffer: data.buffer(), weights, filler, held };
}

const worst = (found: ArrayLike<number>, expected: readonly number[]): number => {
  expect(found.length).toBe(expected.length);
  return Math.max(...expected.map((weight, i) => Math.abs(weight - found[i]!)));
};

describe("weights that were given", () => {
  it("come as they are: rows, columns and parts of rows", () => {
    const { document, buffer, weights } = given(5, 11);
    const layer = readPage(document, buffer).layers[0]!;
    expect(layer.qk).toBeNull();
    const read = new LayerWeights(layer);
    let largest = 0;
    weights.forEach((head, place) => {
      head.forEach((row, i) => {
        largest = Math.max(largest, worst(read.row(place, i), row), worst(read.part(place, i, 3, 9), row.slice(3, 9)));
      });
      for (let key = 0; key < 11; key++) largest = Math.max(largest, worst(read.column(place, key), head.map((row) => row[key]!)));
    });
    expect(largest).toBeGreaterThan(0);
    expect(largest).toBeLessThanOrEqual(HALF * (1 + 1e-9));
    expect(worst(read.row(1, 0), weights[2]![0]!)).toBeGreaterThan(0.01);
    expect(worst(read.row(1, 0), weights[1]![1]!)).toBeGreaterThan(0.01);
  });

  it("say where a row is nothing but 0, and have no sink and no entropy of their own", () => {
    const { document, buffer } = given(5, 11);
    const read = new LayerWeights(readPage(document, buffer).layers[0]!);
    expect([0, 1, 2, 3].map((row) => read.blind(1, row))).toEqual([false, false, true, false]);
    expect([read.sink(1, 1), read.entropy(1, 1, read.row(1, 1))]).toEqual([0, null]);
  });

  it("of some queries stand in the order of those", () => {
    const { document, buffer, weights } = given(9, 7, [8, 1, 4]);
    const layer = readPage(document, buffer).layers[0]!;
    const read = new LayerWeights(layer);
    expect(read.recordedRow(1)).toBe(1);
    expect(read.recordedRow(2)).toBeNull();
    expect(worst(read.row(0, 1), weights[0]![1]!)).toBeLessThanOrEqual(HALF * (1 + 1e-9));
    expect(read.column(0, 3).length).toBe(3);
  });

  it("make the map's tiles and cells", () => {
    const { document, buffer, weights } = given(300, 530);
    const layer = readPage(document, buffer).layers[0]!;
    const maker = new TileMaker(layer);
    const grid = new Grid(300, 530);
    const head = weights[2]!;
    const cell = (level: number, row: number, column: number, pooling: Pooling): number => {
      const queries = grid.queriesOf(level, row);
      const keys = grid.keysOf(level, column);
      const lines = head.slice(queries.from, queries.to).map((line) => line.slice(keys.from, keys.to));
      return pooling === "max" ? Math.max(...lines.flat()) : lines.flat().reduce((sum, weight) => sum + weight, 0) / lines.length;
    };
    for (const pooling of ["mean", "max"] as const) for (const [level, y, x] of [[0, 1, 2], [1, 0, 1], [2, 0, 0]] as const) {
      const tile = grid.tile({ level, y, x });
      const found = maker.tile(2, { level, y, x }, pooling);
      expect(found.length).toBe(tile.rows * tile.columns);
      for (let i = 0; i < found.length; i += 97) {
        const [row, column] = [tile.row + Math.floor(i / tile.columns), tile.column + (i % tile.columns)];
        const expected = cell(level, row, column, pooling);
        // a mean over queries of sums over keys: rounding adds up along the keys
        expect(Math.abs(found[i]! - expected)).toBeLessThanOrEqual(HALF * 2 ** level + 1e-6);
        expect(Math.abs(maker.cell(2, level, row, column, pooling) - expected)).toBeLessThanOrEqual(HALF * 2 ** level + 1e-6);
      }
    }
    expect(maker.cell(1, 1, 3, 4, "max")).not.toBeCloseTo(cell(1, 3, 4, "max"), 3);
  });

  it("that are none are refused", () => {
    const { document, layer, buffer, filler, held } = given(5, 11);
    const refused = (weights: unknown, words: RegExp) => {
      layer["weights"] = weights;
      expect(() => readPage(document, buffer)).toThrow(words);
    };
    refused({ ...held, dtype: "u8" }, /layers\[0\]\.weights has dtype u8, expected u16/);
    refused({ ...held, shape: [3, 11, 5] }, /layers\[0\]\.weights has shape \[3, 11, 5\], expected \[3, 5, 11\]/);
    refused({ ...held, offset: held.offset + 1_000_000 * 8 }, /layers\[0\]\.weights ends at byte \d+, but the page's data have/);
    refused({ ...held, offset: held.offset + 1 }, /layers\[0\]\.weights is not a reference to data/);
    refused(filler, /layers\[0\]\.weights has dtype u8/);
    refused("all of them", /layers\[0\]\.weights is not a reference to data/);
  });
});
