// The arithmetic of a map's tiles: inner products of one head's queries and keys, and the weights they give, summed.
// In WebAssembly where it may run, at single precision; else in JavaScript.

import { decodeHead, type Planes } from "../codec";
import type { Factors } from "../document";
import type { Pooling } from "./grid";

/** Queries whose products are computed together. */
export const ROWS = 4;

/** One head's numbers, unpacked. */
export interface Products {
  /** Products of ROWS queries with keys, a row after the other, `stride` numbers apart, times `unit`. */
  readonly scores: Float32Array | Float64Array;
  readonly stride: number;
  readonly unit: number;
  /** Of each key of the tile that is made; whoever reads them clears them. */
  readonly sums: Float32Array | Float64Array;
  /** The products of the queries from `query`, a multiple of ROWS, with the keys from `from` to `to`; the key `left` comes first in a row. */
  multiply(query: number, from: number, to: number, left: number): void;
  /** Takes exp(product - lse) of the numbers `from` to `to` of one row into the sums: added, or the larger of both. */
  fold(row: number, from: number, to: number, lse: number, pooling: Pooling): void;
}

export interface Arithmetic {
  readonly name: "simd" | "plain";
  /** `head` is the head's place in the layer's list; a tile has at most `widest` keys, from a multiple of 8 on. */
  open(factors: Factors, head: number, widest: number): Products;
}

/** Keys side by side in JavaScript: as many sums, with ROWS queries, as a processor has registers for. */
const PAIR = 2;
/** Keys side by side in products.wat. */
const EIGHT = 8;
/** exp(-25) is 1e-11: a cell of a million such weights is still nothing to be seen. */
const NOTHING = -25;
const PAGE = 65536;

const upTo = (count: number, multiple: number): number => Math.ceil(count / multiple) * multiple;

export const plain: Arithmetic = {
  name: "plain",
  open: (factors, head, widest) => new PlainProducts(factors, head, upTo(widest, PAIR)),
};

class PlainProducts implements Products {
  readonly unit = 1;
  readonly scores: Float64Array;
  readonly sums: Float64Array;
  readonly #dims: number;
  readonly #queries: Float64Array;
  readonly #keys: Float64Array;

