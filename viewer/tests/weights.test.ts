import { describe, expect, it } from "vitest";
import { readPage } from "../src/document";
import { LayerWeights } from "../src/weights";
import { buildPage, type DataBlock, type Recipe } from "./page";

function worst(recipe: Recipe): { row: number; column: number; total: number[] } {
  const { document, buffer, expected } = buildPage(recipe);
  const weights = new LayerWeights(readPage(document, buffer).layers[0]!);
  let row = 0;
  let column = 0;
  const total: number[] = [];
  expected.forEach((rows, head) => {
    rows.forEach((keys, i) => {
      const found = weights.row(head, i);
      expect(found.length).toBe(keys.length);
      keys.forEach((weight, j) => {
        row = Math.max(row, Math.abs(found[j]! - weight));
        column = Math.max(column, Math.abs(weights.column(head, j)[i]! - weight));
      });
      total.push(found.reduce((sum, weight) => sum + weight, 0));
    });
  });
  return { row, column, total };
}

const causal: Recipe = { mask: () => ({ kind: "causal" }), visible: (_, i, j) => j <= i };

const recipes: [string, Recipe][] = [
  ["plain", {}],
  ["one dimension, one head", { dims: 1, heads: [4] }],
  ["softcap", { softcap: 1.5 }],
  ["bias, a head each", { biasHeads: 3 }],
  ["bias, shared", { biasHeads: 1 }],
  ["softcap and bias", { softcap: 0.7, biasHeads: 3 }],
  ["causal", causal],
  ["causal with an offset", { query_offset: 6, mask: () => ({ kind: "causal" }), visible: (_, i, j) => j <= i + 6 }],
  ["a subset of queries under a causal mask", { ...causal, queries: [1, 4] }],
  ["queries out of order", { ...causal, queries: [3, 0, 2] }],
  ["documents, a subset of queries", {
    queries: [0, 3], visible: (_, i, j) => [0, 0, 1, 1, 1][i] === [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0][j],
    mask: (data: DataBlock) => ({ kind: "documents", query: data.add([0, 0, 1, 1, 1], "i32", [5]), key: data.add([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0], "i32", [11]) }),
  }],
  ["sinks", { sinks: [0.3, -1, 2] }],
];

describe("entropy", () => {
  it.each([["plain", {}], ["sinks", { sinks: [0.3, -1, 2] }], ["a row that sees nothing", { biasHeads: 1, blindRow: 2 }]] as [string, Recipe][])("of a row and its sink: %s", (_, recipe) => {
    const { document, buffer, expected, expectedSink } = buildPage(recipe);
    const weights = new LayerWeights(readPage(document, buffer).layers[0]!);
    expected.forEach((rows, head) => rows.forEach((keys, row) => {
      const outcomes = [...keys, ...(recipe.sinks ? [expectedSink[head]![row]!] : [])].filter((weight) => weight > 0);
      const exact = -outcomes.reduce((sum, weight) => sum + weight * Math.log(weight), 0);
      expect(weights.entropy(head, row, weights.row(head, row))).toBeCloseTo(exact, 6);
    }));
  });
});

describe("weights", () => {
  it.each(recipes)("%s: rows and columns equal the plain formula", (_, recipe) => {
    const { row, column } = worst(recipe);
    expect(row).toBeLessThan(1e-12);
    expect(column).toBeLessThan(1e-12);
  });

  it("the comparison would notice another softcap, mask, offset or bias", () => {
    const wrong: Recipe[] = [
      { ...causal, visible: (_, i, j) => j < i + 2 },
      { query_offset: 5, mask: () => ({ kind: "causal" }), visible: (_, i, j) => j <= i + 6 },
      { queries: [1, 4], mask: () => ({ kind: "causal" }), visible: (_, i, j) => j <= (i === 1 ? 0 : 1) },
    ];
    for (const recipe of wrong) expect(worst(recipe).row).toBeGreaterThan(1e-3);
    const { document, layer, buffer, expected } = buildPage({ softcap: 1.5 });
    layer["softcap"] = 1.6;
    const off = new LayerWeights(readPage(document, buffer).layers[0]!).row(1, 2);
    expect(Math.max(...off.map((weight, j) => Math.abs(weight - expected[1]![2]![j]!)))).toBeGreaterThan(1e-4);
  });

  it("rows sum to one, and with sinks to the rest", () => {
    for (const sum of worst({ softcap: 2, biasHeads: 1 }).total) expect(sum).toBeCloseTo(1, 12);
    const { document, buffer, expectedSink } = buildPage({ sinks: [0.3, -1, 2] });
    const weights = new LayerWeights(readPage(document, buffer).layers[0]!);
    const sum = weights.row(2, 4).reduce((total, weight) => total + weight, 0);
    expect(sum).toBeLessThan(0.9);
    expect(sum + weights.sink(2, 4)).toBeCloseTo(1, 6);
    expect(weights.sink(2, 4)).toBeCloseTo(expectedSink[2]![4]!, 6);
  });

  it("a query that sees no key has weights 0, never NaN", () => {
    const recipe: Recipe = { query_offset: -2, mask: () => ({ kind: "causal" }), visible: (_, i, j) => j <= i - 2, biasHeads: 1 };
    const { document, buffer } = buildPage(recipe);
    const weights = new LayerWeights(readPage(document, buffer).layers[0]!);
    expect([...weights.row(1, 0)]).toEqual(Array(11).fill(0));
    expect([weights.blind(1, 0), weights.blind(1, 1), weights.blind(1, 2)]).toEqual([true, true, false]);
    expect([...weights.column(1, 0)].slice(0, 2)).toEqual([0, 0]);
    expect(weights.column(1, 0)[2]).toBeCloseTo(1, 12);
    expect(worst(recipe).row).toBeLessThan(1e-12);
  });

  it("a query blinded by the bias, without a mask, has weights 0 too", () => {
    const recipe: Recipe = { biasHeads: 1, blindRow: 2 };
    const { document, buffer } = buildPage(recipe);
    const weights = new LayerWeights(readPage(document, buffer).layers[0]!);
    expect(weights.blind(0, 2)).toBe(true);
    expect([...weights.row(0, 2)]).toEqual(Array(11).fill(0));
    expect(weights.column(0, 4)[2]).toBe(0);
    expect(worst(recipe).column).toBeLessThan(1e-12);
  });

  it("knows which queries were recorded", () => {
    const some = buildPage({ queries: [3, 1] });
    const subset = new LayerWeights(readPage(some.document, some.buffer).layers[0]!);
    expect([0, 1, 2, 3, 4].map((query) => subset.recordedRow(query))).toEqual([null, 1, null, 0, null]);
    const all = buildPage();
    const whole = new LayerWeights(readPage(all.document, all.buffer).layers[0]!);
    expect([-1, 0, 4, 5].map((query) => whole.recordedRow(query))).toEqual([null, 0, 4, null]);
  });
});
