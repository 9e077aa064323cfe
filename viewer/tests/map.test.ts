import { describe, expect, it } from "vitest";
import { products } from "../assemble.mjs";
import { parseDocument, readPage } from "../src/document";
import { labelled, niceStep } from "../src/map/axis";
import { Grid, TILE, type Pooling } from "../src/map/grid";
import { TileMaker } from "../src/map/maker";
import { plain, simd, type Arithmetic } from "../src/map/products";
import { FAINTEST, linear, logarithmic, paint, ranked } from "../src/map/shade";
import { RememberingSupply, RemoteSupply } from "../src/map/supply";
import { buildPage, random, type Recipe } from "./page";

const open = (recipe: Recipe = {}) => {
  const { document, buffer, expected } = buildPage(recipe);
  const page = readPage(parseDocument(JSON.stringify(document)), buffer);
  return { page, layer: page.layers[0]!, expected };
};

const module = await products();
const vectors = simd(module)!;
const both: [string, Arithmetic][] = [["simd", vectors], ["plain", plain]];

/** A score of some tens carries this much rounding in single precision. */
const ROUNDED = 4e-6;
/** Smaller weights may be left out of a tile. */
const NOTHING = 2e-11;

/** A cell by its definition. */
function defined(weights: number[][], grid: Grid, level: number, row: number, column: number, pooling: Pooling): number {
  const queries = grid.queriesOf(level, row);
  const keys = grid.keysOf(level, column);
  const lines = weights.slice(queries.from, queries.to).map((line) => line.slice(keys.from, keys.to));
  return pooling === "max" ? Math.max(...lines.flat()) : lines.flat().reduce((sum, weight) => sum + weight, 0) / lines.length;
}

describe("grid", () => {
  it("has one tile at its top, and the tiles of a level cover its cells once", () => {
    for (const [queries, keys] of [[1, 1], [256, 256], [257, 3], [1000, 700], [131_072, 131_072]] as const) {
      const grid = new Grid(queries, keys);
      expect(grid.has({ level: grid.top, y: 0, x: 0 })).toBe(true);
      expect([grid.has({ level: grid.top, y: 1, x: 0 }), grid.has({ level: grid.top, y: 0, x: 1 }), grid.has({ level: grid.top + 1, y: 0, x: 0 })]).toEqual([false, false, false]);
      const level = Math.max(0, grid.top - 1);
      let cells = 0;
      for (let y = 0; grid.has({ level, y, x: 0 }); y++) for (let x = 0; grid.has({ level, y, x }); x++) {
        const tile = grid.tile({ level, y, x });
        cells += tile.rows * tile.columns;
      }
      expect(cells).toBe(grid.rows(level) * grid.columns(level));
    }
  });

  it("cuts the last cells at the map's edge", () => {
    const grid = new Grid(700, 1000);
    expect(grid.top).toBe(2);
    expect(grid.tile({ level: 1, y: 1, x: 1 })).toEqual({ row: TILE, column: TILE, rows: 94, columns: 244 });
    expect(grid.queriesOf(2, 174)).toEqual({ from: 696, to: 700 });
  });
});

