// What is chosen, and how choices depend on each other. Views subscribe; nobody else keeps a choice.

import type { Layer, Page, Text } from "./document";
import type { Spread } from "./targets";
import type { Pooling } from "./map/grid";
import type { Scale } from "./map/shade";
import type { Remote } from "./remote";
import type { Sort } from "./traits";
import { LayerWeights } from "./weights";

export const VIEWS = ["lines", "text", "map", "picture"] as const;
export type View = (typeof VIEWS)[number];
/** "out": what the token, as a query, looks at. "in": what looks at the token, as a key. */
export type Direction = "out" | "in";

export interface Focus {
  readonly text: number;
  readonly token: number;
  readonly direction: Direction;
}

export interface State {
  /** Place in page.layers. */
  readonly layer: number;
  /** Original head numbers, in the layer's order. */
  readonly heads: readonly number[];
  readonly text: number;
  readonly token: number | null;
  readonly direction: Direction;
  readonly view: View;
  readonly dark: boolean;
  /** Whether tokens are shown as their tokenizer spells them, instead of as text. */
  readonly marks: boolean;
  readonly hover: Focus | null;
  /** The key that is chosen beside the token, on the map. */
  readonly key: number | null;
  readonly scale: Scale;
  /** How weights over a picture become opacity. */
  readonly opacity: Scale;
  readonly pooling: Pooling;
  /** Where the map stands: key and query in the middle, keys across; empty for the whole. */
  readonly at: string;
  /** In which order the maps of all heads stand. */
  readonly sort: Sort;
  /** Grows when numbers arrive that were asked for. */
  readonly arrived: number;
}

export type Listener = (state: State, before: State | null) => void;

export const LONG_TEXT = 80;

export class Store {
  state: State;
  readonly weights: readonly LayerWeights[];
  /** Spreads that several views ask for at once; see targets.ts. */
  readonly spreads = new Map<string, Spread>();
  /** Where rows and columns are asked for; null where the page holds them. */
  remote: Remote | null = null;
  readonly #listeners: Listener[] = [];
  #beforeAll: readonly number[] = [];
  readonly #lastToken = new Map<number, number>();
  /** The picture is shown again as soon as a layer has one. */
  #awaitsPicture = false;

  constructor(readonly page: Page, asked: Partial<State>) {
    this.weights = page.layers.map((layer) => new LayerWeights(layer));
    const longest = Math.max(...page.texts.map((text) => text.tokens.length));
    const first: State = {
      layer: 0, heads: page.layers[0]!.heads.slice(0, 1), text: page.layers[0]!.queryText, token: 0,
      direction: "out", view: page.texts.some(isSeen) ? "picture" : this.#plainView(), dark: false, marks: false, hover: null, key: null, scale: longest > LONG_TEXT ? "log" : "linear", opacity: "linear", pooling: "mean", at: "", sort: "", arrived: 0,
    };
    this.state = this.#consistent({ ...first, ...asked });
  }

  get layer(): Layer {
    return this.page.layers[this.state.layer]!;
  }

  subscribe(listener: Listener): void {
    this.#listeners.push(listener);
  }

  start(): void {
    for (const listener of this.#listeners) listener(this.state, null);
  }

  update(patch: Partial<State>): void {
    const before = this.state;
    const { token } = before;
    if (token !== null) this.#lastToken.set(before.text, token);
    if (patch.view) this.#awaitsPicture = false;
    const wanted = this.#consistent({ ...before, ...patch });
    // Listeners compare with ===, so what did not change keeps its identity.
    const changed = Object.entries(wanted).filter(([key, value]) => !sameValue(value, before[key as keyof State]));
    if (changed.length === 0) return;
    const after: State = { ...before, ...Object.fromEntries(changed) };
    this.state = after;
    for (const listener of this.#listeners) listener(after, before);
  }

  toggleHead(head: number): void {
    const { heads } = this.state;
    if (!this.layer.heads.includes(head)) return;
    this.update({ heads: heads.includes(head) ? heads.filter((other) => other !== head) : [...heads, head] });
  }

  /** All heads, and back to those that were chosen before. */
  toggleAll(): void {
    const { heads } = this.state;
    const all = this.layer.heads;
    if (heads.length < all.length) this.#beforeAll = heads;
    this.update({ heads: heads.length < all.length ? all : this.#beforeAll.length > 0 ? this.#beforeAll : all.slice(0, 1) });
  }

  #consistent(wanted: State): State {
    const { page } = this;
    const layer = page.layers[wanted.layer] ? wanted.layer : 0;
    const { heads: known, queryText, keyText } = page.layers[layer]!;
    const kept = known.filter((head) => wanted.heads.includes(head));
    const heads = kept.length > 0 || wanted.heads.length === 0 ? kept : known.slice(0, 1);
    const reads = wanted.text === queryText || wanted.text === keyText;
    const text = reads ? wanted.text : queryText;
    let token = reads ? wanted.token : (this.#lastToken.get(text) ?? 0);
    const length = page.texts[text]!.tokens.length;
    if (token !== null) token = length === 0 ? null : Math.min(Math.max(token, 0), length - 1);
    const direction = text !== queryText ? "in" : text !== keyText ? "out" : wanted.direction;
    const key = wanted.key !== null && wanted.key < page.layers[layer]!.keyCount ? wanted.key : null;
    return { ...wanted, layer, heads, text, token, direction, key, view: this.#offered(wanted.view, layer) };
  }

  /** The view, or another one where the layer has no picture. */
  #offered(view: View, layer: number): View {
    const seen = hasPicture(this.page, this.page.layers[layer]!);
    if (view === "picture" && !seen) {
      this.#awaitsPicture = true;
      return this.#plainView();
    }
    if (!seen || !this.#awaitsPicture) return view;
    this.#awaitsPicture = false;
    return "picture";
  }

  #plainView(): View {
    return Math.max(...this.page.texts.map((text) => text.tokens.length)) > LONG_TEXT ? "text" : "lines";
  }
}

function sameValue(a: unknown, b: unknown): boolean {
  return a === b || (typeof a === "object" && JSON.stringify(a) === JSON.stringify(b));
}

/** What is looked at now: the token under the pointer, else the chosen one. */
export function focusOf(state: State): Focus | null {
  if (state.hover) return state.hover;
  return state.token === null ? null : { text: state.text, token: state.token, direction: state.direction };
}

/** Whether a text is a picture or a sound. */
export const isSeen = (text: Text): boolean => text.picture !== null || text.sound !== null;

export function hasPicture(page: Page, layer: Layer): boolean {
  return [layer.queryText, layer.keyText].some((text) => isSeen(page.texts[text]!));
}

export function tokenAt(page: Page, text: number, token: number): string {
  return page.texts[text]?.tokens[token] ?? "";
}

/** "2"; "2 A" of two recordings; or "0 (decoder.0.cross)" where two layers carry the same number. */
export function layerLabel(page: Page, layer: Layer): string {
  const own = page.layers.filter((other) => other.recording === layer.recording && other.index === layer.index);
  const name = page.recordings ? `${layer.index} ${"AB"[layer.recording]}` : String(layer.index);
  return own.length > 1 ? `${name} (${layer.name})` : name;
}
