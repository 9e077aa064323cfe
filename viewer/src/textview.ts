// One layer's heads over running text: a token is shaded by the weight between it and the chosen one.

import { headColour, tint } from "./colours";
import type { Text } from "./document";
import { frame, h, replace, set, tokenText } from "./dom";
import { focusOf, LONG_TEXT, type Direction, type Focus, type State, type Store } from "./state";
import { positionOf, spread } from "./targets";
import { formatWeight, plain } from "./tokens";

const FAINTEST = 0.01;

interface Block {
  readonly element: HTMLElement;
  readonly text: number;
  readonly spans: HTMLElement[];
}

interface Shade {
  weight: number;
  place: number;
  head: number;
}

export class TextView {
  readonly element = h("div", { class: "textview" });
  #blocks: Block[] = [];
  #shown = "";
  #painted: HTMLElement[] = [];

  constructor(readonly store: Store) {
    store.subscribe((state, before) => this.#update(state, before));
    const hover = frame((focus: Focus | null) => store.update({ hover: focus }));
    this.element.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") hover(this.#at(event)); });
    this.element.addEventListener("pointerleave", () => hover(null));
    this.element.addEventListener("click", (event) => {
      const focus = this.#at(event);
      if (focus) store.update({ text: focus.text, token: focus.token, hover: null });
    });
  }

  #at(event: Event): Focus | null {
    const span = event.target instanceof Element ? event.target.closest<HTMLElement>(".token") : null;
    if (!span) return null;
    const text = Number(span.dataset["text"]);
    return { text, token: Number(span.dataset["token"]), direction: this.#direction(text) };
  }

  #direction(text: number): Direction {
    const { queryText, keyText } = this.store.layer;
    return text !== queryText ? "in" : text !== keyText ? "out" : this.store.state.direction;
  }

  #update(state: State, before: State | null): void {
    this.element.hidden = state.view !== "text";
    if (this.element.hidden) return;
    const { layer } = this.store;
    const shown = `${layer.queryText}/${layer.keyText}`;
    if (shown !== this.#shown) this.#build();
    this.#shown = shown;
    this.#shade(state);
    const moved = !before || before.token !== state.token || before.text !== state.text || before.view !== state.view;
    if (moved && !state.hover && state.token !== null) this.#reveal(state.text, state.token);
  }

  #build(): void {
    const { page, layer } = this.store;
    const texts = layer.queryText === layer.keyText ? [layer.queryText] : [layer.queryText, layer.keyText];
    this.#blocks = texts.map((text) => this.#block(page.texts[text]!, text, texts.length > 1));
    this.#painted = [];
    replace(this.element, ...this.#blocks.map((block) => block.element));
  }

  #block(text: Text, place: number, named: boolean): Block {
    const spans = text.tokens.map((token, i) => h("span", {
      class: token.startsWith("##") ? "token joined" : "token", role: "option", id: `text-${place}-${i}`,
      "data-text": place, "data-token": i, "aria-label": plain(token),
    }, tokenText(token)));
    const flow = h("div", { class: text.tokens.length <= LONG_TEXT ? "flow short" : "flow", role: "listbox", tabindex: 0, "aria-label": `tokens: ${text.name}` }, ...spans);
    const role = place === this.store.layer.queryText ? "queries" : "keys";
    return { text: place, spans, element: h("div", { class: "block" }, named && h("h3", {}, `${text.name} (${role})`), flow) };
  }

  #shade(state: State): void {
    for (const span of this.#painted) {
      span.classList.remove("focused", "shaded", "dim");
      span.style.removeProperty("--tint");
      span.style.removeProperty("--head");
      set(span, "aria-selected", null);
      set(span, "data-weight", null);
      set(span, "data-heads", null);
      span.removeAttribute("title");
    }
    this.#painted = [];
    const focus = focusOf(state);
    if (!focus) return;
    const { layer } = this.store;
    const otherText = focus.direction === "out" ? layer.keyText : layer.queryText;
    const shades = this.#shades(state, focus);
    const spans = this.#blocks.find((block) => block.text === otherText)?.spans ?? [];
    for (const [token, shade] of shades) this.#paint(spans[token], shade, state);
    const own = this.#blocks.find((block) => block.text === focus.text);
    const span = own?.spans[focus.token];
    if (own && span) {
      span.classList.add("focused");
      set(span, "aria-selected", true);
      set(own.element.lastElementChild!, "aria-activedescendant", span.id);
      this.#painted.push(span);
    }
  }

  #paint(span: HTMLElement | undefined, shade: Shade, state: State): void {
    if (!span) return;
    const { css } = headColour(shade.place, state.dark);
    span.classList.add("shaded");
    span.style.setProperty("--tint", tint(css, 0.15 + 0.85 * Math.sqrt(shade.weight)));
    span.style.setProperty("--head", css);
    set(span, "data-weight", shade.weight.toFixed(6));
    if (state.heads.length > 1 && shade.weight >= 0.1) set(span, "data-heads", shade.head);
    span.title = `head ${shade.head}: ${formatWeight(shade.weight)}`;
    this.#painted.push(span);
  }

  /** For each token the chosen head with the largest weight. */
  #shades(state: State, focus: Focus): Map<number, Shade> {
    const shades = new Map<number, Shade>();
    for (const head of state.heads) {
      const one = spread(this.store, state.layer, head, focus);
      one.weights?.forEach((weight, i) => {
        if (weight < FAINTEST) return;
        const token = positionOf(one, i);
        const known = shades.get(token);
        if (!known || known.weight < weight) shades.set(token, { weight, place: one.place, head });
      });
    }
    return shades;
  }

  #reveal(text: number, token: number): void {
    const span = this.#blocks.find((block) => block.text === text)?.spans[token];
    if (!span) return;
    const top = span.offsetTop - this.element.offsetTop;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop + 8 || top + 40 > scrollTop + clientHeight) this.element.scrollTop = top - clientHeight / 3;
  }
}
