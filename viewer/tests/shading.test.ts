import { describe, expect, it } from "vitest";
import { blockEnds } from "../src/flow";
import { Shading } from "../src/shading";
import { TextReader } from "../src/spelling";
import { strongestNear } from "../src/whereabouts";
import type { Spread } from "../src/targets";
import { random } from "./page";

const spreadOf = (weights: Float64Array | null, positions: number[] | null = null): Spread =>
  ({ head: 0, place: 0, pending: weights === null, weights, positions, blind: false, sink: null, entropy: null });

/** By the plain rule: for each token and each row of the strip, the largest of all heads, ties to the first. */
function plainly(spreads: readonly Spread[], count: number, rows: number) {
  const tokens = Array.from({ length: count }, (_, token) => {
    let best = { weight: 0, which: -1 };
    spreads.forEach(({ weights, positions }, which) => {
      const i = positions ? positions.indexOf(token) : token;
      const weight = weights && i >= 0 ? weights[i]! : 0;
      if (weight > best.weight) best = { weight, which };
    });
    return best;
  });
  const strip = Array.from({ length: rows }, (_, row) => {
    const those = tokens.map((one, token) => ({ ...one, token })).filter(({ token }) => Math.floor((token * rows) / count) === row);
    return those.reduce((a, b) => (b.weight > a.weight ? b : a));
  });
  return { tokens, strip };
}

describe("shading", () => {
  it.each([[13, 13], [13, 5], [101, 7], [7, 1], [1, 1], [257, 64]])("%i tokens in %i rows: the largest weight, and whose", (count, rows) => {
    const next = random(count * 31 + rows);
    const draw = (length: number) => Float64Array.from({ length }, () => Math.round(next() * 50) / 50);
    const some = Array.from({ length: count }, (_, i) => i).filter((i) => i % 3 !== 1).reverse();
    const shading = new Shading();
    for (const spreads of [[spreadOf(draw(count))], [spreadOf(draw(count)), spreadOf(null), spreadOf(draw(count))], [spreadOf(draw(some.length), some), spreadOf(draw(count))], []]) {
      shading.compute(spreads, count, rows);
      const { tokens, strip } = plainly(spreads, count, rows);
      expect([...shading.weights]).toEqual(tokens.map(({ weight }) => weight));
      tokens.forEach(({ weight, which }, i) => { if (weight > 0) expect(shading.which[i]).toBe(which); });
      expect([...shading.rowWeights]).toEqual(strip.map(({ weight }) => weight));
      strip.forEach(({ weight }, row) => {
        if (weight === 0) return;
        const token = shading.rowTokens[row]!;
        expect(Math.floor((token * rows) / count)).toBe(row);
        expect([shading.weights[token], shading.which[token]]).toEqual([weight, shading.rowWhich[row]]);
      });
    }
  });

  it("a click on the strip means the strongest token near it", () => {
    const shading = new Shading();
    const weights = new Float64Array(1000);
    weights[503] = 0.5;
    weights[530] = 0.7;
    shading.compute([spreadOf(weights)], 1000, 100);
    expect(strongestNear(shading, 0.505, 0.02)).toBe(503);
    expect(strongestNear(shading, 0.505, 0.03)).toBe(530);
    expect(strongestNear(shading, 0.2, 0.02)).toBe(200);
    expect(strongestNear(shading, 1, 0)).toBe(990);
  });

  it("looks at 131,072 tokens within a frame, for each of several heads", () => {
    const count = 131_072;
    const next = random(5);
    const spreads = Array.from({ length: 4 }, () => spreadOf(Float64Array.from({ length: count }, next)));
    const shading = new Shading();
    const times = Array.from({ length: 9 }, () => {
      const before = performance.now();
      shading.compute(spreads, count, 600);
      return performance.now() - before;
    });
    expect(Math.min(...times)).toBeLessThan(16);
  });
});

describe("blocks of running text", () => {
  it("end after a line feed, else after a sentence, else before a word, and hold 300 to 500 tokens", () => {
    const words = (length: number) => Array.from({ length }, (_, i) => (i % 2 === 0 ? "Ġword" : "s"));
    const ends = (change: (tokens: string[]) => void) => {
      const tokens = words(1500);
      change(tokens);
      return blockEnds(new TextReader(tokens));
    };
    expect(ends(() => {})).toEqual([400, 800, 1200, 1500]);
    expect(ends((tokens) => { tokens[340] = "."; })).toEqual([341, 742, 1142, 1500]);
    expect(ends((tokens) => { tokens[340] = "."; tokens[460] = "Ċ"; })[0]).toBe(461);
    expect(ends((tokens) => { tokens[290] = "Ċ"; tokens[510] = "Ċ"; })[0]).toBe(400);
    for (const length of [0, 1, 499, 500, 501, 799, 1001]) {
      const found = blockEnds(new TextReader(words(length)));
      expect(found.at(-1) ?? 0).toBe(length);
      found.forEach((end, i) => expect(end - (found[i - 1] ?? 0)).toBeLessThanOrEqual(500));
    }
    expect(blockEnds(new TextReader(Array.from({ length: 1201 }, (_, i) => (i === 0 ? "Ġa" : "b")))).length).toBe(3);
  });
});
