// A layer over what is no text: a picture's patches, a sound's frames, and the words that look at them.

import { headColour } from "../colours";
import { h, replace, set, tokenText } from "../dom";
import { choice } from "../map/legend";
import { FAINTEST, type Scale } from "../map/shade";
import { piecesOf } from "../spelling";
import { focusOf, isSeen, type Focus, type State, type Store } from "../state";
import { spread, type Spread } from "../targets";
import { formatWeight } from "../tokens";
import { ImageBoard } from "./imageboard";
import { SoundBoard } from "./soundboard";
import { peaksOf, wholeWeights, type HeadWeights, type Shown } from "./shown";
import { Beside, Words } from "./words";

/** Heads that are read out under the pointer. */
const READ = 6;

const SCALES = [
  ["linear", "linear", "opacity is the weight, the largest one here fully opaque"],
  ["log", "logarithmic", "equal steps are equal factors"],
  ["rank", "rank", "opacity is the share of the weights here that are weaker"],
] as const;

interface Part {
  readonly text: number;
  readonly element: HTMLElement;
  onpoint: (token: number | null) => void;
  onchoose: (token: number) => void;
  show(shown: Shown): void;
  grey?(on: boolean): void;
}

export class PictureView {
  readonly #parts = h("div", { class: "picture-parts" });
  readonly #readout = h("p", { class: "readout", "aria-live": "polite" });
  readonly #scales = choice("opacity", SCALES, (opacity: Scale) => this.store.update({ opacity }));
  readonly #ends = h("span", { class: "ramp-ends" });
  readonly #greyed = h("button", { type: "button", class: "plain", title: "the picture without its own colours, so that the heads' stand out", onclick: () => this.#turnGrey() }, "grey picture");
  readonly element = h("div", { class: "pictureview", hidden: true },
    h("div", { class: "map-legend" }, this.#scales, h("span", { class: "ramp", "aria-hidden": true }), this.#ends, this.#greyed), this.#parts, this.#readout);
  #made: Part[] = [];
  #built = "";
  #grey = true;

  constructor(readonly store: Store) {
    store.subscribe((state) => this.#update(state));
  }

  #update(state: State): void {
    this.element.hidden = state.view !== "picture";
    if (this.element.hidden) return;
    const { layer, page } = this.store;
    const built = `${layer.queryText}/${layer.keyText}/${state.marks}`;
    if (built !== this.#built) this.#build();
    this.#built = built;
    const focus = focusOf(state);
    const spreads = focus ? state.heads.map((head) => spread(this.store, state.layer, head, focus)) : [];
    const far = focus ? (focus.direction === "out" ? layer.keyText : layer.queryText) : -1;
    const heads = far < 0 ? [] : spreads.map((one) => wholeWeights(one, page.texts[far]!.tokens.length));
    set(this.element, "aria-busy", spreads.some(({ pending }) => pending) || null);
    for (const part of this.#made) {
      part.show({ state, focus, heads: part.text === far ? heads : [], own: focus?.text === part.text ? focus.token : null });
    }
    this.#legend(state, far, heads);
    this.#read(state, far, heads);
  }

  #build(): void {
    const { layer, page } = this.store;
    const texts = [...new Set([layer.queryText, layer.keyText])];
    // Words stand above the picture that they look at.
    texts.sort((a, b) => Number(this.#isSeen(a)) - Number(this.#isSeen(b)));
    this.#made = texts.flatMap((text) => this.#partsOf(text));
    for (const part of this.#made) {
      part.onpoint = (token) => this.store.update({ hover: token === null ? null : this.#focus(part.text, token) });
      part.onchoose = (token) => this.store.update({ text: part.text, token, hover: null });
      part.grey?.(this.#grey);
    }
    replace(this.#parts, ...texts.map((text) => h("div", { class: this.#isSeen(text) ? "block seen" : "block" },
      texts.length > 1 && h("h3", {}, `${page.texts[text]!.name} (${text === layer.queryText ? "queries" : "keys"})`),
      ...this.#made.filter((part) => part.text === text).map((part) => part.element))));
    this.#greyed.hidden = !texts.some((text) => page.texts[text]!.picture !== null || (page.texts[text]!.sound?.src ?? null) !== null);
    set(this.#greyed, "aria-pressed", this.#grey);
  }

  #isSeen(text: number): boolean {
    return isSeen(this.store.page.texts[text]!);
  }

  #partsOf(text: number): Part[] {
    const { name, tokens, picture, sound } = this.store.page.texts[text]!;
    if (sound) return [new SoundBoard(sound, tokens.length, text, name)];
    if (!picture) return [new Words(this.store, text)];
    const { first, rows, columns } = picture;
    const others = [...tokens.keys()].filter((token) => token < first || token >= first + rows * columns);
    return [new Beside(this.store, text, others), new ImageBoard(picture, text, name)];
  }

  #focus(text: number, token: number): Focus {
    const { queryText, keyText } = this.store.layer;
    return { text, token, direction: text !== queryText ? "in" : text !== keyText ? "out" : this.store.state.direction };
  }

  #turnGrey(): void {
    this.#grey = !this.#grey;
    set(this.#greyed, "aria-pressed", this.#grey);
    for (const part of this.#made) part.grey?.(this.#grey);
  }

  #legend(state: State, far: number, heads: readonly HeadWeights[]): void {
    for (const one of this.#scales.children) set(one, "aria-pressed", (one as HTMLElement).dataset["value"] === state.opacity);
    const largest = far < 0 || !this.#isSeen(far) ? 0 : this.#largest(far, heads);
    const ends = { linear: `0 to ${formatWeight(largest)}, the largest here`, log: `${FAINTEST} to 1, by powers of ten`, rank: "weakest to strongest" };
    replace(this.#ends, largest === 0 ? "" : ends[state.opacity]);
  }

  /** The largest weight on a text's patches or frames. */
  #largest(text: number, heads: readonly HeadWeights[]): number {
    const { from, to } = this.#seen(text);
    return heads.reduce((most, { weights }) => weights.subarray(from, to).reduce((a, b) => Math.max(a, b), most), 0);
  }

  #seen(text: number): { from: number; to: number } {
    const { picture, sound, tokens } = this.store.page.texts[text]!;
    if (picture) return { from: picture.first, to: picture.first + picture.rows * picture.columns };
    return { from: 0, to: sound ? tokens.length : 0 };
  }

  /** What the kept token has to do with the one under the pointer; without one, with the strongest. */
  #read(state: State, far: number, heads: readonly HeadWeights[]): void {
    const { hover } = state;
    const kept = focusOf({ ...state, hover: null });
    if (!kept || state.heads.length === 0) {
      replace(this.#readout, h("span", { class: "quiet" }, "Choose a patch, a frame or a word, and a head, to see where it looks."));
      return;
    }
    const { layer } = this.store;
    const other = kept.direction === "out" ? layer.keyText : layer.queryText;
    const pointed = hover && hover.text === other ? hover.token : this.#strongest(far === other && !hover ? heads : [], other);
    if (pointed === null) {
      replace(this.#readout, h("span", { class: "quiet" }, "Point at a patch or a word to read its weights; click to keep it."));
      return;
    }
    const [from, to] = kept.direction === "out" ? [kept, { text: other, token: pointed }] : [{ text: other, token: pointed }, kept];
    const spreads = state.heads.slice(0, READ).map((head) => spread(this.store, state.layer, head, kept));
    replace(this.#readout,
      h("span", { class: "pair", "data-query": from.token, "data-key": to.token }, tokenText(piecesOf(this.store, from.text, from.token)), " → ", tokenText(piecesOf(this.store, to.text, to.token))),
      ...spreads.map((one) => this.#one(one, pointed, state)),
      state.heads.length > READ ? h("span", { class: "quiet" }, `and ${state.heads.length - READ} more`) : null);
  }

  #one(one: Spread, token: number, state: State): HTMLElement {
    const swatch = h("i", { class: "swatch" });
    swatch.style.setProperty("--head", headColour(one.place, state.dark).css);
    const at = one.positions ? one.positions.indexOf(token) : token;
    const weight = one.weights?.[at];
    const number = h("span", { class: "number" }, weight === undefined ? (one.pending ? "…" : "not recorded") : formatWeight(weight, 4));
    if (weight !== undefined) set(number, "data-value", weight.toPrecision(9));
    return h("span", { class: "one", "data-head": one.head }, swatch, `head ${one.head} `, number);
  }

  #strongest(heads: readonly HeadWeights[], text: number): number | null {
    const { from, to } = this.#seen(text);
    const tokens = this.store.page.texts[text]!.tokens.length;
    return peaksOf(heads, to > from ? from : 0, to > from ? to : tokens, 1)[0]?.token ?? null;
  }
}
