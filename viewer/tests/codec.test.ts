import { deflateSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { decodeHead, decodeOne, zigzag } from "../src/codec";
import { arrayAt, inflate, PageError } from "../src/data";
import { random, shifted, someShifts, toPlanes, unshifted } from "./page";

/** Bytes as the contract says it, a bit at a time. */
function sevens(bytes: Uint8Array): string {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  const codes = (bits.match(/.{1,7}/g) ?? []).map((group) => parseInt(group.padEnd(7, "0"), 2));
  return codes.map((code) => String.fromCharCode([0, 13, 60].includes(code) ? code + 256 : code)).join("");
}

describe("codec", () => {
  it("reads zigzag as 0, -1, 1, -2, 2", () => {
    expect([0, 1, 2, 3, 4].map(zigzag)).toEqual([0, -1, 1, -2, 2]);
  });

  it.each([1, 2, 3, 4])("reads integers of %i bytes, whole and one by one", (bytes) => {
    const next = random(bytes);
    const half = 256 ** bytes / 2;
    let integers = Array.from({ length: 3 }, () => Array.from({ length: 7 }, () => Array.from({ length: 5 }, () => Math.floor((next() * 2 - 1) * half))));
    integers[1]![2]![3] = -half;
    integers[1]![2]![4] = half - 1;
    const shifts = bytes < 4 ? someShifts(3, 7) : Array.from({ length: 3 }, () => Array<number>(7).fill(0));
    integers = shifted(integers, shifts);
    const { values } = toPlanes(unshifted(integers, shifts), bytes);
    const planes = { data: values, shifts: Uint8Array.from(shifts.flat()), heads: 3, dims: 5, bytes, length: 7 };
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
    expect(new Uint8Array(await inflate(` ${packed}\n`, "base64"))).toEqual(bytes);
  });

  it.each([0, 1, 2, 3, 4, 5, 6, 7, 8, 997])("unpacks seven bits a character: %i bytes", async (length) => {
    const bytes = Uint8Array.from({ length }, (_, i) => (i * i * 7) % 251);
    const packed = sevens(deflateSync(bytes, { level: 0 }));
    expect(packed).not.toMatch(/[\0\r<]/);
    expect(new Uint8Array(await inflate(packed, "sevens"))).toEqual(bytes);
  });

  it("says in a sentence that data are cut or no base64", async () => {
    const packed = deflateSync(new Uint8Array(997).map((_, i) => (i * i) % 251)).toString("base64");
    await expect(inflate(packed.slice(0, 200), "base64")).rejects.toThrow(/cannot be unpacked: the file seems to have been cut/);
    await expect(inflate("<b>no</b>", "base64")).rejects.toThrow(/are not base64/);
    await expect(inflate("\u0141\u1234", "sevens")).rejects.toThrow(/hold characters that do not belong there/);
    await expect(inflate(packed, "sevens")).rejects.toThrow(/cannot be unpacked/);
    await expect(inflate(packed, "")).rejects.toThrow(/are coded as "", which its viewer does not know/);
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
