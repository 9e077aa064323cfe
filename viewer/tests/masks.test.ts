import { describe, expect, it } from "vitest";
import { compileMask, type MaskShape } from "../src/masks";
import { DataBlock } from "./page";

const shape: MaskShape = { heads: 3, queries: 5, keys: 7, queryOffset: 0 };

/** The mask of head 0 as a picture: rows queries, columns keys. */
function picture(node: (data: DataBlock) => unknown, offset = 0, head = 0): string[] {
  const data = new DataBlock();
  const built = node(data);
  const mask = compileMask(built, data.buffer(), { ...shape, queryOffset: offset });
  return Array.from({ length: shape.queries }, (_, i) => Array.from({ length: shape.keys }, (_, j) => (mask(head, i, j) ? "x" : ".")).join(""));
}

function bits(flags: boolean[]): Uint8Array {
  const out = new Uint8Array(Math.ceil(flags.length / 8));
  flags.forEach((flag, i) => { if (flag) out[i >> 3]! |= 1 << (i & 7); });
  return out;
}

const causal = () => ({ kind: "causal" });
const prefix = (length: number) => () => ({ kind: "prefix", length });

/** The ranges of head 0, checked against the mask itself. */
function ranges(node: (data: DataBlock) => unknown, offset = 0): [number, number][] | null {
  const data = new DataBlock();
  const built = node(data);
  const mask = compileMask(built, data.buffer(), { ...shape, queryOffset: offset });
  if (!mask.range) return null;
  return Array.from({ length: shape.queries }, (_, query) => {
    const { from, to } = mask.range!(0, query);
    const seen = Array.from({ length: shape.keys }, (_, key) => mask(0, query, key));
    expect(seen).toEqual(seen.map((_, key) => key >= from && key < to));
    expect(0 <= from && from <= to && to <= shape.keys).toBe(true);
    return [from, to];
  });
}

describe("ranges of keys", () => {
  const valid = (flags: number[]) => (data: DataBlock) => ({ kind: "padding", valid: data.add(flags, "u8", [7]) });

  it("are known where the keys that a query sees lie side by side", () => {
    expect(ranges(causal)).toEqual([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]);
    for (const offset of [-3, 4]) expect(ranges(causal, offset)).not.toBe(null);
    expect(ranges(() => ({ kind: "sliding_window", left: 1, right: null }))).toEqual([[0, 7], [0, 7], [1, 7], [2, 7], [3, 7]]);
    for (const offset of [-9, 0, 9]) expect(ranges(() => ({ kind: "sliding_window", left: 1, right: 0 }), offset)).not.toBe(null);
    expect(ranges(prefix(3))).toEqual(Array(5).fill([0, 3]));
    expect(ranges(valid([0, 1, 1, 9, 0, 0, 0]))).toEqual(Array(5).fill([1, 4]));
    expect(ranges(valid([0, 0, 0, 0, 0, 0, 0]))!.every(([from, to]) => from === to)).toBe(true);
    expect(ranges((data) => ({ kind: "and", left: causal(), right: valid([0, 0, 1, 1, 1, 1, 1])(data) }))).toEqual([[2, 2], [2, 2], [2, 3], [2, 4], [2, 5]]);
  });

  it("are not claimed of any other mask", () => {
    expect(ranges(valid([1, 0, 1, 1, 1, 1, 1]))).toBe(null);
    expect(ranges(() => ({ kind: "not", mask: causal() }))).toBe(null);
    expect(ranges(() => ({ kind: "or", left: causal(), right: prefix(2)() }))).toBe(null);
    expect(ranges((data) => ({ kind: "and", left: causal(), right: valid([1, 0, 1, 1, 1, 1, 1])(data) }))).toBe(null);
  });
});

