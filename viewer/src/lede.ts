// The picture in one sentence, and in a second one what other heads do with the same token.

import { headColour } from "./colours";
import { h, replace, tokenText } from "./dom";
import { groupByToken } from "./relations";
import { piecesOf } from "./spelling";
import { focusOf, layerLabel, tokenAt, type Focus, type State, type Store } from "./state";
import { positionOf, reads, spread, strongest, type Partner } from "./targets";
import { formatWeight, isSpecial, plain } from "./tokens";

const OTHERS = 4;
const SEVERAL = 3;
/** Characters of a token in a sentence. */
const LONGEST = 22;

const isWord = (token: string): boolean => !isSpecial(token) && /[\p{L}\p{N}]/u.test(token);

export class Lede {
  onpoint: (partners: readonly Partner[] | null) => void = () => {};
  #partners: readonly Partner[] = [];
  readonly #main = h("p", { class: "main", "aria-live": "polite" });
  readonly #others = h("p", { class: "others" });
  readonly element = h("section", { class: "lede", "aria-label": "In words" }, this.#main, this.#others);
  #about = "";

  constructor(readonly store: Store) {
    store.subscribe((state) => this.#update(state));
    const point = (event: Event) => {
      const button = event.target instanceof Element ? event.target.closest<HTMLElement>("button") : null;
      this.onpoint(button && this.#partners.filter((one) => one.layer === Number(button.dataset["layerPosition"]) && one.head === Number(button.dataset["head"])));
    };
    this.#others.addEventListener("pointerover", point);
    this.#others.addEventListener("focusin", point);
    for (const left of ["pointerleave", "focusout"]) this.#others.addEventListener(left, () => this.onpoint(null));
    this.#others.addEventListener("click", (event) => {
      const button = event.target instanceof Element ? event.target.closest<HTMLElement>("button") : null;
      if (button) this.store.update({ layer: Number(button.dataset["layerPosition"]), heads: [Number(button.dataset["head"])], hover: null });
    });
  }

  #update(state: State): void {
    const focus = focusOf(state);
    const about = JSON.stringify([focus, state.layer, state.heads, state.dark, state.marks, state.arrived]);
    if (about === this.#about) return;
    this.#about = about;
    replace(this.#main, ...this.#sentence(state, focus));
    this.#main.classList.toggle("several", state.heads.length > 1);
  }

  #word(text: number, token: number): HTMLElement {
    const whole = tokenAt(this.store.page, text, token);
    return h("b", { class: "word", title: plain(whole) }, tokenText(piecesOf(this.store, text, token), LONGEST));
  }

  #sentence(state: State, focus: Focus | null): (Node | string)[] {
    const { layer, page } = this.store;
    const where = `layer ${layerLabel(page, layer)}`;
    if (!focus) return ["Choose a token to see where each head looks."];
    const word = this.#word(focus.text, focus.token);
    if (!reads(layer, focus)) return ["In ", where, ", ", word, " is not read."];
    if (state.heads.length === 0) return ["Choose a head to see where it looks."];
    if (state.heads.some((head) => spread(this.store, state.layer, head, focus).pending)) return ["Asking what ", word, " has to do with the others …"];
    const found = state.heads.map((head) => this.#best(state, head, focus)).filter((one) => one !== null).sort((a, b) => b.weight - a.weight);
    if (found.length === 0) {
      const unrecorded = focus.direction === "out" && this.store.weights[state.layer]!.recordedRow(focus.token) === null;
      return [`In ${where}, `, word, unrecorded ? " was not recorded as a query." : focus.direction === "out" ? " sees no key." : " is not looked at."];
    }
    if (state.heads.length === 1) {
      const [one] = found;
      const target = this.#target(one!, state);
      const weight = h("b", { class: "weight" }, formatWeight(one!.weight, 2));
      const head = `${where} head ${one!.head}`;
      return focus.direction === "out"
        ? ["From ", word, `, ${head} sends `, weight, " of its attention to ", target, "."]
        : ["To ", word, `, ${head} sends most from `, target, ": ", weight, " of its attention."];
    }
    return [`In ${where}, `, word, focus.direction === "out" ? " looks at " : " is looked at by ", ...this.#several(found, state), "."];
  }

  /** Several heads, gathered by their target: "difficult (head 9, 0.48), [CLS] (heads 0 and 11, up to 0.49)". */
  #several(found: readonly Partner[], state: State): (Node | string)[] {
    const groups = groupByToken(this.store, found);
    const named = groups.slice(0, SEVERAL).flatMap(({ partners }, i) => {
      const [first] = partners;
      const heads = partners.map((one) => one.head).sort((a, b) => a - b);
      const which = heads.length === 1 ? `head ${heads[0]},` : heads.length <= 3 ? `heads ${heads.join(", ")}: up to` : `${heads.length} heads: up to`;
      const last = i > 0 && i === groups.length - 1;
      return [i === 0 ? "" : last ? " and " : ", ", this.#target(first!, state), ` (${which} ${formatWeight(first!.weight, 2)})`];
    });
    const rest = groups.length - SEVERAL;
    return rest > 0 ? [...named, ` and ${rest} more`] : named;
  }

  #best(state: State, head: number, focus: Focus): Partner | null {
    const one = spread(this.store, state.layer, head, focus);
    if (!one.weights || one.weights.length === 0) return null;
    const best = strongest(one.weights);
    const { layer } = this.store;
    const text = focus.direction === "out" ? layer.keyText : layer.queryText;
    const weight = one.weights[best]!;
    return weight > 0 ? { layer: state.layer, head, place: one.place, text, token: positionOf(one, best), weight } : null;
  }

  #target(one: Partner, state: State): HTMLElement {
    const word = this.#word(one.text, one.token);
    word.classList.add("target");
    word.style.setProperty("--head", headColour(one.place, state.dark).css);
    return word;
  }

  showOthers(focus: Focus | null, partners: readonly Partner[]): void {
    const { page, state } = this.store;
    this.#partners = partners;
    const chosen = (partner: Partner) => partner.layer === state.layer && state.heads.includes(partner.head);
    const taken = new Set(partners.filter(chosen).map((partner) => `${partner.text}/${partner.token}`));
    const groups = groupByToken(this.store, partners)
      .filter((group) => isWord(tokenAt(page, group.text, group.token)) && !taken.has(`${group.text}/${group.token}`)).slice(0, OTHERS);
    if (!focus || groups.length === 0) {
      replace(this.#others);
      return;
    }
    const spelling = (group: { text: number; token: number }) => tokenAt(page, group.text, group.token);
    const own = focus && tokenAt(page, focus.text, focus.token);
    const named = groups.map((group) => {
      const repeated = spelling(group) === own || groups.filter((other) => spelling(other) === spelling(group)).length > 1;
      const [first] = group.partners;
      const layer = page.layers[first!.layer]!;
      const button = h("button", { type: "button", "data-layer": layer.index, "data-layer-position": first!.layer, "data-head": first!.head, "data-token": first!.token, "data-weight": first!.weight.toFixed(6) },
        this.#word(group.text, group.token), " ", repeated && h("small", { class: "which" }, `token ${group.token} `), h("small", {}, `layer ${layerLabel(page, layer)}, head ${first!.head}: ${formatWeight(first!.weight, 2)}`));
      return button;
    });
    const label = focus.direction === "out" ? "Other heads send it elsewhere:" : "In other heads it is others that look:";
    replace(this.#others, h("span", { class: "label" }, label), ...named);
  }
}
