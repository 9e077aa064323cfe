import { describe, expect, it } from "vitest";
import { PageError } from "../src/data";
import { parseDocument, readPage } from "../src/document";
import { fromHash, fromStart, toHash } from "../src/hash";
import { Store } from "../src/state";
import { buildPage, type Built } from "./page";

describe("document", () => {
  it("reads a page", () => {
    const { document, buffer } = buildPage({ queries: [1, 4] });
    const page = readPage(parseDocument(JSON.stringify(document)), buffer);
    const layer = page.layers[0]!;
    expect([layer.index, layer.heads, layer.queryCount, layer.keyCount, layer.qk!.q.dims]).toEqual([2, [0, 3, 7], 2, 11, 2]);
    expect([layer.overview.rows, layer.overview.columns]).toEqual([3, 4]);
  });

  it.each([
    ["{", /is not JSON/],
    ["[]", /expected an object/],
    ["{}", /This is not a multihead page: its format is null/],
    ['{"format": "bertviz", "version": 2}', /its format is "bertviz"/],
    ['{"format": "multihead-page", "version": 3}', /format version 3; its viewer reads version 2/],
    ['{"format": "multihead-page"}', /format version null/],
  ])("refuses %s", (json, sentence) => {
    expect(() => parseDocument(json)).toThrow(PageError);
    expect(() => parseDocument(json)).toThrow(sentence);
  });

  const lies: [string, (built: Built) => void, RegExp][] = [
    ["a key text that is not there", ({ layer }) => { layer["key_text"] = 2; }, /layers\[0\]\.key_text is 2, expected the index of one of 2 texts/],
    ["heads as text", ({ layer }) => { layer["heads"] = ["1"]; }, /layers\[0\]\.heads/],
    ["no heads", ({ layer }) => { layer["heads"] = []; }, /heads is empty/],
    ["one head too many", ({ layer }) => { layer["heads"] = [0, 1, 2, 3]; }, /layers\[0\]\.q has shape \[3, 3, 2, 5\], expected \[any, 4, any, 5\]/],
    ["a token too few", ({ document }) => { (document["texts"] as { tokens: string[] }[])[1]!.tokens.pop(); }, /layers\[0\]\.k has shape \[3, 3, 2, 11\], expected \[any, 3, any, 10\]/],
    ["tokens that are numbers", ({ document }) => { (document["texts"] as { tokens: unknown[] }[])[0]!.tokens[0] = 7; }, /texts\[0\]\.tokens/],
    ["a query beyond the text", ({ layer }) => { layer["queries"] = [0, 1, 2, 3, 5]; }, /queries is \[0,1,2,3,5\], expected null or positions below 5/],
    ["five byte planes", ({ layer }) => { layer["q"] = { offset: 0, dtype: "u8", shape: [5, 3, 1, 5] }; }, /q has 5 byte planes/],
    ["k of other dimensions", ({ layer }) => { layer["k"] = { offset: 0, dtype: "u8", shape: [1, 3, 1, 11] }; }, /q has 2 dimensions a head and layers\[0\]\.k has 1/],
    ["a shift too few", ({ layer }) => { layer["k_shift"] = { offset: 0, dtype: "u8", shape: [3, 10] }; }, /k_shift has shape \[3, 10\], expected \[3, 11\]/],
    ["lse beyond the data", ({ layer, buffer }) => { layer["lse"] = { offset: buffer.byteLength, dtype: "f64", shape: [3, 5] }; }, /lse ends at byte \d+, but the page's data have/],
    ["a softcap below zero", ({ layer }) => { layer["softcap"] = -1; }, /softcap is -1/],
    ["a bias of two heads", ({ layer }) => { layer["bias"] = { offset: 0, dtype: "f32", shape: [2, 5, 11] }; }, /bias has 2 heads, expected 1 or 3/],
    ["an unknown mask", ({ layer }) => { layer["mask"] = { kind: "spiral" }; }, /layers\[0\]\.mask has kind "spiral"/],
    ["no layers", ({ document }) => { document["layers"] = []; }, /holds no layer/],
    ["a layer that is null", ({ document }) => { document["layers"] = [null]; }, /layers\[0\] is null, expected an object/],
    ["no title", ({ document }) => { delete document["title"]; }, /title is nothing, expected text/],
  ];

  it.each(lies)("refuses %s", (_, lie, sentence) => {
    const built = buildPage({ biasHeads: 3 });
    expect(() => readPage(built.document, built.buffer)).not.toThrow();
    lie(built);
    expect(() => readPage(built.document, built.buffer)).toThrow(PageError);
    expect(() => readPage(built.document, built.buffer)).toThrow(sentence);
  });
});

describe("what is chosen", () => {
  const open = (layers = 1) => {
    const { document, layer, buffer } = buildPage();
    document["layers"] = Array.from({ length: layers }, (_, i) => ({ ...layer, index: i === 0 ? 2 : 5 }));
    return readPage(document, buffer);
  };

  it("starts where the document says", () => {
    const page = open();
    const { state } = new Store(page, fromStart(page, page.start));
    expect([state.layer, state.heads, state.text, state.token, state.direction]).toEqual([0, [3], 0, 1, "out"]);
  });

  it("stays inside the page, whatever is asked", () => {
    const page = open();
    const store = new Store(page, { layer: 9, heads: [99], text: 1, token: 1000 });
    expect(store.state).toMatchObject({ layer: 0, heads: [0], text: 1, token: 10, direction: "in" });
    store.update({ token: -Infinity, heads: [7, 0, 99] });
    expect(store.state).toMatchObject({ heads: [0, 7], token: 0 });
    store.update({ heads: [] });
    expect(store.state.heads).toEqual([]);
  });

  it("tells listeners only of changes, and keeps what did not change", () => {
    const store = new Store(open(), {});
    const seen: unknown[] = [];
    store.subscribe((state, before) => seen.push([state.token, state.heads === before?.heads]));
    store.update({ heads: [0] });
    store.update({ token: 3 });
    expect(seen).toEqual([[3, true]]);
  });

  it("survives the address, also where two layers share a number", () => {
    const page = open(3);
    for (const layer of [0, 1, 2]) {
      const { state } = new Store(page, { layer, heads: [3, 7], token: 4, view: "text" });
      expect(new Store(page, fromHash(page, toHash(page, state))).state).toEqual(state);
    }
    expect(toHash(page, new Store(page, { layer: 0 }).state)).toContain("layer=2&");
    expect(toHash(page, new Store(page, { layer: 2 }).state)).toContain("layer=5@2&");
    expect(fromHash(page, "#layer=77&heads=x&text=9&token=-3&view=pie")).toEqual({});
  });
});
