// The weights that the page draws, computed when they are asked for: one row or one column at a time.

import { decodeHead, decodeOne } from "./codec";
import type { Layer } from "./document";

export class LayerWeights {
  readonly #keys: (Int32Array | undefined)[] = [];
  readonly #queries: (Int32Array | undefined)[] = [];
  readonly #rowOf: Map<number, number> | null;

  constructor(readonly layer: Layer) {
    this.#rowOf = layer.queries && new Map(layer.queries.map((position, row) => [position, row]));
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
    const keys = (this.#keys[head] ??= decodeHead(layer.k, head));
    const scores = this.#sweep(head, decodeOne(layer.q, head, row), keys, layer.keyCount);
    const query = this.queryPosition(row);
    for (let key = 0; key < scores.length; key++) scores[key] = this.#weight(head, row, query, key, scores[key]!);
    return scores;
  }

  /** Weights that every recorded query gives to one key, in the order of the recorded rows. */
  column(head: number, key: number): Float64Array {
    const { layer } = this;
    const queries = (this.#queries[head] ??= decodeHead(layer.q, head));
    const scores = this.#sweep(head, decodeOne(layer.k, head, key), queries, layer.queryCount);
    for (let row = 0; row < scores.length; row++) {
      scores[row] = this.#weight(head, row, this.queryPosition(row), key, scores[row]!);
    }
    return scores;
  }

  /** True for a query that sees no key at all. */
  blind(head: number, row: number): boolean {
    return this.layer.lse[head * this.layer.queryCount + row] === -Infinity;
  }

  sink(head: number, row: number): number {
    return this.layer.sink?.[head * this.layer.queryCount + row] ?? 0;
  }

  entropy(head: number, row: number): number | null {
    return this.layer.entropy?.[head * this.layer.queryCount + row] ?? null;
  }

  #sweep(head: number, one: Int32Array, many: Int32Array, count: number): Float64Array {
    const dims = one.length;
    const out = new Float64Array(count);
    for (let dim = 0; dim < dims; dim++) {
      const factor = this.layer.steps[head * dims + dim]! * one[dim]!;
      const from = dim * count;
      for (let i = 0; i < count; i++) out[i]! += factor * many[from + i]!;
    }
    return out;
  }

  #weight(head: number, row: number, query: number, key: number, dot: number): number {
    const { layer } = this;
    const lse = layer.lse[head * layer.queryCount + row]!;
    if (lse === -Infinity || (layer.mask && !layer.mask(head, query, key))) return 0;
    let score = layer.softcap === null ? dot : layer.softcap * Math.tanh(dot / layer.softcap);
    if (layer.bias) {
      const biasHead = layer.bias.heads === 1 ? 0 : head;
      score += layer.bias.values[(biasHead * layer.queryCount + row) * layer.keyCount + key]!;
    }
    return Math.exp(score - lse);
  }
}
