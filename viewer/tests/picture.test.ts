import { describe, expect, it } from "vitest";
import { PageError } from "../src/data";
import { readPage } from "../src/document";
import { fromHash, toHash } from "../src/hash";
import { logarithmic } from "../src/map/shade";
import { blended, frameAt, patchAt, patchOf, pixelPeaks, shadeOf, stepped, timeTicks, tokenOf } from "../src/picture/geometry";
import { peaksOf, shortWeight, wholeWeights } from "../src/picture/shown";
import { hasPicture, Store } from "../src/state";
import { buildPage } from "./page";

const GRID = { rows: 3, columns: 5, first: 2 };
const SRC = "data:image/png;base64,iVBORw0KGgo=";

describe("a patch", () => {
  it("lies under the points of its rectangle, and nowhere else", () => {
    for (let row = 0; row < 3; row++) for (let column = 0; column < 5; column++) {
      const box = { left: column * 20, top: row * 100 };
      for (const [x, y] of [[0, 0], [19.9, 0], [0, 99.9], [19.9, 99.9]] as const) {
        expect(patchAt(GRID, box.left + x, box.top + y, 100, 300)).toEqual({ row, column });
      }
    }
    for (const [x, y] of [[-0.1, 5], [100, 5], [5, -0.1], [5, 300]] as const) expect(patchAt(GRID, x, y, 100, 300)).toBeNull();
  });

  it("is a token behind the first ones, row after row, and back", () => {
    expect(tokenOf(GRID, { row: 0, column: 0 })).toBe(2);
    expect(tokenOf(GRID, { row: 1, column: 0 })).toBe(7);
    for (let token = 2; token < 17; token++) expect(tokenOf(GRID, patchOf(GRID, token)!)).toBe(token);
    expect([0, 1, 17, 40].map((token) => patchOf(GRID, token))).toEqual([null, null, null, null]);
  });

  it("is left by arrows, up and down by rows, never over the edge", () => {
    const from = { row: 1, column: 3 };
    const to = (key: string, far = false) => stepped(GRID, from, key, far);
    expect([to("ArrowUp"), to("ArrowDown"), to("ArrowLeft"), to("ArrowRight")]).toEqual([
      { row: 0, column: 3 }, { row: 2, column: 3 }, { row: 1, column: 2 }, { row: 1, column: 4 }]);
    expect([to("ArrowUp", true), to("ArrowRight", true)]).toEqual([{ row: 0, column: 3 }, { row: 1, column: 4 }]);
    expect([to("Home"), to("End"), to("PageUp"), to("PageDown")]).toEqual([
      { row: 1, column: 0 }, { row: 1, column: 4 }, { row: 0, column: 3 }, { row: 2, column: 3 }]);
    expect([to("x"), to("Enter")]).toEqual([null, null]);
  });
});

describe("time", () => {
  it("has its frame under every point, ends included", () => {
    expect([-5, 0, 9.99, 10, 69.9, 70, 500].map((x) => frameAt(7, x, 70))).toEqual([0, 0, 0, 1, 6, 6, 6]);
  });

  it("keeps the largest of the frames that share a pixel", () => {
    const weights = Array.from({ length: 1501 }, (_, i) => ((i * 7919) % 1501) / 1501);
    const peaks = pixelPeaks(weights, 300);
    expect(Math.max(...peaks)).toBe(Math.max(...weights));
    for (let x = 0; x < 300; x++) {
      const own = weights.filter((_, i) => Math.floor(((i + 0.5) * 300) / 1501) === x);
      expect(peaks[x]).toBeGreaterThanOrEqual(Math.max(...own.slice(1, -1)));
    }
  });

  it("gives a frame that is wider than a pixel all its pixels", () => {
    expect([...pixelPeaks([0.25, 0, 0.5], 9)]).toEqual([0.25, 0.25, 0.25, 0, 0, 0, 0.5, 0.5, 0.5]);
  });

  it("is labelled with round seconds, not more than fit", () => {
    expect(timeTicks(30, 8).map(({ label }) => label)).toEqual(["0 s", "5 s", "10 s", "15 s", "20 s", "25 s", "30 s"]);
    expect(timeTicks(0.26, 6).map(({ at, label }) => [at.toFixed(3), label])).toEqual([
      ["0.000", "0.00 s"], ["0.050", "0.05 s"], ["0.100", "0.10 s"], ["0.150", "0.15 s"], ["0.200", "0.20 s"], ["0.250", "0.25 s"]]);
    for (const seconds of [0.013, 1, 7.3, 29.98, 3600]) for (const most of [1, 3, 10]) {
      const ticks = timeTicks(seconds, most);
      expect(ticks.length - 1).toBeLessThanOrEqual(most);
      expect(ticks.at(-1)!.at).toBeLessThanOrEqual(seconds * (1 + 1e-6));
      expect(new Set(ticks.map(({ label }) => label)).size).toBe(ticks.length);
    }
  });
});