describe.each(both)("tiles by %s arithmetic", (_name, arithmetic) => {
  const causal = (_: number, query: number, key: number) => key <= query + 6;
  const kinds: Record<string, Recipe> = {
    plain: {}, causal: { mask: () => ({ kind: "causal" }), query_offset: 6, visible: causal }, capped: { softcap: 2 },
    chosen: { queries: [0, 3, 4] }, biased: { biasHeads: 1, blindRow: 2 }, thirteen: { dims: 13, lengths: [7, 29] },
    window: { mask: () => ({ kind: "sliding_window", left: 1, right: 2 }), visible: (_, query, key) => key >= query - 1 && key <= query + 2 },
    scattered: { mask: () => ({ kind: "not", mask: { kind: "causal" } }), visible: (_, query, key) => key > query },
    blind: { mask: () => ({ kind: "causal" }), query_offset: -2, visible: (_, query, key) => key <= query - 2 },
  };
  for (const [name, recipe] of Object.entries(kinds)) {
    it(`hold every cell as it is defined: ${name}`, () => {
      const { layer, expected } = open(recipe);
      const maker = new TileMaker(layer, arithmetic);
      const { grid } = maker;
      for (const pooling of ["mean", "max"] as const) for (const head of [0, 2]) {
        const tile = maker.tile(head, { level: 0, y: 0, x: 0 }, pooling);
        expect(tile.length).toBe(grid.rows(0) * grid.columns(0));
        for (const level of [0, 1, 2]) for (let row = 0; row < grid.rows(level); row++) for (let column = 0; column < grid.columns(level); column++) {
          const cell = defined(expected[head]!, grid, level, row, column, pooling);
          if (level === 0) expect(Math.abs(tile[row * grid.columns(0) + column]! - cell)).toBeLessThanOrEqual(ROUNDED * cell + NOTHING);
          expect(maker.cell(head, level, row, column, pooling)).toBeCloseTo(cell, 12);
        }
      }
    });
  }

  it("refuse what is not on the map", () => {
    const maker = new TileMaker(open().layer);
    expect(() => maker.tile(0, { level: 0, y: 1, x: 0 }, "mean")).toThrow("no tile 0/1/0");
  });

  it("of a long text are pooled as they are defined, from weights and from blocks", () => {
    const { layer, expected: weights } = open({ lengths: [601, 598], blocks: 2 });
    const near = new TileMaker({ ...layer, blocks: null }, arithmetic);
    const far = new TileMaker(layer, arithmetic);
    const { grid } = near;
    expect(grid.top).toBe(2);
    const next = random(7);
    for (const pooling of ["mean", "max"] as const) for (const level of [1, 2]) {
      const place = { level, y: 0, x: level === 1 ? 1 : 0 };
      const cells = grid.tile(place);
      const [exact, rounded] = [near.tile(1, place, pooling), far.tile(1, place, pooling)];
      expect(exact.length).toBe(cells.rows * cells.columns);
      for (let i = 0; i < 40; i++) {
        const row = i === 0 ? cells.rows - 1 : Math.floor(next() * cells.rows);
        const column = i === 0 ? cells.columns - 1 : Math.floor(next() * cells.columns);
        const expected = defined(weights[1]!, grid, level, cells.row + row, cells.column + column, pooling);
        const at = row * cells.columns + column;
        expect(exact[at]).toBeCloseTo(expected, 6);
        // 8 bits of the square root: half a step either way, and sums of a few of them
        expect(Math.abs(rounded[at]! - expected)).toBeLessThan(0.02 * Math.sqrt(expected) + 1e-4);
      }
      const other = near.tile(0, place, pooling);
      expect(exact.some((value, i) => Math.abs(value - other[i]!) > 1e-4)).toBe(true);
    }
  });
});

describe("arithmetic", () => {
  const window = { kind: "sliding_window", left: 200, right: 3 };
  const recipe: Recipe = {
    heads: [0], lengths: [601, 607], dims: 11, mask: () => ({ kind: "and", left: { kind: "prefix", length: 590 }, right: window }),
    visible: (_, query, key) => key < 590 && key >= query - 200 && key <= query + 3,
  };

  it("gives the same tiles both ways, and skips nothing that a mask lets through", () => {
    const { layer, expected } = open(recipe);
    const [fast, slow] = [new TileMaker(layer, vectors), new TileMaker(layer, plain)];
    const { grid } = fast;
    let hidden = 0;
    for (let level = 0; level <= grid.top; level++) for (let y = 0; grid.has({ level, y, x: 0 }); y++) for (let x = 0; grid.has({ level, y, x }); x++) {
      const cells = grid.tile({ level, y, x });
      for (const pooling of ["mean", "max"] as const) {
        const [one, other] = [fast.tile(0, { level, y, x }, pooling), slow.tile(0, { level, y, x }, pooling)];
        for (let i = 0; i < one.length; i++) {
          const exact = defined(expected[0]!, grid, level, cells.row + Math.floor(i / cells.columns), cells.column + (i % cells.columns), pooling);
          if (exact === 0) hidden++;
          if (!(Math.abs(one[i]! - exact) <= ROUNDED * exact) || !(Math.abs(other[i]! - exact) <= 1.3e-7 * exact + NOTHING)) {
            expect.fail(`cell ${i} of tile ${level}/${y}/${x}, ${pooling}: ${one[i]} and ${other[i]}, not ${exact}`);
          }
        }
      }
    }
    expect(hidden).toBeGreaterThan(1000);
  });

  it("notices a head's numbers in another's place", () => {
    const { layer } = open({ lengths: [20, 20], dims: 3 });
    const place = { level: 0, y: 0, x: 0 };
    const one = new TileMaker(layer, vectors).tile(0, place, "mean");
    const other = new TileMaker(layer, plain).tile(1, place, "mean");
    expect(Math.max(...one.map((value, i) => Math.abs(value - other[i]!)))).toBeGreaterThan(1e-3);
  });

  it("raises 2 to a power within 1e-7, and to nothing below what single precision holds", () => {
    const memory = new WebAssembly.Memory({ initial: 1 });
    const instance = new WebAssembly.Instance(new WebAssembly.Module(module), { page: { memory } });
    const fold = instance.exports["fold"] as (scores: number, sums: number, count: number, total: number, largest: number) => void;
    const count = 4096;
    const scores = new Float32Array(memory.buffer, 0, count);
    const sums = new Float32Array(memory.buffer, 4 * count, count);
    const next = random(3);
    let worst = 0;
    for (let round = 0; round < 100; round++) {
      scores.forEach((_, i) => { scores[i] = -125.99 + 126.99 * next(); });
      sums.fill(0);
      fold(0, 4 * count, count, 0, round % 2);
      for (let i = 0; i < count; i++) worst = Math.max(worst, Math.abs(sums[i]! / 2 ** scores[i]! - 1));
    }
    expect(worst).toBeLessThan(1e-7);
    expect(worst).toBeGreaterThan(1e-9);
    scores.set([-Infinity, -1e30, -126.5, -40, 0, 1, -126, -200]);
    sums.fill(0);
    fold(0, 4 * count, 8, 0, 0);
    expect([...sums.subarray(0, 8)]).toEqual([0, 0, 0, 2 ** -40, 1, 2, 0, 0]);
  });

  it("is plain where WebAssembly cannot be had", () => {
    expect(simd(new Uint8Array([0, 97, 115, 109]))).toBe(null);
    expect([vectors.name, plain.name]).toEqual(["simd", "plain"]);
  });
});

