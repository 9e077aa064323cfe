// Above the maps: in which order they stand, and what the kinds of heads are.

import { h, set } from "./dom";
import type { Store } from "./state";
import { isSort, KINDS, knows, MEANINGS, TRAITS, traitOf, type Trait } from "./traits";

interface Named {
  readonly layer: number;
  readonly head: number;
}

export class Sorting {
  readonly element = h("div", { class: "sorting" });
  /** Told which heads are of the kind that is pointed at. */
  onpoint: (heads: readonly Named[] | null) => void = () => {};
  readonly #select = h("select", { "aria-label": "order of the maps" }, h("option", { value: "" }, "layer and head"));
  readonly #turn = h("button", { type: "button", class: "turn" });

  constructor(readonly store: Store) {
    const { page } = store;
    set(this.element, "hidden", page.layers.every((layer) => layer.traits === null));
    for (const [trait, name] of Object.entries(TRAITS) as [Trait, string][]) {
      this.#select.append(h("option", { value: trait, disabled: !knows(page, trait), title: MEANINGS[trait] }, name));
    }
    this.#select.addEventListener("change", () => this.#choose(this.#select.value, true));
    this.#turn.addEventListener("click", () => this.#choose(traitOf(store.state.sort) ?? "", !store.state.sort.startsWith("-")));
    this.element.append(h("label", {}, h("span", { class: "caption" }, "order"), this.#select), this.#turn, this.#kinds());
    store.subscribe(({ sort }) => {
      const trait = traitOf(sort);
      this.#select.value = trait ?? "";
      set(this.#select, "title", trait && MEANINGS[trait]);
      const largest = sort.startsWith("-");
      set(this.#turn, "hidden", trait === null);
      this.#turn.textContent = largest ? "↓ largest first" : "↑ smallest first";
      set(this.#turn, "title", largest ? "turn round: smallest first" : "turn round: largest first");
    });
  }

  #choose(trait: string, largest: boolean): void {
    const sort = trait && `${largest ? "-" : ""}${trait}`;
    if (isSort(sort)) this.store.update({ sort });
  }

  #kinds(): HTMLElement {
    const heads = new Map<string, Named[]>(KINDS.map(([label]) => [label, []]));
    for (const layer of this.store.page.layers) {
      layer.traits?.label.forEach((label, place) => heads.get(label)?.push({ layer: layer.position, head: layer.heads[place]! }));
    }
    const rows = KINDS.map(([label, , rule]) => {
      const those = heads.get(label)!;
      return h("li", { "data-label": label, tabindex: those.length > 0 ? 0 : null, class: those.length > 0 ? null : "none" },
        h("b", {}, label || "mixed"), h("span", { class: "rule" }, rule), h("span", { class: "number" }, String(those.length)));
    });
    const list = h("ol", {}, ...rows);
    const point = (event: Event) => {
      const row = event.target instanceof Element ? event.target.closest<HTMLElement>("li") : null;
      const those = row ? heads.get(row.dataset["label"]!)! : [];
      this.onpoint(those.length > 0 ? those : null);
    };
    for (const kind of ["pointerover", "focusin"]) list.addEventListener(kind, point);
    for (const kind of ["pointerleave", "focusout"]) list.addEventListener(kind, () => this.onpoint(null));
    return h("details", { class: "kinds" }, h("summary", {}, "kinds of heads"),
      h("p", { class: "quiet" }, "A head is of the first kind that fits what it does with this text, by means over its queries. Another text may show another kind."),
      list);
  }
}
