// What a tokenizer's marks mean, decided once from a whole text: which of them are spaces, and which tokens go on with a word.

import type { Store } from "./state";
import { display, isSpecial, joined, visible, type Piece } from "./tokens";

/**
 * byte-level     Ġthe: a leading Ġ is a space; with `bytes`, each character is a byte (Radford et al. 2019)
 * sentencepiece  ▁the: ▁ is a space (Kudo and Richardson 2018)
 * end-of-word    the</w>: the word ends here
 * continued      mak@@ ing: the word goes on (Sennrich et al. 2016)
 * wordpiece      mak ##ing: goes on with the word (Schuster and Nakajima 2012)
 * spaced         tokens bring their own white space
 * words          no marks at all: a list of words, or of characters of a script without spaces
 */
export type Spelling = "byte-level" | "sentencepiece" | "end-of-word" | "continued" | "wordpiece" | "spaced" | "words";

/** One token as text. */
export interface Reading {
  readonly pieces: readonly Piece[];
  readonly plain: string;
  /** A space stands before the token, or after it; it is not among the pieces. */
  readonly before: boolean;
  readonly after: boolean;
  /** Line feeds in the token. */
  readonly lines: number;
}

const BYTES = byteAlphabet();

/** The characters that byte-level tokenizers write for the 256 bytes: printable ones stand for themselves. */
function byteAlphabet(): ReadonlyMap<string, number> {
  const own = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  const alphabet = new Map<string, number>();
  let others = 0;
  for (let byte = 0; byte < 256; byte++) alphabet.set(String.fromCharCode(own(byte) ? byte : 256 + others++), byte);
  return alphabet;
}

const bytesOf = (spelled: string): Uint8Array => Uint8Array.from(spelled, (character) => BYTES.get(character) ?? 0x3f);
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const sequenceLength = (lead: number): number => (lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0);

/** The character that starts at a byte, or null where none does; `cut` where the bytes end inside of one. */
function characterAt(bytes: Uint8Array, at: number): { text: string; length: number } | "cut" | null {
  const length = sequenceLength(bytes[at]!);
  if (length === 0) return null;
  if (at + length > bytes.length) return bytes.subarray(at + 1).every((byte) => byte >> 6 === 2) ? "cut" : null;
  try {
    return { text: strict.decode(bytes.subarray(at, at + length)), length };
  } catch {
    return null;
  }
}

const named = (bytes: readonly number[]): Piece =>
  ({ text: `⟨${bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ")}⟩`, mark: true });

/** Bytes as text; those that make no whole character stand as ⟨E4 BD⟩. */
function decode(bytes: Uint8Array): (string | Piece)[] {
  const parts: (string | Piece)[] = [];
  let broken: number[] = [];
  const close = () => { if (broken.length > 0) parts.push(named(broken)); broken = []; };
  for (let at = 0; at < bytes.length;) {
    const found = characterAt(bytes, at);
    if (found === null || found === "cut") {
      broken.push(bytes[at]!);
      at += 1;
    } else {
      close();
      if (typeof parts.at(-1) === "string") parts[parts.length - 1] += found.text;
      else parts.push(found.text);
      at += found.length;
    }
  }
  close();
  return parts;
}

