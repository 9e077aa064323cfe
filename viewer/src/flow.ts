// One text as running text, in blocks of some hundred tokens that are in the document only near the window.

import { describe, type Text } from "./document";
import { h, nodesOf, set } from "./dom";
import { isRightToLeft, readerOf, type TextReader } from "./spelling";
import { LONG_TEXT } from "./state";
import { plain, type Piece } from "./tokens";

/** Tokens a block: it ends after a line feed, else after a sentence, else before a space, nearest to the middle of these. */
const FEWEST = 300;
const MOST = 500;
const SENTENCE_END = /[.!?。！？؟।]$/u;
/** Empty lines are shown up to here. */
const LONGEST_BREAK = 3;

interface Block {
  readonly element: HTMLElement;
  readonly from: number;
  readonly to: number;
  /** Height in lines of average length, before it is measured. */
  readonly lines: number;
  /** Pixels, null until measured. */
  height: number | null;
  spans: HTMLElement[] | null;
}

/** Ends of a text's blocks. */
export function blockEnds(reader: TextReader): number[] {
  const count = reader.tokens.length;
  const ends: number[] = [];
  for (let from = 0; from < count;) {
    if (count - from <= MOST) {
      ends.push(count);
      break;
    }
    const middle = from + (FEWEST + MOST) / 2;
    const nearest = (fits: (end: number) => boolean) => {
      for (let away = 0; away <= (MOST - FEWEST) / 2; away++) {
        if (fits(middle + away)) return middle + away;
        if (fits(middle - away)) return middle - away;
      }
      return null;
    };
    const end = nearest((i) => reader.at(i - 1).lines > 0)
      ?? nearest((i) => SENTENCE_END.test(reader.at(i - 1).plain)) ?? nearest((i) => reader.gap(i)) ?? middle;
    ends.push(end);
    from = end;
  }
  return ends;
}

/** Letters of one direction only, else null. */
function directionOf(pieces: readonly Piece[]): "ltr" | "rtl" | null {
  const letters = pieces.flatMap((piece) => (piece.mark ? [] : [...piece.text.matchAll(/\p{L}/gu)].map(([letter]) => letter)));
  const right = letters.filter(isRightToLeft).length;
  return letters.length === 0 ? null : right === letters.length ? "rtl" : right === 0 ? "ltr" : null;
}

export class Flow {
  readonly element: HTMLElement;
  readonly reader: TextReader;
  readonly blocks: readonly Block[];
  /** Dresses one token; called when it is made and when all are painted. */
  dress: (span: HTMLElement, token: number) => void = () => {};
  /** Places of the blocks that are in the document. */
  readonly filled = new Set<number>();
  #lineHeight = 30;
  #perLine = 80;
  /** Measured pixels and those that were expected of the same blocks. */
  #measured = 0;
  #expected = 0;