describe("colour", () => {
  it("runs from nothing to everything on each scale", () => {
    expect([linear(0), linear(0.5), linear(1), linear(2)]).toEqual([0, 127.5, 255, 255]);
    expect(logarithmic(0)).toBe(0);
    expect(logarithmic(FAINTEST)).toBe(0);
    expect(logarithmic(1)).toBe(255);
    expect(logarithmic(Math.sqrt(FAINTEST))).toBeCloseTo(127.5, 9);
    const rank = ranked(Float32Array.from([0, 0, 0.125, 0.25, 0.5, 0.75]));
    expect([0, 0.05, 0.125, 0.3, 0.75, 1].map(rank)).toEqual([0, 0, 63.75, 127.5, 255, 255]);
    expect(ranked(new Float32Array(4))(0.5)).toBe(0);
  });

  it("paints the colour, and the number as opacity", () => {
    const pixels = new Uint8ClampedArray(8);
    paint(Float32Array.from([0.2, 1]), [10, 20, 30], linear, pixels);
    expect([...pixels]).toEqual([10, 20, 30, 51, 10, 20, 30, 255]);
  });
});

describe("axes", () => {
  it("label every token where there is room, else round steps", () => {
    expect(labelled(3.2, 7.1, 20, 100, 22)).toEqual([3, 4, 5, 6, 7]);
    expect(labelled(0, 100, 4, 60, 22)).toEqual([0, 10, 20, 30, 40, 50]);
    expect([1, 1.2, 3, 7, 40, 101].map(niceStep)).toEqual([1, 2, 5, 10, 50, 200]);
  });
});

describe("supply", () => {
  it("remembers tiles up to its bytes and makes shares of the server's means", async () => {
    const { page } = open({ lengths: [600, 600] });
    const asked: string[] = [];
    const remote = new RemoteSupply(page, async (path, parameters) => {
      asked.push(`${path} ${parameters["z"]}/${parameters["y"]}/${parameters["x"]} ${parameters["head"]}`);
      const { rows, columns } = new Grid(600, 600).tile({ level: Number(parameters["z"]), y: Number(parameters["y"]), x: Number(parameters["x"]) });
      return new Float32Array(rows * columns).fill(0.125).buffer;
    });
    const supply = new RememberingSupply(page, remote, 4 * 256 * 256);
    const { signal } = new AbortController();
    const place = { level: 2, y: 0, x: 0 };
    expect((await supply.tile(0, 1, place, "mean", signal))[0]).toBe(0.5);
    expect((await supply.tile(0, 1, place, "mean", signal))[0]).toBe(0.5);
    expect((await supply.tile(0, 1, place, "max", signal))[0]).toBe(0.125);
    await supply.tile(0, 1, { level: 0, y: 0, x: 0 }, "max", signal);
    await supply.tile(0, 1, place, "mean", signal);
    expect(asked).toEqual(["tile 2/0/0 3", "tile 2/0/0 3", "tile 0/0/0 3", "tile 2/0/0 3"]);
  });

  it("reads a cell off a remembered tile", async () => {
    const { page } = open({ lengths: [600, 600] });
    let asked = 0;
    const remote = new RemoteSupply(page, async () => {
      asked++;
      return Float32Array.from({ length: 256 * 88 }, (_, i) => i).buffer;
    });
    const supply = new RememberingSupply(page, remote);
    const { signal } = new AbortController();
    expect(await supply.cell(0, 1, 0, 3, 512 + 7, "max", signal)).toBe(3 * 88 + 7);
    expect(await supply.cell(0, 1, 0, 255, 599, "max", signal)).toBe(255 * 88 + 87);
    expect(asked).toBe(1);
  });

  it("refuses a tile of the wrong size", async () => {
    const remote = new RemoteSupply(open().page, async () => new ArrayBuffer(8));
    await expect(remote.tile(0, 0, { level: 0, y: 0, x: 0 }, "mean", new AbortController().signal)).rejects.toThrow("2 cells, expected");
  });
});
