// Above the map: how numbers become colours, what a cell stands for, and the buttons that move.

import { h, replace, set } from "../dom";
import type { State, Store } from "../state";
import { FAINTEST } from "./shade";

interface Moves {
  zoom(factor: number): void;
  whole(): void;
}

const SCALES = [
  ["linear", "linear", "opacity is the number itself"],
  ["log", "logarithmic", "equal steps are equal factors"],
  ["rank", "rank", "opacity is the share of the whole map's cells that are weaker"],
] as const;
const POOLINGS = [
  ["mean", "mean", "a cell of several tokens shows the share of a query's attention that its keys get, on average"],
  ["max", "max", "a cell of several tokens shows its largest weight"],
] as const;

export class Legend {
  readonly #scales = choice("colour scale", SCALES, (scale) => this.store.update({ scale }));
  readonly #poolings = choice("cells of several tokens", POOLINGS, (pooling) => this.store.update({ pooling }));
  readonly #cell = h("span", { class: "cell-says" });
  readonly #ends = h("span", { class: "ramp-ends" });
  readonly element: HTMLElement;
  #level = 0;

  constructor(readonly store: Store, moves: Moves) {
    this.element = h("div", { class: "map-legend" }, this.#scales, this.#poolings,
      h("span", { class: "ramp", "aria-hidden": true }), this.#ends, this.#cell,
      h("span", { class: "segmented moves", role: "group", "aria-label": "zoom" },
        button("−", "zoom out (-)", () => moves.zoom(0.5)), button("+", "zoom in (+)", () => moves.zoom(2)), button("whole", "the whole map (0)", () => moves.whole())));
    store.subscribe((state) => this.#update(state));
  }

  /** What a cell is at this level. */
  say(level: number): void {
    this.#level = level;
    const side = 2 ** level;
    const what = this.store.state.pooling === "max" ? "its largest weight" : "the mean share of attention that its keys get";
    replace(this.#cell, level === 0 ? "a cell is one weight" : `a cell is ${side} × ${side} tokens: ${what}`);
  }

  #update(state: State): void {
    for (const [group, value] of [[this.#scales, state.scale], [this.#poolings, state.pooling]] as const) {
      for (const one of group.children) set(one, "aria-pressed", (one as HTMLElement).dataset["value"] === value);
    }
    replace(this.#ends, state.scale === "linear" ? "0 to 1" : state.scale === "log" ? `${FAINTEST} to 1, by powers of ten` : "weakest to strongest");
    this.say(this.#level);
  }
}

export function choice<T extends string>(label: string, entries: readonly (readonly [T, string, string])[], choose: (value: T) => void): HTMLElement {
  return h("span", { class: "segmented", role: "group", "aria-label": label },
    ...entries.map(([value, name, title]) => h("button", { type: "button", "data-value": value, title, onclick: () => choose(value) }, name)));
}

function button(name: string, label: string, act: () => void): HTMLElement {
  return h("button", { type: "button", "aria-label": label, title: label, onclick: act }, name);
}
