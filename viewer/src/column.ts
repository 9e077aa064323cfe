// A text as a column of tokens that makes only the rows in sight, so that its length does not matter.

import type { Text } from "./document";
import { h, set, tokenText } from "./dom";
import { readerOf, type TextReader } from "./spelling";
import { plain } from "./tokens";

const SPARE = 6;

export interface Decoration {
  readonly focused: boolean;
  readonly muted: boolean;
  readonly note: Node | null;
  readonly tint: string;
}

export class TokenColumn {
  readonly rows = h("div", { class: "rows" });
  readonly element: HTMLElement;
  onscroll: () => void = () => {};
  decorate: (token: number) => Decoration = () => ({ focused: false, muted: false, note: null, tint: "" });
  row = 22;
  #reader: TextReader = readerOf([]);
  #prompt: number | null = null;
  #marks = false;
  #made = new Map<number, HTMLElement>();

  constructor(readonly side: "query" | "key") {
    this.element = h("div", { class: `column ${side}`, role: "listbox", tabindex: 0, "data-side": side }, this.rows);
    this.element.addEventListener("scroll", () => {
      this.#make();
      this.onscroll();
    }, { passive: true });
  }

  show({ tokens, prompt }: Text, label: string, row: number, marks: boolean): void {
    set(this.element, "aria-label", label);
    const same = tokens === this.#reader.tokens && row === this.row;
    if (same && marks === this.#marks) return;
    this.#reader = readerOf(tokens);
    this.#prompt = prompt;
    this.#marks = marks;
    this.row = row;
    this.rows.style.height = `${tokens.length * row}px`;
    this.rows.replaceChildren();
    this.#made.clear();
    if (!same) this.element.scrollTop = 0;
  }

  /** Makes the rows in sight and decorates all of them again. */
  refresh(): void {
    this.#make();
    for (const [token, row] of this.#made) this.#dress(row, token);
  }

  /** Vertical middle of a token's row, relative to the top of the column's visible part. */
  middle(token: number): number {
    return token * this.row + this.row / 2 - this.element.scrollTop;
  }

  visible(): { from: number; to: number } {
    const { scrollTop, clientHeight } = this.element;
    return {
      from: Math.max(0, Math.floor(scrollTop / this.row)),
      to: Math.min(this.#reader.tokens.length, Math.ceil((scrollTop + clientHeight) / this.row)),
    };
  }

  reveal(token: number): void {
    const { scrollTop, clientHeight } = this.element;
    const top = token * this.row;
    const outside = top < scrollTop + this.row || top + 2 * this.row > scrollTop + clientHeight;
    if (outside) this.element.scrollTop = top - clientHeight / 2 + this.row / 2;
  }

  #make(): void {
    const { from, to } = this.visible();
    const first = Math.max(0, from - SPARE);
    const end = Math.min(this.#reader.tokens.length, to + SPARE);
    for (const [token, row] of this.#made) {
      if (token < first || token >= end) {
        row.remove();
        this.#made.delete(token);
      }
    }
    for (let token = first; token < end; token++) {
      if (this.#made.has(token)) continue;
      const row = h("div", { class: "token", role: "option", id: `${this.side}-${token}`, "data-token": token, "data-side": this.side });
      row.append(h("span", { class: "position", "aria-hidden": true }, String(token)), tokenText(this.#reader.pieces(token, this.#marks)), h("span", { class: "note" }));
      row.classList.toggle("answers", token > 0 && token === this.#prompt);
      row.title = `${plain(this.#reader.tokens[token]!)}  (${token})`;
      row.style.transform = `translateY(${token * this.row}px)`;
      this.#made.set(token, row);
      this.rows.append(row);
      this.#dress(row, token);
    }
  }

  #dress(row: HTMLElement, token: number): void {
    const { focused, muted, note, tint } = this.decorate(token);
    set(row, "aria-selected", focused);
    if (focused) set(this.element, "aria-activedescendant", row.id);
    row.classList.toggle("muted", muted);
    row.style.setProperty("--tint", tint || "transparent");
    row.lastElementChild!.replaceChildren(...(note ? [note] : []));
  }
}
