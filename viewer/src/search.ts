// Finds a token by its spelling or its position.

import { h, replace, set, tokenText } from "./dom";
import type { Page } from "./document";
import { piecesOf, readerOf, type TextReader } from "./spelling";
import type { Store } from "./state";
import { plain } from "./tokens";

const SHOWN = 40;

export interface Match {
  readonly text: number;
  readonly token: number;
}

const WHOLE = 1;
const BEGINS = 2;
const INSIDE = 3;

/**
 * Whole tokens first, then beginnings, then anything that contains the words; a number also finds that position.
 * Tokens are found as they are spelled and as they are read; a word in pieces, or several words, by their first token.
 * Each different token is looked at once.
 */
export function findTokens(page: Page, texts: readonly number[], words: string): { matches: Match[]; total: number } {
  const wanted = words.trim().toLowerCase();
  if (wanted === "") return { matches: [], total: 0 };
  const found: Match[][] = [[], [], []];
  let total = 0;
  for (const text of texts) {
    const reader = readerOf(page.texts[text]!.tokens);
    const ranks = Uint8Array.from(reader.vocabulary, (token, place) => rankOf(wanted, token, reader.reading(place).plain));
    const starts = Uint8Array.from(reader.vocabulary, (_, place) => Number(begins(wanted, reader.reading(place).plain)));
    const position = /^\d+$/.test(wanted) ? Number(wanted) : -1;
    for (let i = 0; i < reader.ids.length; i++) {
      const rank = i === position ? WHOLE : ranks[reader.ids[i]!]! || (starts[reader.ids[i]!]! && rankFrom(wanted, reader, i));
      if (rank === 0) continue;
      total += 1;
      const those = found[rank - 1]!;
      if (those.length < SHOWN) those.push({ text, token: i });
    }
  }
  return { matches: found.flat().slice(0, SHOWN), total };
}

/** 0 where a token does not match. */
function rankOf(wanted: string, token: string, read: string): number {
  const forms = [token.toLowerCase().trim(), read.toLowerCase(), plain(token).toLowerCase()];
  if (forms.includes(wanted)) return WHOLE;
  if (forms.some((form) => form.startsWith(wanted))) return BEGINS;
  return forms.some((form) => form.includes(wanted)) ? INSIDE : 0;
}

const begins = (wanted: string, read: string): boolean => read !== "" && read.length < wanted.length && wanted.startsWith(read.toLowerCase());

/** Whether the words stand in the text from a token on that begins a word. */
function rankFrom(wanted: string, reader: TextReader, from: number): number {
  const end = reader.tokens.length;
  if (from > 0 && !reader.gap(from)) return 0;
  let rest = wanted;
  for (let i = from; i < end; i++) {
    if (i > from && reader.gap(i)) {
      if (!rest.startsWith(" ")) return 0;
      rest = rest.slice(1);
    }
    const read = reader.at(i).plain.toLowerCase();
    if (read.startsWith(rest)) return read === rest && (i + 1 === end || reader.gap(i + 1)) ? WHOLE : BEGINS;
    if (!rest.startsWith(read)) return 0;
    rest = rest.slice(read.length);
  }
  return 0;
}

export class Search {
  readonly input = h("input", {
    type: "search", placeholder: "find a token  /", role: "combobox", "aria-label": "find a token", "aria-expanded": false,
    "aria-controls": "multihead-matches", "aria-autocomplete": "list", autocomplete: "off", spellcheck: "false",
  });
  readonly #list = h("ul", { id: "multihead-matches", role: "listbox", "aria-label": "matching tokens", hidden: true });
  readonly element = h("div", { class: "search" }, this.input, this.#list);
  #matches: Match[] = [];
  #active = 0;

  constructor(readonly store: Store) {
    this.input.addEventListener("input", () => this.#find());
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.input.addEventListener("blur", () => this.#close());
    // Before blur, so that the list is still there.
    this.#list.addEventListener("pointerdown", (event) => {
      const row = event.target instanceof Element ? event.target.closest<HTMLElement>("[data-match]") : null;
      if (row) this.#choose(Number(row.dataset["match"]));
      event.preventDefault();
    });
  }

  #find(): void {
    const { page, layer } = this.store;
    const { matches, total } = findTokens(page, [...new Set([layer.queryText, layer.keyText])], this.input.value);
    this.#matches = matches;
    this.#active = 0;
    const rows = matches.map(({ text, token }, i) => h("li", { role: "option", id: `multihead-match-${i}`, "data-match": i, "data-token": token, "data-text": text },
      tokenText(piecesOf(this.store, text, token)), h("small", {}, page.texts.length > 1 ? `${page.texts[text]!.name} ${token}` : String(token))));
    const note = total === 0 ? "no token matches" : total > matches.length ? `+${total - matches.length} more` : "";
    replace(this.#list, ...rows, note !== "" && h("li", { class: "quiet", role: "presentation" }, note));
    this.#list.hidden = this.input.value.trim() === "";
    set(this.input, "aria-expanded", !this.#list.hidden);
    this.#mark();
  }

  #mark(): void {
    [...this.#list.children].forEach((row, i) => {
      if (row.getAttribute("role") === "option") set(row, "aria-selected", i === this.#active);
      if (i === this.#active) row.scrollIntoView({ block: "nearest" });
    });
    set(this.input, "aria-activedescendant", this.#matches.length > 0 ? `multihead-match-${this.#active}` : null);
  }

  #key(event: KeyboardEvent): void {
    const last = this.#matches.length - 1;
    if (event.key === "ArrowDown") this.#active = Math.min(this.#active + 1, Math.max(last, 0));
    else if (event.key === "ArrowUp") this.#active = Math.max(this.#active - 1, 0);
    else if (event.key === "Enter") this.#choose(this.#active);
    else if (event.key === "Escape") this.#leave();
    else {
      if (event.key !== "Tab") event.stopPropagation();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (event.key.startsWith("Arrow")) this.#mark();
  }

  #choose(i: number): void {
    const match = this.#matches[i];
    if (!match) return;
    this.store.update({ ...match, hover: null });
    this.#leave();
  }

  #leave(): void {
    this.input.value = "";
    this.#close();
    this.input.blur();
  }

  #close(): void {
    this.#list.hidden = true;
    set(this.input, "aria-expanded", false);
  }
}