describe("opacity", () => {
  const weights = [Float64Array.of(0.01, 0.04), Float64Array.of(0.02, 0)];

  it("is measured by the largest weight there, where it is linear", () => {
    const { shade, largest } = shadeOf("linear", weights);
    expect(largest).toBe(0.04);
    expect([0, 0.01, 0.02, 0.04].map(shade)).toEqual([0, 63.75, 127.5, 255]);
    expect(shadeOf("linear", [Float64Array.of(0, 0)]).shade(0)).toBe(0);
    expect(shadeOf("linear", []).shade(0)).toBe(0);
  });

  it("is the map's, where it is logarithmic or by rank", () => {
    expect(shadeOf("log", weights).shade).toBe(logarithmic);
    const { shade } = shadeOf("rank", weights);
    expect([0, 0.01, 0.02, 0.04].map(shade)).toEqual([0, 85, 170, 255]);
  });

  it("of one head is its own colour, of several a mixture in whatever order", () => {
    const [red, blue] = [[200, 0, 0], [0, 0, 100]] as const;
    expect(blended([red], [0.5])).toEqual([200, 0, 0, 0.5]);
    expect(blended([red, blue], [0.5, 0])).toEqual([200, 0, 0, 0.5]);
    expect(blended([red, blue], [0.6, 0.2])).toEqual(blended([blue, red], [0.2, 0.6]));
    const [r, g, b, alpha] = blended([red, blue], [0.6, 0.2]);
    expect([r, g, b]).toEqual([150, 0, 25].map((value) => expect.closeTo(value, 9)));
    expect(alpha).toBeCloseTo(1 - 0.4 * 0.8, 12);
    expect(blended([red, blue], [1, 1])[3]).toBe(1);
    expect(blended([red, blue], [0, 0])).toEqual([0, 0, 0, 0]);
    expect(blended([], [])).toEqual([0, 0, 0, 0]);
  });
});

describe("weights by token", () => {
  const spread = { head: 3, place: 1, pending: false, blind: false, sink: null, entropy: null };

  it("stand at the positions of recorded queries", () => {
    expect([...wholeWeights({ ...spread, weights: Float64Array.of(0.1, 0.2), positions: [4, 1] }, 6).weights]).toEqual([0, 0.2, 0, 0, 0.1, 0]);
    expect([...wholeWeights({ ...spread, weights: Float64Array.of(0.1, 0.2), positions: null }, 2).weights]).toEqual([0.1, 0.2]);
    expect([...wholeWeights({ ...spread, weights: null, positions: null }, 2).weights]).toEqual([0, 0]);
  });

  it("carry numbers where they are strongest, in their part of the text", () => {
    const heads = [
      { head: 0, place: 0, weights: Float64Array.of(0.9, 0.01, 0.3, 0.2, 0.1) },
      { head: 5, place: 1, weights: Float64Array.of(0, 0.5, 0.02, 0, 0) },
    ];
    expect(peaksOf(heads, 1, 5, 3)).toEqual([
      { head: 5, place: 1, token: 1, weight: 0.5 }, { head: 0, place: 0, token: 2, weight: 0.3 }, { head: 0, place: 0, token: 3, weight: 0.2 }]);
    expect(peaksOf(heads, 1, 5, 1).map(({ token }) => token)).toEqual([1, 2]);
    expect(peaksOf([{ head: 0, place: 0, weights: new Float64Array(5) }], 0, 5, 3)).toEqual([]);
  });

  it("are written with two digits that say something", () => {
    expect([0.5, 0.096, 0.0949, 0.008].map(shortWeight)).toEqual(["0.50", "0.10", "0.095", "0.008"]);
  });
});

const open = (change: (texts: Record<string, unknown>[]) => void) => {
  const { document, buffer } = buildPage({ lengths: [5, 11] });
  const texts = document["texts"] as Record<string, unknown>[];
  change(texts);
  return readPage(document, buffer);
};
const PICTURE = { src: SRC, size: [640, 427], grid: [2, 5], first: 1 };