describe("masks", () => {
  it("causal, and with a cache's offset", () => {
    expect(picture(causal)).toEqual(["x......", "xx.....", "xxx....", "xxxx...", "xxxxx.."]);
    expect(picture(causal, 2)).toEqual(["xxx....", "xxxx...", "xxxxx..", "xxxxxx.", "xxxxxxx"]);
    expect(picture(causal, -1)).toEqual([".......", "x......", "xx.....", "xxx....", "xxxx..."]);
  });

  it("sliding window, with open sides and an offset", () => {
    const window = (left: number | null, right: number | null) => () => ({ kind: "sliding_window", left, right });
    expect(picture(window(1, 2))).toEqual(["xxx....", "xxxx...", ".xxxx..", "..xxxx.", "...xxxx"]);
    expect(picture(window(null, 0))).toEqual(picture(causal));
    expect(picture(window(0, null))).toEqual(["xxxxxxx", ".xxxxxx", "..xxxxx", "...xxxx", "....xxx"]);
    expect(picture(window(1, 0), 2)).toEqual([".xx....", "..xx...", "...xx..", "....xx.", ".....xx"]);
  });

  it("padding", () => {
    expect(picture((data) => ({ kind: "padding", valid: data.add([1, 0, 1, 1, 0, 1, 0], "u8", [7]) }))).toEqual(Array(5).fill("x.xx.x."));
  });

  it("documents, by query position and not by offset", () => {
    const documents = (data: DataBlock) => ({ kind: "documents", query: data.add([0, 0, 1, 1, 2], "i32", [5]), key: data.add([0, 0, 0, 1, 1, 2, -1], "i32", [7]) });
    const expected = ["xxx....", "xxx....", "...xx..", "...xx..", ".....x."];
    expect(picture(documents)).toEqual(expected);
    expect(picture(documents, 2)).toEqual(expected);
  });

  it("prefix", () => {
    expect(picture(prefix(3))).toEqual(Array(5).fill("xxx...."));
  });

  it("and, or, not", () => {
    const join = (kind: string) => () => ({ kind, left: causal(), right: prefix(3)() });
    expect(picture(join("and"))).toEqual(["x......", "xx.....", "xxx....", "xxx....", "xxx...."]);
    expect(picture(join("or"))).toEqual(["xxx....", "xxx....", "xxx....", "xxxx...", "xxxxx.."]);
    expect(picture(() => ({ kind: "not", mask: prefix(3)() }))).toEqual(Array(5).fill("...xxxx"));
  });

  it.each([[3, 5, 7], [1, 5, 7], [3, 1, 7], [3, 5, 1], [1, 1, 7], [1, 5, 1], [1, 1, 1]])("dense bits of shape %i, %i, %i", (H, Q, K) => {
    const flags = Array.from({ length: H * Q * K }, (_, i) => (i * i + i) % 3 !== 1);
    const node = (data: DataBlock) => {
      const packed = bits(flags);
      return { kind: "dense", bits: data.add(packed, "u8", [packed.length]), shape: [H, Q, K] };
    };
    for (let head = 0; head < 3; head++) {
      const expected = Array.from({ length: 5 }, (_, i) => Array.from({ length: 7 }, (_, j) =>
        (flags[((H === 1 ? 0 : head) * Q + (Q === 1 ? 0 : i)) * K + (K === 1 ? 0 : j)] ? "x" : ".")).join(""));
      expect(picture(node, 2, head)).toEqual(expected);
    }
  });

  it.each([
    [() => ({ kind: "diagonal" }), /mask has kind "diagonal", which this page's viewer does not know/],
    [() => ({ kind: "not", mask: { kind: "?" } }), /mask\.mask has kind "\?"/],
    [(data: DataBlock) => ({ kind: "padding", valid: data.add([1, 1], "u8", [2]) }), /mask\.valid has shape \[2\], expected \[7\]/],
    [(data: DataBlock) => ({ kind: "dense", bits: data.add([255], "u8", [1]), shape: [1, 4, 7] }), /mask\.shape is \[1,4,7\], expected \[3, 5, 7\]/],
    [(data: DataBlock) => ({ kind: "dense", bits: data.add([255], "u8", [1]), shape: [1, 5, 7] }), /mask\.bits has shape \[1\], expected \[5\]/],
    [() => ({ kind: "prefix", length: "3" }), /mask\.length is "3"/],
    [() => null, /mask has kind undefined/],
  ])("refuses what it does not understand (%#)", (node, sentence) => {
    expect(() => picture(node)).toThrow(sentence);
  });
});