const WORD_AT_END = /[\p{L}\p{N}\p{M}]$/u;
const WORD_AT_START = /^[\p{L}\p{N}\p{M}]/u;
const CLOSING = /^[,.;:!?%)\]}»”…،؛؟。，、；：！？）」』】》]+$/u;
const OPENING = /^[([{«“¿¡（「『【《]+$/u;
const APOSTROPHE = /^['’]$/;
/** Scripts that are written without spaces between words. */
const UNSPACED_END = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}ー。，、；：！？）」』】》（「『【《]$/u;
const UNSPACED_START = /^[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}ー。，、；：！？）」』】》（「『【《]/u;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
export const isRightToLeft = (letter: string): boolean => RIGHT_TO_LEFT.test(letter);

const BYTE_PIECE = /^<0x([\dA-F]{2})>$/;
const BYTES_PIECE = /^<([\dA-F]{2}(?: [\dA-F]{2})*)>$/;

/** A text's tokens with their tokenizer's marks understood. */
export class TextReader {
  /** The different tokens, and for each position the place of its token among them. */
  readonly vocabulary: readonly string[];
  readonly ids: Int32Array;
  readonly spelling: Spelling;
  /** Whether characters stand for bytes. */
  readonly bytes: boolean;
  readonly #readings: (Reading | undefined)[] = [];
  readonly #counts: number[] = [];
  #rightToLeft: boolean | null = null;

  constructor(readonly tokens: readonly string[]) {
    const places = new Map<string, number>();
    const vocabulary: string[] = [];
    this.ids = new Int32Array(tokens.length);
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens[i]!;
      let place = places.get(token);
      if (place === undefined) {
        place = vocabulary.push(token) - 1;
        places.set(token, place);
        this.#counts.push(0);
      }
      this.ids[i] = place;
      this.#counts[place]! += 1;
    }
    this.vocabulary = vocabulary;
    const { spelling, bytes } = this.#decide();
    this.spelling = spelling;
    this.bytes = bytes;
  }

  /** Whether more tokens are written from right to left than from left to right. */
  get rightToLeft(): boolean {
    if (this.#rightToLeft === null) {
      let balance = 0;
      this.vocabulary.forEach((token, place) => {
        if (isSpecial(token)) return;
        const letter = this.reading(place).pieces.map((piece) => (piece.mark ? null : /\p{L}/u.exec(piece.text)?.[0])).find(Boolean);
        if (letter) balance += (isRightToLeft(letter) ? 1 : -1) * this.#counts[place]!;
      });
      this.#rightToLeft = balance > 0;
    }
    return this.#rightToLeft;
  }

  at(i: number): Reading {
    return this.reading(this.ids[i]!);
  }

  /** The token as the tokenizer spells it, or as text. */
  pieces(i: number, marks: boolean): readonly Piece[] {
    return marks ? display(this.tokens[i]!) : this.at(i).pieces;
  }

  plain(i: number, marks: boolean): string {
    return marks ? display(this.tokens[i]!).map((piece) => piece.text).join("") : this.at(i).plain;
  }

  /** Whether the text has a space between the token before and this one. */
  gap(i: number): boolean {
    if (i <= 0) return false;
    const [before, here] = [this.tokens[i - 1]!, this.tokens[i]!];
    if (isSpecial(before) || isSpecial(here)) return true;
    const [last, next] = [this.at(i - 1), this.at(i)];
    if (this.spelling === "wordpiece" || this.spelling === "words") return this.#wordsApart(i, last.plain, next.plain);
    if (this.spelling === "continued") return !goesOn(before);
    return last.after || next.before;
  }

  /** Words without marks: punctuation stands where print puts it, and scripts without spaces have none. */
  #wordsApart(i: number, last: string, next: string): boolean {
    if (this.spelling === "wordpiece" && continues(this.tokens[i]!)) return false;
    if (CLOSING.test(next) || OPENING.test(last)) return false;
    if (UNSPACED_END.test(last) && UNSPACED_START.test(next)) return false;
    const inside = (at: number) => APOSTROPHE.test(this.tokens[at] ?? "") && WORD_AT_END.test(this.tokens[at - 1] ?? "") && WORD_AT_START.test(this.tokens[at + 1] ?? "");
    return !inside(i) && !inside(i - 1);
  }

  /** By place in the vocabulary. */
  reading(place: number): Reading {
    return (this.#readings[place] ??= this.#read(this.vocabulary[place]!));
  }

  #read(token: string): Reading {
    if (token === "" || isSpecial(token)) return { pieces: display(token), plain: token, before: false, after: false, lines: 0 };
    const byte = this.#bytePiece(token);
    if (byte) return byte;
    const spelled = this.#unmarked(token);
    const parts: (string | Piece)[] = this.bytes && inAlphabet(spelled.text) ? decode(bytesOf(spelled.text)) : [spelled.text];
    const [first, last] = [parts[0]!, parts.at(-1)!];
    const spaced = this.spelling !== "words" && this.spelling !== "wordpiece" && this.spelling !== "continued";
    const content = parts.some((part) => typeof part !== "string" || part.trim() !== "");
    const before = spaced && content && typeof first === "string" && first.startsWith(" ");
    if (before) parts[0] = first.slice(1);
    const after = spaced && content && typeof last === "string" && last.endsWith(" ");
    if (after) parts[parts.length - 1] = (parts.at(-1) as string).slice(0, -1);
    return readingOf(parts, before, after || spelled.after);
  }

  /** SentencePiece writes a byte that it has no piece for as <0xE4>; multihead writes part of a character as <E4 BD>. */
  #bytePiece(token: string): Reading | null {
    const one = this.spelling === "sentencepiece" ? BYTE_PIECE.exec(token) : null;
    const some = one ?? (this.spelling === "byte-level" && !this.bytes ? BYTES_PIECE.exec(token) : null);
    return some && readingOf(decode(Uint8Array.from(some[1]!.split(" "), (digits) => parseInt(digits, 16))), false, false);
  }

  #unmarked(token: string): { text: string; after: boolean } {
    switch (this.spelling) {
      case "byte-level": return { text: !this.bytes && token.startsWith("Ġ") ? ` ${token.slice(1)}` : token, after: false };
      case "sentencepiece": return { text: token.replaceAll("▁", " "), after: false };
      case "end-of-word": return { text: ends(token) ? token.slice(0, -4) : token, after: ends(token) };
      case "continued": return { text: goesOn(token) ? token.slice(0, -2) : token, after: false };
      case "wordpiece": return { text: continues(token) ? token.slice(2) : token, after: false };
      default: return { text: token, after: false };
    }
  }

  /** The share of tokens, special ones aside, that a test holds for. */
  #share(test: (token: string) => boolean): number {
    let all = 0;
    let those = 0;
    this.vocabulary.forEach((token, place) => {
      if (isSpecial(token)) return;
      all += this.#counts[place]!;
      if (test(token)) those += this.#counts[place]!;
    });
    return all === 0 ? 0 : those / all;
  }

  /**
   * A mark is believed only where the text cannot be read without it: one Ġ in a text of Maltese words is a letter.
   * No mark is a space in a text that has spaces beside its words. Then
   * Ġ is a space where it stands alone or before something that is no letter, or starts a quarter of the tokens (half of them where ġ occurs);
   * ▁ where it starts a token, and a quarter of them in a text that draws with blocks;
   * </w> and @@ where tokens end in them; ## where most tokens with it follow a word.
   * Characters are bytes where all are in the alphabet of bytes, and their sequence is UTF-8 but for a twentieth.
   */
  #decide(): { spelling: Spelling; bytes: boolean } {
    const words = this.vocabulary.filter((token) => !isSpecial(token));
    if (words.some((token) => /^ +[^ ]|[^ Ġ] +$/.test(token) && token.trim() !== "")) return { spelling: "spaced", bytes: false };
    const ended = words.some(ends);
    const g = words.some((token) => /^Ġ(?![\p{L}\p{M}'’-])/u.test(token) || token === "Ċ")
      || this.#share((token) => token.startsWith("Ġ")) >= (words.some((token) => token.includes("ġ")) ? 0.5 : 0.25);
    const bytes = this.#areBytes(g);
    if (ended) return { spelling: "end-of-word", bytes };
    if (g || bytes) return { spelling: "byte-level", bytes };
    const blocks = words.some((token) => /[▂-█]/.test(token));
    const underlined = this.#share((token) => token.startsWith("▁"));
    if (blocks ? underlined >= 0.25 : underlined > 0) return { spelling: "sentencepiece", bytes };
    if (words.some(goesOn)) return { spelling: "continued", bytes };
    if (this.#piecesFollowWords(words)) return { spelling: "wordpiece", bytes };
    return { spelling: words.some((token) => token !== "" && token.trim() === "") ? "spaced" : "words", bytes };
  }

  #piecesFollowWords(words: readonly string[]): boolean {
    if (!words.some(continues)) return false;
    let balance = 0;
    for (let i = 0; i < this.tokens.length; i++) {
      if (continues(this.tokens[i]!)) balance += i > 0 && !isSpecial(this.tokens[i - 1]!) && WORD_AT_END.test(this.tokens[i - 1]!) ? 1 : -1;
    }
    return balance > 0;
  }

  #areBytes(spaces: boolean): boolean {
    const plain = /^[!-~ĠĊĉč]*$/;
    let foreign = false;
    for (const token of this.vocabulary) {
      if (isSpecial(token) || token.trim() === "") continue;
      const text = ends(token) ? token.slice(0, -4) : token;
      if (!inAlphabet(text)) return false;
      foreign ||= !plain.test(text);
    }
    if (!foreign) return spaces;
    const { whole, broken } = this.#utf8();
    return broken <= whole / 20 && (whole > 0 || spaces);
  }

  /** Characters of several bytes in the whole text, and bytes that belong to none; a character cut off by an end is neither. */
  #utf8(): { whole: number; broken: number } {
    const parts = this.vocabulary.map((token) => (isSpecial(token) || token.trim() === "" ? null : utf8Of(bytesOf(ends(token) ? token.slice(0, -4) : token))));
    let [whole, broken] = [0, 0];
    // Continuation bytes that an open character still needs; null where the text may have been cut.
    let open: number | null = null;
    for (let i = 0; i < this.ids.length; i++) {
      const part = parts[this.ids[i]!]!;
      if (part === null) {
        broken += open ? 1 : 0;
        open = null;
        continue;
      }
      whole += part.whole;
      broken += part.broken;
      if (open !== null && open > 0) {
        if (part.only && part.lead < open) {
          open -= part.lead;
          continue;
        }
        if (part.lead >= open) {
          whole += 1;
          broken += part.lead - open;
        } else broken += 1 + part.lead;
      } else if (open === 0) broken += part.lead;
      open = part.missing;
    }
    return { whole, broken };
  }
}

