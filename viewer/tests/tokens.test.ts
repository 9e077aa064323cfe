import { describe, expect, it } from "vitest";
import { readPage } from "../src/document";
import { largest } from "../src/panel";
import { findTokens } from "../src/search";
import { Store } from "../src/state";
import { accuracy } from "../src/surround";
import { findPartners, spread, type Partner } from "../src/targets";
import { display, formatWeight, isSpecial, plain, shorten } from "../src/tokens";
import { buildPage } from "./page";

describe("tokens", () => {
  it.each([
    ["making", "making"], ["##ing", "##ing"], [" cat", "␣cat"], ["cat ", "cat␣"], [" ", "␣"], ["   ", "␣␣␣"], ["New York", "New York"],
    ["\n", "↵"], ["a\r\nb", "a␍↵b"], ["\t", "⇥"], ["\0", "␀"], ["\x1b[31m", "␛[31m"], ["\x7f", "␡"], ["\u0085", "‹0085›"], ["", "∅"],
    ["\u200b", "‹200B›"], ["a\u200bb", "a‹200B›b"], ["\u202egnp.exe", "‹202E›gnp.exe"], ["\u2066x\u2069", "‹2066›x‹2069›"], ["\u2028", "‹2028›"],
    ["\u00a0", "⍽"], ["\ufeff", "‹BOM›"], ["\u00ad", "‹SHY›"], ["\u3000", "‹3000›"], ["\u{e0041}", "‹E0041›"], ["\ud800", "‹D800›"],
    ["שלום", "שלום"], ["👩‍🚀", "👩‍🚀"], ["❤️‍🔥", "❤️‍🔥"], ["a\u200d", "a‹200D›"], ["🇫🇷", "🇫🇷"], ["e\u0301", "e\u0301"], ["<script>", "<script>"],
  ])("%j is shown as %s", (token, shown) => {
    expect(plain(token)).toBe(shown);
  });

  it("marks what stands in for something else", () => {
    expect(display(" cat\n")).toEqual([{ text: "␣", mark: true }, { text: "cat", mark: false }, { text: "↵", mark: true }]);
    expect(display("Ġthe")[0]).toEqual({ text: "Ġ", mark: true });
    expect(display("Ġ")).toEqual([{ text: "Ġ", mark: false }]);
  });

  it("shortens a long token with an ellipsis, by characters and not by code units", () => {
    const cut = (token: string, longest: number) => shorten(display(token), longest).map((piece) => piece.text).join("");
    expect([cut("making", 6), cut("making", 5), cut(" making", 4), cut("😀😀😀", 2)]).toEqual(["making", "maki…", "␣ma…", "😀…"]);
  });

  it("knows special tokens by their spelling", () => {
    expect(["[CLS]", "[SEP]", "<s>", "</s>", "<|endoftext|>", "<pad>"].every(isSpecial)).toBe(true);
    expect(["[", "cls", "[cls", "<", "a<b>", "."].some(isSpecial)).toBe(false);
  });

  it("writes weights", () => {
    expect([0, 0.0004, 0.0005, 0.46449, 1].map((weight) => formatWeight(weight))).toEqual(["0.000", "<0.001", "0.001", "0.464", "1.000"]);
    expect(formatWeight(0.46449, 2)).toBe("0.46");
  });

  it("rounds the accuracy up, never down", () => {
    expect(accuracy(3.1e-6)).toBe("4 × 10⁻⁶");
    expect(accuracy(1e-5)).toBe("1 × 10⁻⁵");
    expect(accuracy(9.5e-12)).toBe("1 × 10⁻¹¹");
    expect(accuracy(0)).toBe("0");
  });
});

describe("lists", () => {
  it("takes the largest weights in order, ties to the lower place, none that rounds to nothing", () => {
    const weights = Float64Array.of(0.1, 0.3, 0.0001, 0.3, 0.2, 0);
    expect(largest(weights, 3)).toEqual([1, 3, 4]);
    expect(largest(weights, 10)).toEqual([1, 3, 4, 0]);
    expect(largest(weights, 0)).toEqual([]);
  });

  it("finds tokens: the whole word, its beginning, its inside, its position", () => {
    const { document, buffer } = buildPage();
    (document["texts"] as { tokens: string[] }[])[0]!.tokens = ["unmake", "Making", "make", "4", " "];
    const page = readPage(document, buffer);
    expect(findTokens(page, [0], "mak").matches.map(({ token }) => token)).toEqual([1, 2, 0]);
    expect(findTokens(page, [0], "MAKE").matches.map(({ token }) => token)).toEqual([2, 0]);
    expect(findTokens(page, [0], "3").matches.map(({ token }) => token)).toEqual([3]);
    expect(findTokens(page, [0], "␣").matches.map(({ token }) => token)).toEqual([4]);
    expect(findTokens(page, [0, 1], "source1").total).toBe(2);
    expect(findTokens(page, [0], " ").total).toBe(0);
  });
});

it("finds a word in pieces, and words one after the other, by their first token", () => {
  const { document, buffer } = buildPage();
  const found = (tokens: string[], words: string) => {
    (document["texts"] as { tokens: string[] }[])[0]!.tokens = tokens;
    return findTokens(readPage(document, buffer), [0], words).matches.map(({ token }) => token);
  };
  const pieces = ["govern", "##ments", "act", "gov", "##ern"];
  expect(found(pieces, "Governments")).toEqual([0]);
  expect(found(pieces, "governm")).toEqual([0]);
  expect(found(pieces, "governments ac")).toEqual([0]);
  expect(found(pieces, "govern")).toEqual([0, 3]);
  expect(found(pieces, "governmentsact")).toEqual([]);
  expect(found(pieces, "ments act")).toEqual([]);
  expect(found(["Ġä½", "ł", "å¥½", "Ġa", "b"], "好")).toEqual([2]);
  expect(found(["Ġneu", "rons", "Ġfi", "re", "!"], "neurons fire")).toEqual([0]);
  expect(found(["Ġneu", "rons", "Ġfi", "re", "!"], "fire!")).toEqual([2]);
});

describe("partners", () => {
  it("finds each head's strongest key, and each key's strongest query", () => {
    const { document, buffer, expected } = buildPage({ queries: [1, 4] });
    const page = readPage(document, buffer);
    const store = new Store(page, {});
    const found = (text: number, token: number, direction: "out" | "in") => {
      let partners: Partner[] | null = null;
      findPartners(store, { text, token, direction }, (those) => { partners = those; });
      return partners as Partner[] | null;
    };
    const out = found(0, 4, "out")!;
    expect(out.map((one) => one.weight)).toEqual(out.map((one) => one.weight).sort((a, b) => b - a));
    for (const one of out) {
      const row = expected[one.place]![1]!;
      expect(one.weight).toBeCloseTo(Math.max(...row), 12);
      expect([one.text, one.token]).toEqual([1, row.indexOf(Math.max(...row))]);
    }
    for (const one of found(1, 6, "in")!) {
      const column = expected[one.place]!.map((row) => row[6]!);
      expect([one.text, one.token]).toEqual([0, [1, 4][column.indexOf(Math.max(...column))]]);
    }
    expect(found(0, 2, "out")).toEqual([]);
    expect(spread(store, 0, 3, { text: 0, token: 2, direction: "out" }).weights).toBeNull();
  });
});