  constructor(readonly place: number, readonly text: Text, readonly marks: boolean) {
    this.reader = readerOf(text.tokens);
    const right = this.reader.rightToLeft;
    let from = 0;
    this.blocks = blockEnds(this.reader).map((to) => {
      const block = { element: h("div", { class: "run" }), from, to, lines: this.#lines(from, to), height: null, spans: null };
      from = to;
      return block;
    });
    this.element = h("div", {
      class: text.tokens.length <= LONG_TEXT ? "flow short" : "flow", role: "listbox", tabindex: 0,
      "aria-label": `tokens: ${describe(text)}`, dir: right ? "rtl" : "ltr",
    }, ...this.blocks.map((block) => block.element));
  }

  /** Characters of a block, a line feed counting as half a line. */
  #lines(from: number, to: number): number {
    let characters = 0;
    for (let i = from; i < to; i++) {
      const { plain: text, lines } = this.reader.at(i);
      characters += text.length + 1 + (lines * this.#perLine) / 2;
    }
    return Math.ceil(characters / this.#perLine);
  }

  /** Gives blocks that are not in the document a height. `lineHeight` in pixels, `perLine` characters; forgets what was measured. */
  estimate(lineHeight: number, perLine: number): void {
    this.#lineHeight = lineHeight * (this.#perLine / perLine);
    [this.#measured, this.#expected] = [0, 0];
    for (const block of this.blocks) {
      block.height = null;
      if (!block.spans) this.#reserve(block);
    }
  }

  #reserve(block: Block): void {
    const factor = this.#expected > 0 ? this.#measured / this.#expected : 1;
    block.element.style.height = `${block.height ?? Math.round(block.lines * this.#lineHeight * factor)}px`;
  }

  blockAt(token: number): number {
    let [low, high] = [0, this.blocks.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle]!.from <= token) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  span(token: number): HTMLElement | null {
    const block = this.blocks[this.blockAt(token)];
    return block?.spans?.[token - block.from] ?? null;
  }

  fill(place: number): void {
    const block = this.blocks[place];
    if (!block || block.spans) return;
    const spans: HTMLElement[] = [];
    const nodes: Node[] = [];
    let group: HTMLElement | null = null;
    let running: "ltr" | "rtl" | null = null;
    for (let i = block.from; i < block.to; i++) {
      const pieces = this.reader.pieces(i, this.marks);
      if (i > 0 && i === this.text.prompt) {
        running = null;
        nodes.push(h("span", { class: "answer-begins", "aria-hidden": true }, "written from here on"));
      }
      const direction = directionOf(pieces);
      // Letters of the other direction, and those that join, need their neighbours: they are isolated together.
      const together = direction !== null && direction === running && (direction === "rtl" || this.reader.rightToLeft);
      const gap = i > block.from && (this.marks || this.reader.gap(i));
      if (!together) {
        if (gap) nodes.push(document.createTextNode(" "));
        group = h("bdi", direction === null ? {} : { dir: direction });
        nodes.push(group);
      } else if (gap) group!.append(" ");
      running = direction;
      const span = this.#span(i, pieces);
      spans.push(span);
      group!.append(span);
      const { lines } = this.reader.at(i);
      if (lines > 0) {
        running = null;
        for (let line = 0; line < Math.min(lines, LONGEST_BREAK); line++) nodes.push(document.createElement("br"));
      }
    }
    block.spans = spans;
    this.filled.add(place);
    block.element.style.height = "";
    block.element.replaceChildren(...nodes);
    spans.forEach((span, i) => this.dress(span, block.from + i));
  }

  #span(token: number, pieces: readonly Piece[]): HTMLElement {
    const { lines, pieces: read } = this.reader.at(token);
    const span = h("span", {
      class: "token", role: "option", id: `text-${this.place}-${token}`, "data-text": this.place, "data-token": token,
      "aria-posinset": token + 1, "aria-setsize": this.reader.tokens.length, "aria-selected": false,
    }, ...nodesOf(pieces));
    if (read.every((piece) => piece.mark)) set(span, "aria-label", lines > 0 ? "line break" : /^␣+$/.test(read[0]?.text ?? "") ? "space" : plain(this.reader.tokens[token]!));
    return span;
  }

  /** Notes how high blocks are; all at once, so that the window is laid out once. */
  measure(places: readonly number[]): void {
    for (const place of places) {
      const block = this.blocks[place]!;
      if (!block.spans || block.height !== null) continue;
      block.height = block.element.getBoundingClientRect().height;
      this.#measured += block.height;
      this.#expected += block.lines * this.#lineHeight;
    }
  }

  empty(place: number): void {
    const block = this.blocks[place]!;
    if (!block.spans) return;
    block.spans = null;
    this.filled.delete(place);
    block.element.replaceChildren();
    this.#reserve(block);
  }

  /** Dresses every token that is in the document. */
  paint(): void {
    for (const place of this.filled) {
      const { from, spans } = this.blocks[place]!;
      spans?.forEach((span, i) => this.dress(span, from + i));
    }
  }
}