  constructor(factors: Factors, head: number, readonly stride: number) {
    this.#dims = factors.q.dims;
    this.scores = new Float64Array(ROWS * stride);
    this.sums = new Float64Array(stride);
    this.#queries = new Float64Array(upTo(factors.q.length, ROWS) * this.#dims);
    this.#keys = new Float64Array(upTo(factors.k.length, PAIR) * this.#dims);
    unpack(factors.q, head, ROWS, (dim) => stepOf(factors, head, dim), this.#queries);
    unpack(factors.k, head, PAIR, () => 1, this.#keys);
  }

  multiply(query: number, from: number, to: number, left: number): void {
    const { scores, stride } = this;
    const dims = this.#dims;
    const queries = this.#queries;
    const keys = this.#keys;
    for (let key = from - (from % PAIR); key < to; key += PAIR) {
      let a = query * dims;
      let b = key * dims;
      let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
      for (let dim = 0; dim < dims; dim++, a += ROWS, b += PAIR) {
        const k0 = keys[b]!;
        const k1 = keys[b + 1]!;
        const q0 = queries[a]!;
        s00 += q0 * k0; s01 += q0 * k1;
        const q1 = queries[a + 1]!;
        s10 += q1 * k0; s11 += q1 * k1;
        const q2 = queries[a + 2]!;
        s20 += q2 * k0; s21 += q2 * k1;
        const q3 = queries[a + 3]!;
        s30 += q3 * k0; s31 += q3 * k1;
      }
      const at = key - left;
      scores[at] = s00; scores[at + 1] = s01;
      scores[stride + at] = s10; scores[stride + at + 1] = s11;
      scores[2 * stride + at] = s20; scores[2 * stride + at + 1] = s21;
      scores[3 * stride + at] = s30; scores[3 * stride + at + 1] = s31;
    }
  }

  fold(row: number, from: number, to: number, lse: number, pooling: Pooling): void {
    const { scores, sums } = this;
    const first = row * this.stride;
    for (let i = from; i < to; i++) {
      const score = scores[first + i]! - lse;
      if (!(score > NOTHING)) continue;
      const weight = Math.exp(score);
      sums[i] = pooling === "mean" ? sums[i]! + weight : Math.max(sums[i]!, weight);
    }
  }
}

interface Exports {
  multiply(queries: number, keys: number, dims: number, groups: number, out: number, stride: number): void;
  fold(scores: number, sums: number, count: number, total: number, largest: number): void;
}

/** The module of products.wat as arithmetic, or null where WebAssembly, its vectors, or running it here is not to be had. */
export function simd(bytes: Uint8Array<ArrayBuffer>): Arithmetic | null {
  let module: WebAssembly.Module;
  try {
    module = new WebAssembly.Module(bytes);
  } catch {
    return null;
  }
  return { name: "simd", open: (factors, head, widest) => new SimdProducts(module, factors, head, upTo(widest, EIGHT)) };
}

class SimdProducts implements Products {
  readonly unit = Math.LN2;
  readonly scores: Float32Array;
  readonly sums: Float32Array;
  readonly #dims: number;
  readonly #queries: Float32Array;
  readonly #keys: Float32Array;
  readonly #exports: Exports;

  constructor(module: WebAssembly.Module, factors: Factors, head: number, readonly stride: number) {
    const { q, k } = factors;
    this.#dims = q.dims;
    const lengths = [ROWS * stride, stride, upTo(q.length, ROWS) * q.dims, upTo(k.length, EIGHT) * q.dims];
    const memory = new WebAssembly.Memory({ initial: Math.ceil(lengths.reduce((sum, length) => sum + 4 * length, 0) / PAGE) + 1 });
    let offset = 0;
    const views = lengths.map((length) => {
      const view = new Float32Array(memory.buffer, offset, length);
      offset += view.byteLength;
      return view;
    });
    [this.scores, this.sums, this.#queries, this.#keys] = views as [Float32Array, Float32Array, Float32Array, Float32Array];
    unpack(q, head, ROWS, (dim) => stepOf(factors, head, dim) / Math.LN2, this.#queries);
    unpack(k, head, EIGHT, () => 1, this.#keys);
    this.#exports = new WebAssembly.Instance(module, { page: { memory } }).exports as unknown as Exports;
  }

  multiply(query: number, from: number, to: number, left: number): void {
    const first = from - (from % EIGHT);
    const dims = this.#dims;
    this.#exports.multiply(
      this.#queries.byteOffset + 4 * query * dims, this.#keys.byteOffset + 4 * first * dims, dims,
      Math.ceil((to - first) / EIGHT), this.scores.byteOffset + 4 * (first - left), 4 * this.stride,
    );
  }

  fold(row: number, from: number, to: number, lse: number, pooling: Pooling): void {
    const first = from - (from % 4);
    const last = upTo(to, 4);
    const start = row * this.stride;
    // What shares a vector with the keys asked for weighs nothing.
    for (let i = first; i < from; i++) this.scores[start + i] = -Infinity;
    for (let i = to; i < last; i++) this.scores[start + i] = -Infinity;
    this.#exports.fold(this.scores.byteOffset + 4 * (start + first), this.sums.byteOffset + 4 * first, last - first, lse / Math.LN2, pooling === "max" ? 1 : 0);
  }
}

const stepOf = ({ q, steps }: Factors, head: number, dim: number): number => steps[head * q.dims + dim]!;

/** Numbers as [length / together, dims, together]; what the last ones lack stays 0. */
function unpack(planes: Planes, head: number, together: number, factor: (dim: number) => number, out: Float32Array | Float64Array): void {
  const { dims, length } = planes;
  const numbers = decodeHead(planes, head);
  for (let dim = 0; dim < dims; dim++) {
    const step = factor(dim);
    for (let i = 0; i < length; i++) {
      const group = Math.floor(i / together);
      out[(group * dims + dim) * together + (i - group * together)] = numbers[dim * length + i]! * step;
    }
  }
}