describe("the document", () => {
  it("says what a text is", () => {
    const page = open(([, keys]) => { keys!["picture"] = PICTURE; });
    expect(page.texts[1]!.picture).toEqual({ src: SRC, width: 640, height: 427, rows: 2, columns: 5, first: 1 });
    expect([page.texts[0]!.picture, page.texts[0]!.sound, page.texts[1]!.sound]).toEqual([null, null, null]);
    const spoken = open(([, keys]) => { Object.assign(keys!, { seconds_per_frame: 0.02, spectrogram: { src: SRC, size: [1, 2] } }); });
    expect(spoken.texts[1]!.sound).toEqual({ secondsPerFrame: 0.02, src: SRC });
    expect(open(([, keys]) => { keys!["seconds_per_frame"] = 0.5; }).texts[1]!.sound).toEqual({ secondsPerFrame: 0.5, src: null });
  });

  const lies: [string, Record<string, unknown>, RegExp][] = [
    ["an address of the network", { picture: { ...PICTURE, src: "https://example.org/a.png" } }, /texts\[1\]\.picture\.src is no PNG or JPEG/],
    ["a drawing that could run", { picture: { ...PICTURE, src: "data:image/svg+xml;base64,PHN2Zz4=" } }, /no PNG or JPEG/],
    ["more than an address", { picture: { ...PICTURE, src: `${SRC}") url(x` } }, /no PNG or JPEG/],
    ["too many patches", { picture: { ...PICTURE, grid: [3, 5] } }, /3 × 5 patches after 1 tokens, more than the text's 11/],
    ["half a patch", { picture: { ...PICTURE, grid: [2.5, 4] } }, /picture\.grid is no pair/],
    ["no patch", { picture: { ...PICTURE, grid: [0, 4] } }, /picture\.grid is no pair/],
    ["no size", { picture: { ...PICTURE, size: [640] } }, /picture\.size is no pair/],
    ["a negative start", { picture: { ...PICTURE, first: -1 } }, /picture\.first/],
    ["a list", { picture: [] }, /picture is no object/],
    ["frames that take no time", { seconds_per_frame: 0 }, /seconds_per_frame is no number above 0/],
    ["frames in words", { seconds_per_frame: "0.02" }, /seconds_per_frame is no number above 0/],
    ["a spectrogram of elsewhere", { seconds_per_frame: 1, spectrogram: { src: "x" } }, /spectrogram\.src is no PNG/],
  ];

  it.each(lies)("refuses %s", (_, lie, sentence) => {
    expect(() => open(([, keys]) => { Object.assign(keys!, lie); })).toThrow(PageError);
    expect(() => open(([, keys]) => { Object.assign(keys!, lie); })).toThrow(sentence);
  });
});

describe("the view", () => {
  const { document, layer, buffer } = buildPage({ lengths: [5, 5] });
  const [words, patches] = document["texts"] as Record<string, unknown>[];
  const texts = [words, { ...patches, picture: { ...PICTURE, grid: [2, 2] } }];
  const page = readPage({ ...document, texts, layers: [{ ...layer, index: 0 }, { ...layer, index: 1, key_text: 0 }] }, buffer);
  const plain = readPage(document, buffer);

  it("is the picture, where the layer has one", () => {
    expect(page.layers.map((one) => hasPicture(page, one))).toEqual([true, false]);
    expect(new Store(page, {}).state.view).toBe("picture");
    expect(new Store(page, { view: "map" }).state.view).toBe("map");
    expect(new Store(plain, {}).state.view).toBe("lines");
    expect(new Store(plain, { view: "picture" }).state.view).toBe("lines");
  });

  it("leaves the picture for a layer of words, and comes back with it", () => {
    const store = new Store(page, {});
    store.update({ layer: 1 });
    expect(store.state.view).toBe("lines");
    store.update({ token: 3 });
    store.update({ layer: 0 });
    expect(store.state.view).toBe("picture");
    store.update({ layer: 1 });
    store.update({ view: "map" });
    store.update({ layer: 0 });
    expect(store.state.view).toBe("map");
  });

  it("stands in the address, with its opacity", () => {
    const { state } = new Store(page, { opacity: "rank" });
    expect(toHash(page, state)).toContain("view=picture");
    expect(toHash(page, state)).toContain("opacity=rank");
    expect(fromHash(page, toHash(page, state))).toMatchObject({ view: "picture", opacity: "rank" });
    expect(fromHash(page, "#view=other&opacity=loud")).toEqual({});
  });
});
