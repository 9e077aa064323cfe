import { describe, expect, it } from "vitest";
import { readerOf, TextReader } from "../src/spelling";

/** The alphabet of bytes, written apart from the code under test. */
function spellBytes(text: string): string {
  const kept = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const others = Array.from({ length: 256 }, (_, byte) => byte).filter((byte) => !kept(byte));
  return [...new TextEncoder().encode(text)].map((byte) => String.fromCodePoint(kept(byte) ? byte : 256 + others.indexOf(byte))).join("");
}

/** The text as the flow shows it: a space where there is a gap. */
function asText(tokens: readonly string[]): string {
  const reader = new TextReader(tokens);
  return tokens.map((_, i) => (reader.gap(i) ? " " : "") + reader.at(i).plain).join("");
}

const words = (text: string) => text.split(" ");
const kind = (tokens: readonly string[]) => {
  const { spelling, bytes } = new TextReader(tokens);
  return bytes ? `${spelling}, bytes` : spelling;
};

describe("byte-level", () => {
  it("spells as the known tokenizers do", () => {
    expect([spellBytes("你"), spellBytes(" the"), spellBytes("\n"), spellBytes("é")]).toEqual(["ä½ł", "Ġthe", "Ċ", "Ã©"]);
  });

  it.each([
    [["The", "Ġcat", "Ġsat", "."], "The cat sat."],
    [["def", "Ġfoo", "(", "x", "):", "Ċ", "ĠĠĠ", "Ġreturn", "Ġx"], "def foo(x):↵␣␣␣ return x"],
    [["ä½ł", "å¥½", "ï¼Į", "ä¸ĸçķĮ"], "你好，世界"],
    [words("Le cafÃ© Ġest Ġfermé").map((word) => (word === "Ġfermé" ? `Ġ${spellBytes("fermé")}` : word)), "Lecafé est fermé"],
    [["Hello", "ĠðŁĺ", "Ģ", "!"], "Hello ⟨F0 9F 98⟩⟨80⟩!"],
    [["Hello", "Ġä½", "ł", "å¥½", "Ġthere"], "Hello ⟨E4 BD⟩⟨A0⟩好 there"],
    [["å", "¥½a", "Ġb", "Ġc"], "⟨E5⟩⟨A5 BD⟩a b c"],
    [["a", "Ġ", "Ġb", "Ċ", "ĉ", "c"], "a␣ b↵⇥c"],
    [["<|endoftext|>", "Hello", "Ġyou", "<|endoftext|>"], "<|endoftext|> Hello you <|endoftext|>"],
    [["x", "  ", "Ġy", "Ġz", "Ã©"], "x␣␣ y zé"],
  ])("%j reads %s", (tokens, text) => {
    expect(asText(tokens)).toBe(text);
    expect(kind(tokens)).toBe("byte-level, bytes");
  });

  it("reads what multihead writes: Ġ before text, and bytes as <E4 BD>", () => {
    const tokens = ["Le", "Ġcafé", "Ġest", "Ġfermé", "\n", "Ġ  ", "<E4 BD>", "<A0>", "好", "):\n"];
    expect(asText(tokens)).toBe("Le café est fermé↵␣␣␣⟨E4 BD⟩⟨A0⟩好):↵");
    expect(kind(tokens)).toBe("byte-level");
    expect(tokens.map((_, i) => new TextReader(tokens).at(i).lines)).toEqual([0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
  });

  it("every byte, alone, is a mark or the character it is", () => {
    for (let byte = 0; byte < 256; byte++) {
      const spelled = String.fromCodePoint(byte < 128 ? spellBytes(String.fromCharCode(byte)).codePointAt(0)! : spellBytes("\u0080").codePointAt(1)!);
      const reader = new TextReader([...Array<string>(30).fill("ä½ł"), "Ġthe", spelled]);
      expect(reader.bytes).toBe(true);
      if (byte >= 33 && byte <= 126) expect(reader.at(31).plain).toBe(String.fromCharCode(byte));
      else expect(reader.at(31).pieces.every((piece) => piece.mark)).toBe(true);
    }
  });

  it("is not seen in other languages' letters", () => {
    expect(kind(words("Ġorġ u Ġanni marru d-dar"))).toBe("words");
    expect(asText(words("Ġorġ u Ġanni marru d-dar"))).toBe("Ġorġ u Ġanni marru d-dar");
    expect(kind(words("Il- Ġimgħa ta' Ġunju mort il- baħar ma' ħija ċ- ċkejken"))).toBe("words");
    expect(kind(words("Die Bären müssen für Äpfel bezahlen"))).toBe("words");
    expect(kind(words("Mały łoś żyje w łódce"))).toBe("words");
    expect(kind(["Ġorġ", " u", " Ġanni", " Ġew"])).toBe("spaced");
  });

  it("keeps a Maltese letter behind the space's mark", () => {
    expect(asText(["Mort", "Ġgħand", "ĠĠorġ", "Ġu", "ĠĠanni", "Ġillum", "."])).toBe("Mort għand Ġorġ u Ġanni illum.");
  });

  it("a broken sequence is no evidence for bytes", () => {
    expect(kind(["Ġcafé", "Ġest", "Ġbon"])).toBe("byte-level");
    expect(kind(["ĠcafÃ©", "Ġest", "Ġbon"])).toBe("byte-level, bytes");
  });
});

describe("the other kinds", () => {
  it.each([
    ["sentencepiece", ["▁The", "▁cat", "s", "▁sat", "."], "The cats sat."],
    ["sentencepiece", ["▁", "你", "好", "<0xE4>", "<0xBD>", "<0x0A>", "▁▁▁▁", "x"], "␣你好⟨E4⟩⟨BD⟩↵␣␣␣␣x"],
    ["sentencepiece", ["<s>", "▁▁▁def", "▁f", "</s>"], "<s> ␣␣def f </s>"],
    ["wordpiece", ["[CLS]", "govern", "##ments", "didn", "'", "t", ",", "say", "(", "why", ")", ".", "[SEP]"], "[CLS] governments didn't, say (why). [SEP]"],
    ["wordpiece", ["[CLS]", "东", "京", "is", "##h", "京", "[SEP]"], "[CLS] 东京 ish 京 [SEP]"],
    ["continued", ["mak@@", "ing", "la@@", "ws", "@@"], "making laws @@"],
    ["end-of-word", ["mak", "ing</w>", "laws</w>", ".</w>"], "making laws ."],
    ["end-of-word, bytes", ["caf", "Ã©</w>", "noir</w>"], "café noir"],
    ["spaced", ["The", " cat", " sat", ".", "\n", "  if", " x"], "The cat sat.↵ ␣if x"],
    ["spaced", ["T", "h", "e", " ", "c"], "The␣c"],
    ["words", ["The", "cat", "sat", "."], "The cat sat."],
    ["words", ["#", "##", "###", "x"], "# ## ### x"],
    ["words", ["##ing", "at", "the", "start"], "##ing at the start"],
    ["words", ["我", "爱", "你", "。"], "我爱你。"],
    ["words", ["▁", "▂", "▃", "█", "▅"].map((block) => `${block}${block}`).concat("a", "b", "c"), "▁▁ ▂▂ ▃▃ ██ ▅▅ a b c"],
    ["words", [], ""],
    ["words", ["[CLS]", "[SEP]"], "[CLS] [SEP]"],
  ])("%s: %j reads %s", (spelling, tokens, text) => {
    expect(kind(tokens)).toBe(spelling);
    expect(asText(tokens)).toBe(text);
  });

  it("shows what was spelled on demand", () => {
    const reader = readerOf(["Ġa", "Ġä½ł", "Ġc"]);
    expect([0, 1].map((i) => reader.plain(i, true))).toEqual(["Ġa", "Ġä½ł"]);
    expect([0, 1].map((i) => reader.plain(i, false))).toEqual(["a", "你"]);
    expect(reader.pieces(1, true)).toEqual([{ text: "Ġ", mark: true }, { text: "ä½ł", mark: false }]);
    expect(readerOf(reader.tokens)).toBe(reader);
  });

  it("knows which way a text runs", () => {
    const runs = (text: readonly string[]) => new TextReader(text).rightToLeft;
    expect(runs(["[CLS]", "שלום", "עולם", "hello", "[SEP]"])).toBe(true);
    expect(runs(["[CLS]", "مرحبا", "بالعالم", "[SEP]"])).toBe(true);
    expect(runs(["[CLS]", "hello", "you", "שלום", "[SEP]"])).toBe(false);
    expect(runs(["123", "!"])).toBe(false);
    expect(runs([spellBytes("שלום"), spellBytes(" עולם")])).toBe(true);
    expect(runs(["Ġa", "Ġb", "×", "ł", spellBytes("א")])).toBe(false);
  });

  it("reads a million tokens quickly", () => {
    const spelled = spellBytes(" é");
    const tokens = Array.from({ length: 1_000_000 }, (_, i) => `${spelled}${i % 50_000}`);
    const before = performance.now();
    const reader = new TextReader(tokens);
    const took = performance.now() - before;
    expect(reader.bytes).toBe(true);
    expect(took).toBeLessThan(3000);
  });
});
