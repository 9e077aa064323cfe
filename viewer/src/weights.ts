// The weights that the page draws, computed when they are asked for or read where they were given: one row or one
// column at a time.

import { decodeHead, decodeOne } from "./codec";
import { PageError } from "./data";
import type { Factors, Layer } from "./document";

/** A given weight of 1 as an integer. */
const ONE = 65535;

export class LayerWeights {
  readonly #keys: (Int32Array | undefined)[] = [];
  readonly #queries: (Int32Array | undefined)[] = [];
  readonly #rowOf: Map<number, number> | null;

  constructor(readonly layer: Layer) {
    this.#rowOf = layer.queries && new Map(layer.queries.map((position, row) => [position, row]));
  }

  get #factors(): Factors {
    const { qk, index } = this.layer;
    if (!qk) throw new PageError(`Layer ${index} holds no queries and keys to compute weights from.`);
    return qk;
  }

  /** The recorded row of a query position, or null where the query was not recorded. */
  recordedRow(query: number): number | null {
    if (this.#rowOf) return this.#rowOf.get(query) ?? null;
    return query >= 0 && query < this.layer.queryCount ? query : null;
  }

  queryPosition(row: number): number {
    return this.layer.queries ? this.layer.queries[row]! : row;
  }

  /** Weights of one recorded row over all keys; `head` is the head's place in the layer's list. */
  row(head: number, row: number): Float64Array {
    const { layer } = this;
    if (layer.weights) return this.#given(layer.weights, head, row, 0, layer.keyCount);
    const keys = (this.#keys[head] ??= decodeHead(this.#factors.k, head));
    const scores = this.#sweep(head, decodeOne(this.#factors.q, head, row), keys, layer.keyCount);
    const query = this.queryPosition(row);
    for (let key = 0; key < scores.length; key++) scores[key] = this.ofProduct(head, row, query, key, scores[key]!);
    return scores;
  }

  /** Weights of one recorded row over the keys `from` to `to`, the last not included. */
  part(head: number, row: number, from: number, to: number): Float64Array {
    if (this.layer.weights) return this.#given(this.layer.weights, head, row, from, to);
    const keys = (this.#keys[head] ??= decodeHead(this.#factors.k, head));
    const scores = this.#sweep(head, decodeOne(this.#factors.q, head, row), keys, this.layer.keyCount, from, to);
    const query = this.queryPosition(row);
    for (let key = from; key < to; key++) scores[key - from] = this.ofProduct(head, row, query, key, scores[key - from]!);
    return scores;
  }

  /** Weights that every recorded query gives to one key, in the order of the recorded rows. */
  column(head: number, key: number): Float64Array {
    const { layer } = this;
    const { weights } = layer;
    if (weights) {
      const out = new Float64Array(layer.queryCount);
      for (let row = 0; row < out.length; row++) out[row] = weights[(head * layer.queryCount + row) * layer.keyCount + key]! / ONE;
      return out;
    }
    const queries = (this.#queries[head] ??= decodeHead(this.#factors.q, head));
    const scores = this.#sweep(head, decodeOne(this.#factors.k, head, key), queries, layer.queryCount);
    for (let row = 0; row < scores.length; row++) {
      scores[row] = this.ofProduct(head, row, this.queryPosition(row), key, scores[row]!);
    }
    return scores;
  }

  /** Log-sum-exp of a recorded row's scores; -Infinity where it sees nothing. */
  lse(head: number, row: number): number {
    return this.#factors.lse[head * this.layer.queryCount + row]!;
  }

  /** The weight that a recorded row gives to a key, from their inner product; `query` is the row's position in the text. */
  ofProduct(head: number, row: number, query: number, key: number, dot: number): number {
    const { layer } = this;
    const lse = this.lse(head, row);
    if (lse === -Infinity || (layer.mask && !layer.mask(head, query, key))) return 0;
    let score = layer.softcap === null ? dot : layer.softcap * Math.tanh(dot / layer.softcap);
    if (layer.bias) {
      const biasHead = layer.bias.heads === 1 ? 0 : head;
      score += layer.bias.values[(biasHead * layer.queryCount + row) * layer.keyCount + key]!;
    }
    return Math.exp(score - lse);
  }

  /** True for a query that sees no key at all, or whose given weights are all 0. */
  blind(head: number, row: number): boolean {
    if (this.layer.weights) return this.row(head, row).every((weight) => weight === 0);
    return this.lse(head, row) === -Infinity;
  }

  sink(head: number, row: number): number {
    return this.layer.sink?.[head * this.layer.queryCount + row] ?? 0;
  }

  /** Of a row's `weights` and its sink, in nats; null where weights were given without it. */
  entropy(head: number, row: number, weights: Float64Array): number | null {
    const { layer } = this;
    if (!layer.qk) return layer.entropy?.[head * layer.queryCount + row] ?? null;
    const nats = (weight: number): number => (weight > 0 ? -weight * Math.log(weight) : 0);
    return weights.reduce((sum, weight) => sum + nats(weight), nats(this.sink(head, row)));
  }

  #given(weights: Uint16Array, head: number, row: number, from: number, to: number): Float64Array {
    const first = (head * this.layer.queryCount + row) * this.layer.keyCount + from;
    const out = new Float64Array(to - from);
    for (let i = 0; i < out.length; i++) out[i] = weights[first + i]! / ONE;
    return out;
  }

  #sweep(head: number, one: Int32Array, many: Int32Array, count: number, begin = 0, end = count): Float64Array {
    const dims = one.length;
    const { steps } = this.#factors;
    const out = new Float64Array(end - begin);
    for (let dim = 0; dim < dims; dim++) {
      const factor = steps[head * dims + dim]! * one[dim]!;
      const from = dim * count + begin;
      for (let i = 0; i < out.length; i++) out[i]! += factor * many[from + i]!;
    }
    return out;
  }
}
