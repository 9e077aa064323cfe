// One layer's heads over running text: a token is shaded by the weight between it and the chosen one.

import { headColour, tint } from "./colours";
import { frame, h, replace, set } from "./dom";
import { Flow } from "./flow";
import { Shading } from "./shading";
import { focusOf, type Direction, type Focus, type State, type Store } from "./state";
import { Whereabouts, type Section } from "./whereabouts";
import { spread, type Spread } from "./targets";
import { formatWeight } from "./tokens";

const FAINTEST = 0.01;
/** From this weight on, a token says whose it is, where several heads are chosen. */
const NAMED = 0.1;
/** Pixels above and below the window in which text is made ready, and beyond which it goes. */
const AHEAD = 600;
const BEHIND = 1500;

export class TextView {
  readonly #scroller = h("div", { class: "scroller" });
  readonly #whereabouts = new Whereabouts();
  readonly element = h("div", { class: "textview" }, this.#scroller, this.#whereabouts.element);
  readonly #shading = new Shading();
  #flows: Flow[] = [];
  /** Spreads that are drawn, and the text that they fall on. */
  #spreads: Spread[] = [];
  #shaded = -1;
  #focus: Focus | null = null;
  #dressed: HTMLElement[] = [];
  #shown = "";
  #width = 0;
  readonly #drawSoon = frame(() => this.#drawWhereabouts());

  constructor(readonly store: Store) {
    new ResizeObserver(() => this.#resize()).observe(this.#scroller);
    const hover = frame((focus: Focus | null) => store.update({ hover: focus }));
    this.#scroller.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") hover(this.#at(event)); });
    this.#scroller.addEventListener("pointerleave", () => hover(null));
    this.#scroller.addEventListener("click", (event) => {
      const focus = this.#at(event);
      if (focus) store.update({ text: focus.text, token: focus.token, hover: null });
    });
    this.#scroller.addEventListener("scroll", frame(() => this.#look()), { passive: true });
    this.#whereabouts.onjump = (section, token) => this.#show(this.#flows[section]!, token, "middle");
    store.subscribe((state, before) => this.#update(state, before));
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
    const shown = `${layer.queryText}/${layer.keyText}/${state.marks}`;
    const built = shown !== this.#shown;
    if (built) this.#build(state);
    this.#shown = shown;
    this.#shade(state);
    const moved = !before || before.token !== state.token || before.text !== state.text || before.view !== state.view || built;
    const flow = this.#flows.find(({ place }) => place === state.text);
    if (moved && !state.hover && state.token !== null && flow) this.#show(flow, state.token, "inside");
    else if (built || before?.view !== state.view) this.#look();
  }

  #build(state: State): void {
    const { page, layer } = this.store;
    const texts = layer.queryText === layer.keyText ? [layer.queryText] : [layer.queryText, layer.keyText];
    this.#dressed = [];
    this.#flows = texts.map((text) => {
      const flow = new Flow(text, page.texts[text]!, state.marks);
      flow.dress = (span, token) => this.#dress(span, token, text);
      return flow;
    });
    replace(this.#scroller, ...this.#flows.map((flow) => {
      const role = flow.place === layer.queryText ? "queries" : "keys";
      return h("div", { class: "block" }, texts.length > 1 && h("h2", {}, `${page.texts[flow.place]!.name} (${role})`), flow.element);
    }));
    this.#scroller.scrollTop = 0;
    this.#width = 0;
    this.#resize();
  }

  /** Other widths, other heights; short lines hold their characters less evenly, which is measured soon. */
  #resize(): void {
    const width = this.#scroller.clientWidth;
    if (this.element.hidden || width === 0) return;
    if (width !== this.#width) {
      this.#width = width;
      this.#keeping(() => {
        for (const flow of this.#flows) {
          const { fontSize, lineHeight } = getComputedStyle(flow.element);
          flow.estimate(parseFloat(lineHeight), Math.max(width / (0.5 * parseFloat(fontSize)), 8));
        }
      });
    }
    this.#whereabouts.resize();
    this.#look();
    this.#shade(this.store.state);
  }

  /** Makes what is near the window, and empties what is far from it. */
  #look(): void {
    if (this.element.hidden) return;
    this.#keeping(() => {
      // What is made may be lower than it was taken for, so that more of the text comes near.
      while (this.#flows.some((flow) => this.#make(flow, this.#near(flow, AHEAD)))) { /* until nothing is missing */ }
      for (const flow of this.#flows) {
        const kept = new Set(this.#near(flow, BEHIND));
        for (const place of [...flow.filled]) if (!kept.has(place)) flow.empty(place);
      }
    });
    this.#dressed = this.#dressed.filter((span) => span.isConnected);
    this.#announce();
    this.#drawSoon();
  }

  /** Blocks in the window and so many pixels above and below it. */
  #near(flow: Flow, margin: number): number[] {
    const { top, bottom } = this.#scroller.getBoundingClientRect();
    const [first, last] = [firstBelow(flow, top - margin), firstBelow(flow, bottom + margin)];
    return Array.from({ length: Math.min(last, flow.blocks.length - 1) - first + 1 }, (_, i) => first + i);
  }

  /** Whether one of the blocks was not there. */
  #make(flow: Flow, places: readonly number[]): boolean {
    const missing = places.filter((place) => !flow.filled.has(place));
    for (const place of missing) flow.fill(place);
    flow.measure(missing);
    return missing.length > 0;
  }

  /** Does work that changes heights, and leaves the text in the window where it is. */
  #keeping(work: () => void): void {
    const top = this.#scroller.getBoundingClientRect().top;
    const anchor = this.#anchor(top);
    const before = anchor?.getBoundingClientRect().top ?? 0;
    work();
    if (anchor?.isConnected) this.#scroller.scrollTop += anchor.getBoundingClientRect().top - before;
  }

  /** The first token in the window, or its block where that is empty. */
  #anchor(top: number): HTMLElement | null {
    for (const flow of this.#flows) {
      const block = flow.blocks[firstBelow(flow, top)];
      if (!block || block.element.getBoundingClientRect().bottom <= top) continue;
      return block.spans?.find((span) => span.getBoundingClientRect().bottom > top) ?? block.element;
    }
    return null;
  }

  #shade(state: State): void {
    for (const span of this.#dressed) undress(span);
    this.#dressed = [];
    const focus = focusOf(state);
    this.#focus = focus;
    const { layer } = this.store;
    this.#spreads = focus ? state.heads.map((head) => spread(this.store, state.layer, head, focus)) : [];
    this.#shaded = focus ? (focus.direction === "out" ? layer.keyText : layer.queryText) : -1;
    set(this.element, "aria-busy", this.#spreads.some(({ pending }) => pending) || null);
    const flow = this.#flows.find(({ place }) => place === this.#shaded);
    if (flow) {
      const count = flow.reader.tokens.length;
      this.#shading.compute(this.#spreads, count, this.#whereabouts.rows(count, this.#count()));
    }
    for (const one of this.#flows) one.paint();
    this.#announce();
    this.#drawSoon();
  }

  #count(): number {
    return this.#flows.reduce((sum, { reader }) => sum + reader.tokens.length, 0);
  }

  #dress(span: HTMLElement, token: number, text: number): void {
    const { state } = this.store;
    const weight = text === this.#shaded ? this.#shading.weights[token]! : 0;
    const focused = this.#focus?.text === text && this.#focus.token === token;
    if (weight < FAINTEST && !focused) return;
    this.#dressed.push(span);
    if (weight >= FAINTEST) {
      const { head, place } = this.#spreads[this.#shading.which[token]!]!;
      const { css } = headColour(place, state.dark);
      span.classList.add("shaded");
      span.style.setProperty("--tint", tint(css, 0.15 + 0.85 * Math.sqrt(weight)));
      span.style.setProperty("--head", css);
      set(span, "data-weight", weight.toFixed(6));
      if (state.heads.length > 1 && weight >= NAMED) set(span, "data-heads", head);
      span.title = `head ${head}: ${formatWeight(weight)}`;
    }
    if (focused) {
      span.classList.add("focused");
      set(span, "aria-selected", true);
    }
  }

  /** Tells which token is chosen, while it is in the document. */
  #announce(): void {
    for (const flow of this.#flows) {
      const span = this.#focus?.text === flow.place ? flow.span(this.#focus.token) : null;
      set(flow.element, "aria-activedescendant", span?.id ?? null);
    }
  }

  #drawWhereabouts(): void {
    const { scrollHeight, clientHeight } = this.#scroller;
    this.element.classList.toggle("long", scrollHeight > clientHeight + 1);
    if (this.element.hidden || scrollHeight <= clientHeight + 1) return;
    const { top, bottom } = this.#scroller.getBoundingClientRect();
    const sections: Section[] = this.#flows.map((flow) => ({
      tokens: flow.reader.tokens.length, shading: flow.place === this.#shaded ? this.#shading : null, from: tokenBelow(flow, top), to: tokenBelow(flow, bottom),
    }));
    this.#whereabouts.draw(sections, this.#spreads.map(({ place }) => place), this.store.state.dark);
  }

  /** Scrolls to a token: to the middle, or only as far as it takes. */
  #show(flow: Flow, token: number, where: "inside" | "middle"): void {
    const place = flow.blockAt(token);
    const near = [place - 1, place, place + 1].filter((one) => one in flow.blocks);
    this.#keeping(() => this.#make(flow, near));
    const span = flow.span(token);
    if (!span) return;
    const [window, box] = [this.#scroller.getBoundingClientRect(), span.getBoundingClientRect()];
    const outside = box.top < window.top + 8 || box.top + 40 > window.bottom;
    if (outside || where === "middle") this.#scroller.scrollTop += box.top - window.top - window.height / 3;
    this.#look();
  }
}

function undress(span: HTMLElement): void {
  span.classList.remove("focused", "shaded");
  span.style.removeProperty("--tint");
  span.style.removeProperty("--head");
  set(span, "aria-selected", false);
  set(span, "data-weight", null);
  set(span, "data-heads", null);
  span.removeAttribute("title");
}

/** The first block that ends below a height of the window. */
function firstBelow(flow: Flow, y: number): number {
  let [low, high] = [0, flow.blocks.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (flow.blocks[middle]!.element.getBoundingClientRect().bottom > y) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The token at a height of the window, by its place in its block. */
function tokenBelow(flow: Flow, y: number): number {
  const block = flow.blocks[firstBelow(flow, y)];
  if (!block) return 0;
  const { top, height } = block.element.getBoundingClientRect();
  const share = height > 0 ? Math.min(Math.max((y - top) / height, 0), 1) : 0;
  return Math.round(block.from + share * (block.to - block.from));
}
