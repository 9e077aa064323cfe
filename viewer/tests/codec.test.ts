import { deflateSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { decodeHead, decodeOne, zigzag } from "../src/codec";
import { arrayAt, inflate, PageError } from "../src/data";
import { random, toPlanes } from "./page";

describe("codec", () => {
  it("reads zigzag as 0, -1, 1, -2, 2", () => {
    expect([0, 1, 2, 3, 4].map(zigzag)).toEqual([0, -1, 1, -2, 2]);
  });

  it.each([1, 2, 3, 4])("reads integers of %i bytes, whole and one by one", (bytes) => {
    const next = random(bytes);
    const half = 256 ** bytes / 2;
    const integers = Array.from({ length: 3 }, () => Array.from({ length: 7 }, () => Array.from({ length: 5 }, () => Math.floor((next() * 2 - 1) * half))));
    integers[1]![2]![3] = -half;
    integers[1]![2]![4] = half - 1;
    const { values } = toPlanes(integers, bytes);
    const planes = { data: values, heads: 3, dims: 5, bytes, length: 7 };
    for (let head = 0; head < 3; head++) {
      const decoded = decodeHead(planes, head);
      for (let i = 0; i < 7; i++) {
        expect([...decodeOne(planes, head, i)]).toEqual(integers[head]![i]);
        expect(Array.from({ length: 5 }, (_, dim) => decoded[dim * 7 + i])).toEqual(integers[head]![i]);
      }
    }
  });

  it("unpacks base64 of zlib", async () => {
    const bytes = Uint8Array.from({ length: 997 }, (_, i) => (i * 7) % 251);
    const packed = deflateSync(bytes).toString("base64");
    expect(new Uint8Array(await inflate(` ${packed}\n`))).toEqual(bytes);
  });

  it("says in a sentence that data are cut or no base64", async () => {
    const packed = deflateSync(new Uint8Array(997).map((_, i) => (i * i) % 251)).toString("base64");
    await expect(inflate(packed.slice(0, 200))).rejects.toThrow(/cannot be unpacked: the file seems to have been cut/);
    await expect(inflate("<b>no</b>")).rejects.toThrow(/are not base64/);
  });
});

describe("references", () => {
  const buffer = new ArrayBuffer(64);
  const read = (reference: unknown) => arrayAt(buffer, reference, "lse", "f64", [2, null]);

  it("reads the array that is named", () => {
    new Float64Array(buffer).set([0, 1, 2, 3, 4, 5, 6, 7]);
    expect([...read({ offset: 16, dtype: "f64", shape: [2, 3] }).values]).toEqual([2, 3, 4, 5, 6, 7]);
  });

  it.each([
    [{ offset: 24, dtype: "f64", shape: [2, 3] }, /lse ends at byte 72, but the page's data have 64 bytes/],
    [{ offset: 1e15, dtype: "f64", shape: [2, 3] }, /ends at byte/],
    [{ offset: 4, dtype: "f64", shape: [2, 3] }, /multiple of 8/],
    [{ offset: -8, dtype: "f64", shape: [2, 3] }, /multiple of 8/],
    [{ offset: 0, dtype: "f32", shape: [2, 3] }, /lse has dtype f32, expected f64/],
    [{ offset: 0, dtype: "f64", shape: [3, 2] }, /lse has shape \[3, 2\], expected \[2, any\]/],
    [{ offset: 0, dtype: "f64", shape: [2, -3] }, /not a reference/],
    [{ offset: 0, dtype: "f64", shape: [2, 1.5] }, /not a reference/],
    [null, /not a reference/],
  ])("refuses %j", (reference, sentence) => {
    expect(() => read(reference)).toThrow(PageError);
    expect(() => read(reference)).toThrow(sentence);
  });
});