/** One token's bytes: continuation bytes that it begins with (`only` those), whole characters and broken bytes after them, and what its end lacks. */
function utf8Of(bytes: Uint8Array): { lead: number; only: boolean; whole: number; broken: number; missing: number } {
  let lead = 0;
  while (lead < bytes.length && bytes[lead]! >> 6 === 2) lead += 1;
  let [whole, broken] = [0, 0];
  for (let at = lead; at < bytes.length;) {
    const found = characterAt(bytes, at);
    if (found === "cut") return { lead, only: false, whole, broken, missing: sequenceLength(bytes[at]!) - (bytes.length - at) };
    if (found === null || /[^\P{Cc}\t\n\r]/u.test(found.text)) broken += 1;
    else if (found.length > 1) whole += 1;
    at += found?.length ?? 1;
  }
  return { lead, only: lead === bytes.length, whole, broken, missing: 0 };
}

const ends = (token: string): boolean => token.length > 4 && token.endsWith("</w>");
const goesOn = (token: string): boolean => token.length > 2 && token.endsWith("@@");
const continues = (token: string): boolean => token.length > 2 && token.startsWith("##") && token[2] !== "#";
const inAlphabet = (text: string): boolean => [...text].every((character) => BYTES.has(character));

function readingOf(parts: readonly (string | Piece)[], before: boolean, after: boolean): Reading {
  const pieces = joined(parts.flatMap((part) => (typeof part === "string" ? visible(part) : [part])));
  const lines = parts.reduce((sum, part) => sum + (typeof part === "string" ? part.split("\n").length - 1 : 0), 0);
  return { pieces, plain: pieces.map((piece) => piece.text).join(""), before, after, lines };
}

const readers = new WeakMap<readonly string[], TextReader>();

/** The reader of a text; each list of tokens is looked at once. */
export function readerOf(tokens: readonly string[]): TextReader {
  let reader = readers.get(tokens);
  if (!reader) readers.set(tokens, (reader = new TextReader(tokens)));
  return reader;
}

/** A token as the page shows it now: as text, or as its tokenizer spells it. */
export function piecesOf({ page, state }: Pick<Store, "page" | "state">, text: number, token: number): readonly Piece[] {
  const tokens = page.texts[text]?.tokens;
  return tokens && token in tokens ? readerOf(tokens).pieces(token, state.marks) : [];
}
