// All layers and heads as small maps, one cell each: rows layers, columns heads; or in the order of a number.

import { headColour } from "./colours";
import type { Layer } from "./document";
import { h, replace, set } from "./dom";
import { Sorting } from "./sorting";
import { layerLabel, type State, type Store } from "./state";
import { MapStrip } from "./strips";
import { formatTrait, KINDS, ranked, TRAITS, traitOf, type Ranked, type Trait } from "./traits";

const PITCH = { roomy: 40, dense: 16, sorted: 48 };

interface Cell {
  readonly element: HTMLElement;
  readonly strip: MapStrip;
  readonly column: number;
  readonly layer: Layer;
  readonly head: number;
  readonly place: number;
  colour: string;
}

export class Overview {
  readonly element = h("div", { class: "overview", role: "grid", "aria-label": "All layers and heads" });
  readonly sorting: Sorting;
  onpoint: (layer: number, head: number | null) => void = () => {};
  /** By layer and head, in the order in which they stand. */
  readonly #cells = new Map<string, Cell>();
  /** Head numbers where rows are layers. */
  readonly #columns: number[];
  /** Maps in a row where they stand in another order; 0 where they do not. */
  #across = 0;

  constructor(readonly store: Store) {
    this.sorting = new Sorting(store);
    this.sorting.onpoint = (heads) => this.echo(heads);
    this.#columns = [...new Set(store.page.layers.flatMap((layer) => layer.heads))].sort((a, b) => a - b);
    this.element.addEventListener("click", (event) => this.#click(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("pointerover", (event) => this.#point(event.target));
    this.element.addEventListener("focusin", (event) => this.#point(event.target));
    this.element.addEventListener("pointerleave", () => this.onpoint(0, null));
    this.element.addEventListener("focusout", () => this.onpoint(0, null));
    new ResizeObserver(() => { if (this.#across > 0 && this.#across !== this.#fitting()) this.#rebuild(); }).observe(this.element);
    store.subscribe((state, before) => this.#update(state, before));
  }

  /** Marks cells, for instance those whose strongest target is under the pointer. */
  echo(partners: readonly { layer: number; head: number }[] | null): void {
    const keys = new Set(partners?.map(({ layer, head }) => `${layer}/${head}`));
    this.element.classList.toggle("echoing", partners !== null);
    for (const [key, cell] of this.#cells) cell.element.classList.toggle("echo", keys.has(key));
  }

  #kind(layer: Layer): string | null {
    const { texts } = this.store.page;
    if (texts.length < 2) return null;
    return `${texts[layer.queryText]!.name} → ${texts[layer.keyText]!.name}`;
  }

  /** Puts all maps in their places, unpainted. */
  #lay(): void {
    const trait = traitOf(this.store.state.sort);
    this.#cells.clear();
    this.#across = trait === null ? 0 : this.#fitting();
    this.element.classList.toggle("sorted", trait !== null);
    this.element.classList.toggle("dense", trait === null && this.#columns.length > 16);
    this.element.style.setProperty("--columns", String(trait === null ? this.#columns.length : this.#across));
    replace(this.element, ...(trait === null ? this.#layers() : this.#flow(trait)));
  }

  #layers(): HTMLElement[] {
    const { layers } = this.store.page;
    const numbers = this.#columns.map((head) => h("div", { role: "columnheader", class: "axis", "aria-label": `head ${head}` }, String(head)));
    const rows: HTMLElement[] = [h("div", { role: "row", class: "row" }, h("div", { role: "columnheader", class: "axis corner" }, h("span", { class: "unseen" }, "layer")), ...numbers)];
    layers.forEach((layer, i) => {
      const kind = this.#kind(layer);
      if (kind && (i === 0 || kind !== this.#kind(layers[i - 1]!))) rows.push(h("div", { class: "kind", role: "presentation" }, kind));
      rows.push(this.#row(layer));
    });
    return rows;
  }

  #row(layer: Layer): HTMLElement {
    const label = layerLabel(this.store.page, layer);
    const strip = new MapStrip(this.#columns.length, this.#columns.length > 16 ? PITCH.dense : PITCH.roomy);
    const cells = this.#columns.map((head, column) => {
      const place = layer.heads.indexOf(head);
      if (place < 0) return h("div", { role: "gridcell", class: "absent", "aria-label": `layer ${label} head ${head}: not recorded` });
      return this.#cell(layer, place, strip, column);
    });
    // Placed by number: the canvas lies under all of them.
    cells.forEach((cell, column) => { cell.style.gridColumn = String(column + 2); });
    return h("div", { role: "row", class: "row" }, h("div", { role: "rowheader", class: "axis", "aria-label": `layer ${label}`, title: layer.name }, String(layer.index)), strip.canvas, ...cells);
  }

  /** Every head in the order of a number, as many in a row as fit. */
  #flow(trait: Trait): HTMLElement[] {
    const order = ranked(this.store.page, this.store.state.sort);
    const rows: HTMLElement[] = [];
    for (let first = 0; first < order.length; first += this.#across) {
      const strip = new MapStrip(this.#across, PITCH.sorted);
      const cells = order.slice(first, first + this.#across).map((one, column) => this.#captioned(one, trait, strip, column));
      rows.push(h("div", { role: "row", class: "row" }, strip.canvas, ...cells));
    }
    return rows;
  }

  #captioned({ layer, place, value }: Ranked, trait: Trait, strip: MapStrip, column: number): HTMLElement {
    const cell = this.#cell(layer, place, strip, column);
    const number = formatTrait(trait, value);
    const short = KINDS.find(([label]) => label === layer.traits?.label[place])?.[1] ?? "";
    const whose = this.store.page.recordings ? `${"AB"[layer.recording]} ` : "";
    // What is written under the map is its name; the rest is said after it.
    set(cell, "title", `${cell.getAttribute("aria-label")}, ${TRAITS[trait]} ${value === null ? "not known" : number}`);
    set(cell, "aria-label", null);
    set(cell, "data-value", value);
    cell.style.gridColumn = String(column + 1);
    cell.append(h("span", { class: "under-map" }, h("b", {}, `${layer.index}.${layer.heads[place]}`), " ", h("span", {}, number), " ", h("i", {}, whose + short)));
    return cell;
  }

  #cell(layer: Layer, place: number, strip: MapStrip, column: number): HTMLElement {
    const head = layer.heads[place]!;
    const label = layer.traits?.label[place];
    const name = `layer ${layerLabel(this.store.page, layer)} head ${head}`;
    const element = h("div", {
      role: "gridcell", class: "cell", tabindex: -1, "data-layer": layer.index, "data-layer-position": layer.position, "data-head": head,
      "aria-label": label ? `${name}, ${label}` : name, title: label ? `${name}: ${label}` : null,
    });
    this.#cells.set(`${layer.position}/${head}`, { element, strip, column, layer, head, place, colour: "" });
    return element;
  }

  /** Maps that fit in a row. */
  #fitting(): number {
    return Math.max(1, Math.floor((this.element.clientWidth - 6) / (PITCH.sorted + 6)));
  }

  #rebuild(): void {
    const held = this.element.contains(document.activeElement);
    this.#lay();
    this.#paint(this.store.state);
    if (held) this.element.querySelector<HTMLElement>('.cell[tabindex="0"]')?.focus({ preventScroll: true });
  }

  #update(state: State, before: State | null): void {
    if (!before || before.sort !== state.sort) {
      this.#rebuild();
      this.onpoint(0, null);
    } else if (before.layer !== state.layer || before.heads !== state.heads || before.dark !== state.dark) this.#paint(state);
  }

  #paint(state: State): void {
    const rest = state.dark ? "#a9b6c4" : "#34475c";
    let tabStop: Cell | null = null;
    for (const cell of this.#cells.values()) {
      const here = cell.layer.position === state.layer;
      const chosen = here && state.heads.includes(cell.head);
      const colour = chosen ? headColour(cell.place, state.dark).css : rest;
      if (colour !== cell.colour) {
        cell.strip.paint(cell.layer, cell.place, cell.column, colour);
        cell.element.style.setProperty("--head", colour);
        cell.colour = colour;
      }
      set(cell.element, "aria-selected", chosen);
      cell.element.parentElement!.classList.toggle("chosen", here && this.#across === 0);
      set(cell.element, "tabindex", -1);
      if (chosen || (here && tabStop === null)) tabStop ??= cell;
    }
    if (tabStop) set(tabStop.element, "tabindex", 0);
  }

  #cellOf(target: EventTarget | null): Cell | null {
    const element = target instanceof Element ? target.closest<HTMLElement>(".cell") : null;
    return element ? (this.#cells.get(`${element.dataset["layerPosition"]}/${element.dataset["head"]}`) ?? null) : null;
  }

  #point(target: EventTarget | null): void {
    const cell = this.#cellOf(target);
    if (cell) this.onpoint(cell.layer.position, cell.head);
  }

  #click(event: MouseEvent): void {
    const cell = this.#cellOf(event.target);
    if (!cell) return;
    this.#choose(cell, event.shiftKey || event.ctrlKey || event.metaKey);
    cell.element.focus({ preventScroll: true });
  }

  #choose(cell: Cell, toggle: boolean): void {
    const { state } = this.store;
    const here = cell.layer.position === state.layer;
    const heads = !toggle ? [cell.head]
      : !here ? [...(this.#across > 0 ? [] : state.heads), cell.head]
      : state.heads.includes(cell.head) ? state.heads.filter((head) => head !== cell.head)
      : [...state.heads, cell.head];
    this.store.update({ layer: cell.layer.position, heads });
  }

  #key(event: KeyboardEvent): void {
    const cell = this.#cellOf(event.target);
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " || event.key === "Enter") {
      this.#choose(cell, event.key === " ");
      cell.element.focus();
    } else {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] }[event.key] ?? [0, 0];
      if (down === 0 && right === 0) return;
      const next = this.#neighbour(cell, down!, right!);
      if (next) {
        this.#choose(next, event.shiftKey && down === 0 && !this.store.state.heads.includes(next.head));
        next.element.focus();
      }
    }
    event.preventDefault();
    event.stopPropagation();
  }

  #neighbour(cell: Cell, down: number, right: number): Cell | null {
    if (this.#across > 0) {
      const cells = [...this.#cells.values()];
      const to = Math.min(Math.max(cells.indexOf(cell) + right, 0), cells.length - 1) + down * this.#across;
      return cells[to] ?? null;
    }
    if (down === 0) {
      const places = cell.layer.heads;
      const place = Math.min(Math.max(cell.place + right, 0), places.length - 1);
      return this.#cells.get(`${cell.layer.position}/${places[place]}`) ?? null;
    }
    const layer = this.store.page.layers[cell.layer.position + down];
    if (!layer) return null;
    const head = layer.heads.includes(cell.head) ? cell.head : layer.heads[0];
    return this.#cells.get(`${layer.position}/${head}`) ?? null;
  }
}
