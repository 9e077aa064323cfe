// For each token the chosen head with the largest weight, and the same for the rows of a strip as long as the text. No DOM.

import type { Spread } from "./targets";

/** Where a row of the strip begins, in tokens. */
export const rowStart = (row: number, count: number, rows: number): number => Math.ceil((row * count) / rows);
export const rowOf = (token: number, count: number, rows: number): number => Math.floor((token * rows) / count);

/** Filled again for every token under the pointer, so that a long text makes no garbage. */
export class Shading {
  count = 0;
  rows = 0;
  /** By token: the largest weight, and whose it is, as a place among the spreads. */
  weights = new Float64Array(0);
  which = new Int16Array(0);
  /** By row of the strip: the largest weight, whose it is, and the token that has it. */
  rowWeights = new Float64Array(0);
  rowWhich = new Int16Array(0);
  rowTokens = new Int32Array(0);

  /** Reads each spread's weights once; `rows` is at most `count`. */
  compute(spreads: readonly Spread[], count: number, rows: number): void {
    this.#size(count, rows);
    spreads.forEach((one, place) => {
      if (!one.weights) return;
      if (one.positions) this.#scattered(one.weights, one.positions, place);
      else this.#whole(one.weights, place);
    });
  }

  #size(count: number, rows: number): void {
    if (count !== this.count) {
      this.weights = new Float64Array(count);
      this.which = new Int16Array(count);
    } else this.weights.fill(0);
    if (rows !== this.rows) {
      this.rowWeights = new Float64Array(rows);
      this.rowWhich = new Int16Array(rows);
      this.rowTokens = new Int32Array(rows);
    } else this.rowWeights.fill(0);
    this.count = count;
    this.rows = rows;
  }

  #whole(weights: Float64Array, place: number): void {
    const { weights: best, which, count, rows } = this;
    for (let row = 0; row < rows; row++) {
      const end = rowStart(row + 1, count, rows);
      let top = this.rowWeights[row]!;
      for (let i = rowStart(row, count, rows); i < end; i++) {
        const weight = weights[i]!;
        if (weight > best[i]!) {
          best[i] = weight;
          which[i] = place;
          if (weight > top) {
            top = weight;
            this.rowWhich[row] = place;
            this.rowTokens[row] = i;
          }
        }
      }
      this.rowWeights[row] = top;
    }
  }

  #scattered(weights: Float64Array, positions: readonly number[], place: number): void {
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i]!;
      const token = positions[i]!;
      if (weight <= this.weights[token]!) continue;
      this.weights[token] = weight;
      this.which[token] = place;
      const row = rowOf(token, this.count, this.rows);
      if (weight <= this.rowWeights[row]!) continue;
      this.rowWeights[row] = weight;
      this.rowWhich[row] = place;
      this.rowTokens[row] = token;
    }
  }
}
