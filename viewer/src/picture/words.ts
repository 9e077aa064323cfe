// Tokens that are no patches: a text of words beside a picture, and the class token, registers and words in a picture's own text.

import { headColour, tint } from "../colours";
import { frame, h, replace, set, tokenText } from "../dom";
import { Flow } from "../flow";
import { Shading } from "../shading";
import { piecesOf } from "../spelling";
import type { Store } from "../state";
import { plain, formatWeight } from "../tokens";
import type { HeadWeights, Shown } from "./shown";

const FAINTEST = 0.01;
/** Buttons at once; a longer row shows those around the chosen one. */
const SHOWN = 240;

/** For a token the largest weight and whose it is. */
function strongestOf(heads: readonly HeadWeights[], token: number): HeadWeights | null {
  return heads.reduce<HeadWeights | null>((best, one) => (best && best.weights[token]! >= one.weights[token]! ? best : one), null);
}

/** A text of words, made only where it is in sight. */
export class Words {
  readonly #flow: Flow;
  readonly #shading = new Shading();
  readonly element: HTMLElement;
  onpoint: (token: number | null) => void = () => {};
  onchoose: (token: number) => void = () => {};
  #shown: Shown | null = null;
  #revealed: number | null = null;

  constructor(store: Store, readonly text: number) {
    this.#flow = new Flow(text, store.page.texts[text]!, store.state.marks);
    this.#flow.dress = (span, token) => this.#dress(span, token);
    this.element = h("div", { class: "picture-words" }, this.#flow.element);
    const sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const place = this.#flow.blocks.findIndex(({ element }) => element === target);
        if (isIntersecting) this.#flow.fill(place);
      }
    }, { root: this.element, rootMargin: "400px 0px" });
    for (const { element } of this.#flow.blocks) sight.observe(element);
    this.#flow.fill(0);
    const at = (event: Event) => {
      const span = event.target instanceof Element ? event.target.closest<HTMLElement>(".token") : null;
      return span ? Number(span.dataset["token"]) : null;
    };
    const point = frame((token: number | null) => this.onpoint(token));
    this.#flow.element.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(at(event)); });
    this.#flow.element.addEventListener("pointerleave", () => point(null));
    this.#flow.element.addEventListener("click", (event) => {
      const token = at(event);
      if (token !== null) this.onchoose(token);
    });
    this.#flow.element.addEventListener("keydown", (event) => this.#key(event));
  }

  show(shown: Shown): void {
    this.#shown = shown;
    const count = this.#flow.reader.tokens.length;
    this.#shading.compute(shown.heads.map((one) => ({ ...NO_SPREAD, ...one })), count, Math.min(1, count));
    if (shown.own !== null) this.#flow.fill(this.#flow.blockAt(shown.own));
    this.#flow.paint();
    const span = shown.own === null ? null : this.#flow.span(shown.own);
    set(this.#flow.element, "aria-activedescendant", span?.id ?? null);
    if (span && !shown.state.hover && shown.own !== this.#revealed) this.#reveal(span);
    if (!shown.state.hover) this.#revealed = shown.own;
  }

  /** Scrolls the words and not the page. */
  #reveal(span: HTMLElement): void {
    const [window, box] = [this.element.getBoundingClientRect(), span.getBoundingClientRect()];
    if (box.top < window.top || box.bottom > window.bottom) this.element.scrollTop += box.top - window.top - window.height / 3;
  }

  #key(event: KeyboardEvent): void {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const own = this.#shown?.own ?? null;
    this.onchoose(own === null ? 0 : Math.min(Math.max(own + step, 0), this.#flow.reader.tokens.length - 1));
    event.preventDefault();
    event.stopPropagation();
  }

  #dress(span: HTMLElement, token: number): void {
    const shown = this.#shown;
    const weight = shown && shown.heads.length > 0 ? this.#shading.weights[token]! : 0;
    const shaded = shown !== null && weight >= FAINTEST;
    span.classList.toggle("shaded", shaded);
    span.classList.toggle("focused", shown?.own === token);
    set(span, "aria-selected", shown?.own === token);
    set(span, "data-weight", shaded ? weight.toFixed(6) : null);
    set(span, "title", null);
    if (!shaded) return;
    const { head, place } = shown.heads[this.#shading.which[token]!]!;
    const { css } = headColour(place, shown.state.dark);
    span.style.setProperty("--tint", tint(css, 0.15 + 0.85 * Math.sqrt(weight)));
    span.style.setProperty("--head", css);
    set(span, "title", `head ${head}: ${formatWeight(weight)}`);
  }
}

const NO_SPREAD = { pending: false, positions: null, blind: false, sink: null, entropy: null } as const;

/** The tokens of a picture's text that are no patches, as buttons. */
export class Beside {
  readonly element = h("div", { class: "beside", role: "group" });
  onpoint: (token: number | null) => void = () => {};
  onchoose: (token: number) => void = () => {};
  #made = "";

  constructor(readonly store: Store, readonly text: number, readonly tokens: readonly number[]) {
    set(this.element, "aria-label", "tokens beside the picture");
    this.element.hidden = tokens.length === 0;
    const at = (event: Event) => {
      const button = event.target instanceof Element ? event.target.closest<HTMLElement>("button") : null;
      return button ? Number(button.dataset["token"]) : null;
    };
    const point = frame((token: number | null) => this.onpoint(token));
    this.element.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(at(event)); });
    this.element.addEventListener("pointerleave", () => point(null));
    this.element.addEventListener("click", (event) => {
      const token = at(event);
      if (token !== null) this.onchoose(token);
    });
  }

  show(shown: Shown): void {
    const near = Math.max(0, this.tokens.findIndex((token) => token === shown.own));
    const from = Math.min(Math.max(0, near - SHOWN / 2), Math.max(0, this.tokens.length - SHOWN));
    const some = this.tokens.slice(from, from + SHOWN);
    const made = `${from}/${shown.state.marks}`;
    if (made !== this.#made) {
      replace(this.element, ...some.map((token) => h("button", { type: "button", class: "plain", "data-token": token, "data-text": this.text },
        tokenText(piecesOf(this.store, this.text, token)), h("small", {}))),
        some.length < this.tokens.length && h("small", {}, `${some.length} of ${this.tokens.length} tokens`));
    }
    this.#made = made;
    for (const button of this.element.querySelectorAll<HTMLElement>("button")) {
      const token = Number(button.dataset["token"]);
      const best = strongestOf(shown.heads, token);
      const weight = best?.weights[token] ?? 0;
      const { css } = headColour(best?.place ?? 0, shown.state.dark);
      const own = token === shown.own;
      set(button, "aria-pressed", own);
      button.classList.toggle("focused", own);
      button.style.setProperty("--tint", best && weight >= FAINTEST && !own ? tint(css, 0.1 + 0.9 * weight) : "transparent");
      set(button, "data-weight", best ? weight.toFixed(6) : null);
      set(button, "title", best ? `${plain(this.store.page.texts[this.text]!.tokens[token]!)}, head ${best.head}: ${formatWeight(weight)}` : null);
      replace(button.querySelector("small")!, best && weight >= FAINTEST ? formatWeight(weight, 2) : "");
    }
  }
}
