// Layer, heads and view: the choices that stand above the picture.

import { headColour } from "./colours";
import { h, replace, set } from "./dom";
import { hasPicture, layerLabel, VIEWS, type State, type Store } from "./state";

export class Toolbar {
  readonly #layers = h("select", { "aria-label": "layer" });
  readonly #heads = h("div", { class: "heads", role: "group", "aria-label": "heads" });
  readonly #views = h("div", { class: "segmented", role: "group", "aria-label": "view" });
  readonly #directions = h("div", { class: "segmented", role: "group", "aria-label": "direction" });
  readonly #marks = h("button", { type: "button", class: "plain", "data-marks": "1", title: "tokens as their tokenizer spells them (m)" }, "marks");
  readonly element = h("div", { class: "toolbar" });
  #made = -1;

  constructor(readonly store: Store) {
    const { page } = store;
    this.#layers.append(...page.layers.map((layer) => h("option", { value: layer.position }, `layer ${layerLabel(page, layer)}`)));
    this.#layers.addEventListener("change", () => store.update({ layer: Number(this.#layers.value) }));
    this.#heads.addEventListener("click", (event) => this.#toggle(event));
    for (const view of VIEWS) {
      this.#views.append(h("button", { type: "button", "data-view": view, onclick: () => store.update({ view }) }, view));
    }
    for (const [direction, name] of [["out", "looks at"], ["in", "is looked at by"]] as const) {
      this.#directions.append(h("button", { type: "button", "data-direction": direction, onclick: () => store.update({ direction }) }, name));
    }
    this.#marks.addEventListener("click", () => store.update({ marks: !store.state.marks }));
    this.element.append(this.#layers, this.#views, this.#directions, this.#marks, this.#heads);
    store.subscribe((state) => this.#update(state));
  }

  #toggle(event: MouseEvent): void {
    const button = event.target instanceof Element ? event.target.closest<HTMLElement>("button") : null;
    if (!button) return;
    if (button.dataset["all"]) this.store.toggleAll();
    else this.store.toggleHead(Number(button.dataset["head"]));
  }

  #update(state: State): void {
    const { layer } = this.store;
    this.#layers.value = String(state.layer);
    if (this.#made !== state.layer) {
      replace(this.#heads, h("span", { class: "caption" }, "heads"),
        ...layer.heads.map((head) => h("button", { type: "button", class: "head", "data-head": head, "data-layer": layer.index, "aria-label": `head ${head}` }, String(head))),
        h("button", { type: "button", class: "all", "data-all": "1" }, "all"));
      this.#made = state.layer;
    }
    for (const button of this.#heads.querySelectorAll<HTMLElement>("[data-head]")) {
      const head = Number(button.dataset["head"]);
      set(button, "aria-pressed", state.heads.includes(head));
      const { css, dashed } = headColour(layer.heads.indexOf(head), state.dark);
      button.style.setProperty("--head", css);
      button.classList.toggle("dashed", dashed);
    }
    set(this.#heads.lastElementChild!, "aria-pressed", state.heads.length === layer.heads.length);
    for (const button of this.#views.children) {
      const { view } = (button as HTMLElement).dataset;
      set(button, "aria-pressed", view === state.view);
      set(button, "hidden", view === "picture" && !hasPicture(this.store.page, layer));
    }
    for (const button of this.#directions.children) set(button, "aria-pressed", (button as HTMLElement).dataset["direction"] === state.direction);
    set(this.#marks, "aria-pressed", state.marks);
    this.#directions.hidden = layer.queryText !== layer.keyText;
  }
}
