import { describe, expect, it } from "vitest";
import { PageError } from "../src/data";
import { readPage } from "../src/document";
import { fromHash, toHash } from "../src/hash";
import { Store } from "../src/state";
import { formatTrait, isSort, KINDS, knows, ranked, traitOf } from "../src/traits";
import { buildPage } from "./page";

const TRAITS = {
  label: ["broad", "", "itself"],
  entropy: [2.5, 0.5, 1.5],
  distance: [null, 7.25, 120.4],
  sink: [null, null, null],
  concentration: [0.2, 0.2, 0.1],
};

const open = (...traits: unknown[]) => {
  const { document, layer, buffer } = buildPage();
  document["layers"] = traits.map((one, i) => ({ ...layer, index: i, traits: one }));
  return readPage(document, buffer);
};
const names = (page: ReturnType<typeof open>, sort: Parameters<typeof ranked>[1]) =>
  ranked(page, sort).map(({ layer, place }) => `${layer.index}.${layer.heads[place]}`);

describe("heads in an order", () => {
  const second = { ...TRAITS, entropy: [1.5, 9, 0], concentration: [0.3, 0.2, 0.2] };
  const page = open(TRAITS, second, null);

  it("is by layer and head where no number is named", () => {
    expect(names(page, "")).toEqual(["0.0", "0.3", "0.7", "1.0", "1.3", "1.7", "2.0", "2.3", "2.7"]);
  });

  it("puts the smallest or the largest first, and what is not known last", () => {
    expect(names(page, "entropy")).toEqual(["1.7", "0.3", "0.7", "1.0", "0.0", "1.3", "2.0", "2.3", "2.7"]);
    expect(names(page, "-entropy")).toEqual(["1.3", "0.0", "0.7", "1.0", "0.3", "1.7", "2.0", "2.3", "2.7"]);
    expect(ranked(page, "-entropy").map(({ value }) => value)).toEqual([9, 2.5, 1.5, 1.5, 0.5, 0, null, null, null]);
    expect(names(page, "distance").slice(4)).toEqual(["0.0", "1.0", "2.0", "2.3", "2.7"]);
  });

  it("leaves equal heads by layer and head, either way", () => {
    expect(names(page, "concentration").slice(0, 6)).toEqual(["0.7", "0.0", "0.3", "1.3", "1.7", "1.0"]);
    expect(names(page, "-concentration").slice(0, 6)).toEqual(["1.0", "0.0", "0.3", "1.3", "1.7", "0.7"]);
  });

  it("is by layer and head where nobody knows the number", () => {
    expect(names(page, "-sink")).toEqual(names(page, ""));
    expect([knows(page, "sink"), knows(page, "distance")]).toEqual([false, true]);
  });

  it("does not change the page", () => {
    ranked(page, "-entropy");
    expect(page.layers[0]!.traits!.numbers.entropy).toEqual([2.5, 0.5, 1.5]);
  });
});

describe("the order in the address", () => {
  it("survives, and nothing else passes for one", () => {
    const page = open(TRAITS);
    for (const sort of ["entropy", "-distance", "sink", "-concentration"] as const) {
      const { state } = new Store(page, { sort });
      expect(toHash(page, state)).toContain(`sort=${sort}`);
      expect(fromHash(page, toHash(page, state)).sort).toBe(sort);
    }
    expect(toHash(page, new Store(page, {}).state)).not.toContain("sort");
    for (const other of ["--entropy", "label", "toString", "-", "Entropy", "entropy-"]) expect(fromHash(page, `#sort=${other}`)).toEqual({});
    expect([isSort(null), isSort(""), traitOf(""), traitOf("-sink")]).toEqual([false, true, null, "sink"]);
  });
});

describe("traits in the document", () => {
  it("may be missing", () => {
    expect(open(undefined).layers[0]!.traits).toBeNull();
  });

  const lies: [string, Record<string, unknown>, RegExp][] = [
    ["a head too few", { sink: [0, 1] }, /layers\[0\]\.traits\.sink is no list of numbers or null, one for each of 3 heads/],
    ["text among numbers", { entropy: [1, "2", 3] }, /traits\.entropy is no list of numbers or null/],
    ["numbers among labels", { label: ["", 1, ""] }, /traits\.label is no list of labels/],
    ["no list", { distance: 3 }, /traits\.distance/],
  ];

  it.each(lies)("refuses %s", (_, lie, sentence) => {
    expect(() => open({ ...TRAITS, ...lie })).toThrow(PageError);
    expect(() => open({ ...TRAITS, ...lie })).toThrow(sentence);
  });

  it("refuses what is no object", () => {
    expect(() => open("broad")).toThrow(/traits\.\w+ is no list/);
  });
});

describe("words and numbers", () => {
  it("has a word for every kind that fits under a map", () => {
    expect(KINDS.every(([label, short]) => (label === "") === (short === "") && short.length <= 10)).toBe(true);
  });

  it("writes numbers as long as they need to be", () => {
    expect([formatTrait("entropy", 2.504), formatTrait("distance", 7.25), formatTrait("distance", 120.4), formatTrait("sink", null)]).toEqual(["2.50", "7.3", "120", "–"]);
  });
});
