// Builds small pages, and answers for them by the plain formula, written apart from the code under test.

export interface Reference { offset: number; dtype: string; shape: number[] }

export class DataBlock {
  #bytes: number[] = [];

  add(values: ArrayLike<number>, dtype: "f64" | "f32" | "i32" | "u16" | "u8", shape: number[]): Reference {
    while (this.#bytes.length % 8 !== 0) this.#bytes.push(0);
    const offset = this.#bytes.length;
    const kinds = { f64: Float64Array, f32: Float32Array, i32: Int32Array, u16: Uint16Array, u8: Uint8Array };
    for (const byte of new Uint8Array(kinds[dtype].from(values).buffer)) this.#bytes.push(byte);
    return { offset, dtype, shape };
  }

  buffer(): ArrayBuffer {
    while (this.#bytes.length % 8 !== 0) this.#bytes.push(0);
    return new Uint8Array(this.#bytes).buffer;
  }
}

/** A small deterministic generator (mulberry32): the same tests every time. */
export function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Powers of two of positions, [head][position]. */
export const someShifts = (heads: number, length: number): number[][] =>
  Array.from({ length: heads }, (_, head) => Array.from({ length }, (_, i) => (head + 3 * i) % 5));

/** Integers whose last bits are 0, as many as the shifts say. */
export const shifted = (integers: number[][][], shifts: number[][]): number[][][] =>
  integers.map((head, h) => head.map((one, i) => one.map((value) => Math.round(value / 2 ** shifts[h]![i]!) * 2 ** shifts[h]![i]! + 0)));

/** The same without those bits. */
export const unshifted = (integers: number[][][], shifts: number[][]): number[][][] =>
  integers.map((head, h) => head.map((one, i) => one.map((value) => value / 2 ** shifts[h]![i]!)));

/** integers[head][position][dim] as [bytes, heads, dims, length] zigzag planes. */
export function toPlanes(integers: number[][][], bytes: number): { values: Uint8Array; shape: number[] } {
  const [H, L, D] = [integers.length, integers[0]!.length, integers[0]![0]?.length ?? 0];
  const values = new Uint8Array(H * D * bytes * L);
  for (let h = 0; h < H; h++) for (let d = 0; d < D; d++) for (let b = 0; b < bytes; b++) for (let i = 0; i < L; i++) {
    const value = integers[h]![i]![d]!;
    const coded = value >= 0 ? 2 * value : -2 * value - 1;
    values[((b * H + h) * D + d) * L + i] = Math.floor(coded / 256 ** b) % 256;
  }
  return { values, shape: [bytes, H, D, L] };
}

export interface Recipe {
  heads?: number[];
  lengths?: [number, number];
  dims?: number;
  queries?: number[] | null;
  query_offset?: number;
  softcap?: number | null;
  biasHeads?: number | null;
  /** A recorded row whose bias is -inf everywhere. */
  blindRow?: number;
  mask?: (data: DataBlock) => unknown;
  visible?: (head: number, query: number, key: number) => boolean;
  sinks?: number[] | null;
  /** Tokens a side of the blocks that the page brings along. */
  blocks?: number;
  seed?: number;
}

export interface Built {
  document: Record<string, unknown>;
  layer: Record<string, unknown>;
  buffer: ArrayBuffer;
  /** expected[head][row][key], by the plain formula. */
  expected: number[][][];
  expectedSink: number[][];
}

function blocksOf(weights: number[][][], side: number, Lq: number, Lk: number, data: DataBlock): unknown {
  const [rows, columns] = [Math.ceil(Lq / side), Math.ceil(Lk / side)];
  const kinds = { mean: [] as number[], max: [] as number[] };
  for (const head of weights) for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const lines = head.slice(row * side, (row + 1) * side).map((line) => line.slice(column * side, (column + 1) * side));
    const all = lines.flat();
    kinds.mean.push(all.reduce((sum, weight) => sum + weight, 0) / lines.length);
    kinds.max.push(Math.max(...all));
  }
  const add = (values: number[]) => data.add(values.map((value) => Math.round(255 * Math.sqrt(value))), "u8", [weights.length, rows, columns]);
  return { side, mean: add(kinds.mean), max: add(kinds.max) };
}

export function buildPage(recipe: Recipe = {}): Built {
  const { heads = [0, 3, 7], lengths = [5, 11], dims = 2, queries = null, query_offset = 0, softcap = null, biasHeads = null, sinks = null, seed = 1 } = recipe;
  const visible = recipe.visible ?? (() => true);
  const next = random(seed);
  const [whole, Lk] = lengths;
  const Lq = queries?.length ?? whole;
  const H = heads.length;
  const integers = (length: number) => heads.map(() => Array.from({ length }, () => Array.from({ length: dims }, () => Math.round((next() - 0.5) * 400000))));
  const [queryShifts, keyShifts] = [someShifts(H, Lq), someShifts(H, Lk)];
  const a = shifted(integers(Lq), queryShifts);
  const b = shifted(integers(Lk), keyShifts);
  const steps = heads.map(() => Array.from({ length: dims }, () => (0.5 + next()) * 1e-10));
  const biasValues = biasHeads === null ? null : Array.from({ length: biasHeads * Lq * Lk }, () => Math.fround(next() * 2 - 1));
  if (biasValues && recipe.blindRow !== undefined) {
    for (let i = 0; i < biasValues.length; i++) if (Math.floor(i / Lk) % Lq === recipe.blindRow) biasValues[i] = -Infinity;
  }
  const lse: number[] = [];
  const expectedSink: number[][] = [];
  const expected = heads.map((_, h) => Array.from({ length: Lq }, (_, row) => {
    const query = queries ? queries[row]! : row;
    const scores = Array.from({ length: Lk }, (_, key) => {
      let score = 0;
      for (let d = 0; d < dims; d++) score += steps[h]![d]! * a[h]![row]![d]! * b[h]![key]![d]!;
      if (softcap !== null) score = softcap * Math.tanh(score / softcap);
      if (biasValues) score += biasValues[((biasHeads === 1 ? 0 : h) * Lq + row) * Lk + key]!;
      return visible(h, query, key) ? score : -Infinity;
    });
    const sink = sinks ? Math.exp(sinks[h]!) : 0;
    const total = scores.reduce((sum, score) => sum + Math.exp(score), sink);
    lse.push(Math.log(total));
    (expectedSink[h] ??= []).push(sink / total);
    return scores.map((score) => (total === 0 ? 0 : Math.exp(score) / total));
  }));
  const data = new DataBlock();
  const q = toPlanes(unshifted(a, queryShifts), 3);
  const k = toPlanes(unshifted(b, keyShifts), 3);
  const layer: Record<string, unknown> = {
    index: 2, name: "decoder.2.cross", heads, query_text: 0, key_text: 1, queries, query_offset,
    q: data.add(q.values, "u8", q.shape), k: data.add(k.values, "u8", k.shape),
    q_shift: data.add(queryShifts.flat(), "u8", [H, Lq]), k_shift: data.add(keyShifts.flat(), "u8", [H, Lk]),
    steps: data.add(steps.flat(), "f64", [H, dims]), lse: data.add(lse, "f64", [H, Lq]), softcap,
    bias: biasValues && data.add(biasValues, "f32", [biasHeads!, Lq, Lk]), mask: recipe.mask ? recipe.mask(data) : null,
    sink: sinks && data.add(expectedSink.flat(), "f32", [H, Lq]), entropy: null,
    overview: data.add(new Uint8Array(H * 3 * 4), "u8", [H, 3, 4]), overview_peak: data.add(new Float32Array(H), "f32", [H]),
    blocks: recipe.blocks === undefined ? null : blocksOf(expected, recipe.blocks, Lq, Lk, data),
  };
  const words = (name: string, length: number) => ({ name, tokens: Array.from({ length }, (_, i) => `${name}${i}`) });
  const document = {
    format: "multihead-page", version: 2, title: "test", provenance: { model: "none" }, accuracy: 1e-6,
    texts: [words("target", whole), words("source", Lk)], start: { layer: 2, heads: [3], text: 0, token: 1 }, layers: [layer],
  };
  return { document, layer, buffer: data.buffer(), expected, expectedSink };
}
