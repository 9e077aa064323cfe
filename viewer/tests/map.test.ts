import { describe, expect, it } from "vitest";
import { parseDocument, readPage } from "../src/document";
import { labelled, niceStep } from "../src/map/axis";
import { Grid, TILE, type Pooling } from "../src/map/grid";
import { TileMaker } from "../src/map/maker";
import { FAINTEST, linear, logarithmic, paint, ranked } from "../src/map/shade";
import { RememberingSupply, RemoteSupply } from "../src/map/supply";
import { buildPage, random, type Recipe } from "./page";

const open = (recipe: Recipe = {}) => {
  const { document, buffer, expected } = buildPage(recipe);
  const page = readPage(parseDocument(JSON.stringify(document)), buffer);
  return { page, layer: page.layers[0]!, expected };
};

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

describe("tiles", () => {
  const causal = (_: number, query: number, key: number) => key <= query + 6;
  const kinds: Record<string, Recipe> = {
    plain: {}, causal: { mask: () => ({ kind: "causal" }), query_offset: 6, visible: causal }, capped: { softcap: 2 },
    chosen: { queries: [0, 3, 4] }, biased: { biasHeads: 1, blindRow: 2 },
  };
  for (const [name, recipe] of Object.entries(kinds)) {
    it(`hold every cell as it is defined: ${name}`, () => {
      const { layer, expected } = open(recipe);
      const maker = new TileMaker(layer);
      const { grid } = maker;
      for (const pooling of ["mean", "max"] as const) for (const head of [0, 2]) {
        const tile = maker.tile(head, { level: 0, y: 0, x: 0 }, pooling);
        expect(tile.length).toBe(grid.rows(0) * grid.columns(0));
        for (const level of [0, 1, 2]) for (let row = 0; row < grid.rows(level); row++) for (let column = 0; column < grid.columns(level); column++) {
          const cell = defined(expected[head]!, grid, level, row, column, pooling);
          if (level === 0) expect(tile[row * grid.columns(0) + column]).toBeCloseTo(cell, 6);
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
    const near = new TileMaker({ ...layer, blocks: null });
    const far = new TileMaker(layer);
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
    const supply = new RememberingSupply(remote, 4 * 256 * 256);
    const { signal } = new AbortController();
    const place = { level: 2, y: 0, x: 0 };
    expect((await supply.tile(0, 1, place, "mean", signal))[0]).toBe(0.5);
    expect((await supply.tile(0, 1, place, "mean", signal))[0]).toBe(0.5);
    expect((await supply.tile(0, 1, place, "max", signal))[0]).toBe(0.125);
    await supply.tile(0, 1, { level: 0, y: 0, x: 0 }, "max", signal);
    await supply.tile(0, 1, place, "mean", signal);
    expect(asked).toEqual(["tile 2/0/0 3", "tile 2/0/0 3", "tile 0/0/0 3", "tile 2/0/0 3"]);
  });

  it("refuses a tile of the wrong size", async () => {
    const remote = new RemoteSupply(open().page, async () => new ArrayBuffer(8));
    await expect(remote.tile(0, 0, { level: 0, y: 0, x: 0 }, "mean", new AbortController().signal)).rejects.toThrow("2 cells, expected");
  });
});
