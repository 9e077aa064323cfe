// All layers and heads as small maps, one cell each, rows layers, columns heads.

import { headColour, rgb } from "./colours";
import type { Layer } from "./document";
import { h, set } from "./dom";
import { layerLabel, type State, type Store } from "./state";

const LARGEST = 96;
/** Room around a map, as a share of its cell; style.css draws the frame at the same place. */
const MARGIN = 0.04;
const PITCH = { roomy: 40, dense: 16 };

/** Shrinks a map to at most LARGEST cells a side, by the mean. */
function shrink(layer: Layer, place: number): { values: Uint8Array; rows: number; columns: number } {
  const { values, rows, columns } = layer.overview;
  const map = values.subarray(place * rows * columns, (place + 1) * rows * columns);
  const R = Math.min(rows, LARGEST);
  const C = Math.min(columns, LARGEST);
  if (R === rows && C === columns) return { values: map, rows, columns };
  const sum = new Float64Array(R * C);
  const count = new Float64Array(R * C);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const to = Math.floor((row * R) / rows) * C + Math.floor((column * C) / columns);
      sum[to]! += map[row * columns + column]!;
      count[to]! += 1;
    }
  }
  return { values: Uint8Array.from(sum, (total, i) => total / count[i]!), rows: R, columns: C };
}

/** Draws maps into their places in a layer's strip: one canvas a layer, since a thousand canvases are slow to show. */
class Strip {
  readonly canvas = h("canvas", { "aria-hidden": true });
  readonly #map = document.createElement("canvas");
  #pitch = 0;

  constructor(readonly layer: Layer, readonly columns: number) {}

  size(pitch: number): void {
    this.#pitch = pitch;
    this.canvas.width = pitch * this.columns;
    this.canvas.height = pitch;
  }

  paint(place: number, column: number, colour: string): void {
    const { values, rows, columns } = shrink(this.layer, place);
    const context = this.canvas.getContext("2d");
    const source = this.#map.getContext("2d");
    if (!context || !source || rows * columns === 0) return;
    const image = source.createImageData(columns, rows);
    const [red, green, blue] = rgb(colour);
    for (let i = 0; i < values.length; i++) {
      image.data[4 * i] = red;
      image.data[4 * i + 1] = green;
      image.data[4 * i + 2] = blue;
      image.data[4 * i + 3] = values[i]!;
    }
    this.#map.width = columns;
    this.#map.height = rows;
    source.putImageData(image, 0, 0);
    const margin = Math.round(this.#pitch * MARGIN);
    const side = this.#pitch - 2 * margin;
    const left = column * this.#pitch + margin;
    context.imageSmoothingEnabled = Math.max(rows, columns) > 24;
    context.imageSmoothingQuality = "high";
    context.clearRect(left, margin, side, side);
    context.drawImage(this.#map, left, margin, side, side);
  }
}

interface Cell {
  readonly element: HTMLElement;
  readonly strip: Strip;
  readonly column: number;
  readonly layer: Layer;
  readonly head: number;
  readonly place: number;
  colour: string;
}

export class Overview {
  readonly element = h("div", { class: "overview", role: "grid", "aria-label": "All layers and heads" });
  onpoint: (layer: number, head: number | null) => void = () => {};
  readonly #cells = new Map<string, Cell>();
  readonly #columns: number[];

  constructor(readonly store: Store) {
    const { page } = store;
    this.#columns = [...new Set(page.layers.flatMap((layer) => layer.heads))].sort((a, b) => a - b);
    this.element.classList.toggle("dense", this.#columns.length > 16);
    this.element.style.setProperty("--columns", String(this.#columns.length));
    const numbers = this.#columns.map((head) => h("div", { role: "columnheader", class: "axis", "aria-label": `head ${head}` }, String(head)));
    this.element.append(h("div", { role: "row", class: "row" }, h("div", { role: "columnheader", class: "axis corner", "aria-label": "layer" }), ...numbers));
    page.layers.forEach((layer, i) => {
      const kind = this.#kind(layer);
      if (kind && (i === 0 || kind !== this.#kind(page.layers[i - 1]!))) this.element.append(h("div", { class: "kind", role: "presentation" }, kind));
      this.element.append(this.#row(layer));
    });
    this.element.addEventListener("click", (event) => this.#click(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("pointerover", (event) => this.#point(event.target));
    this.element.addEventListener("focusin", (event) => this.#point(event.target));
    this.element.addEventListener("pointerleave", () => this.onpoint(0, null));
    this.element.addEventListener("focusout", () => this.onpoint(0, null));
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

  #row(layer: Layer): HTMLElement {
    const label = layerLabel(this.store.page, layer);
    const strip = new Strip(layer, this.#columns.length);
    strip.size(Math.round((this.#columns.length > 16 ? PITCH.dense : PITCH.roomy) * (window.devicePixelRatio || 1)));
    const cells = this.#columns.map((head, column) => {
      const place = layer.heads.indexOf(head);
      if (place < 0) return h("div", { role: "gridcell", class: "absent", "aria-label": `layer ${label} head ${head}: not recorded` });
      const element = h("div", {
        role: "gridcell", class: "cell", tabindex: -1, "data-layer": layer.index, "data-layer-position": layer.position, "data-head": head,
        "aria-label": `layer ${label} head ${head}`,
      });
      this.#cells.set(`${layer.position}/${head}`, { element, strip, column, layer, head, place, colour: "" });
      return element;
    });
    // Placed by number: the canvas lies under all of them.
    cells.forEach((cell, column) => { cell.style.gridColumn = String(column + 2); });
    return h("div", { role: "row", class: "row" }, h("div", { role: "rowheader", class: "axis", "aria-label": `layer ${label}`, title: layer.name }, String(layer.index)), strip.canvas, ...cells);
  }

  #update(state: State, before: State | null): void {
    if (before && before.layer === state.layer && before.heads === state.heads && before.dark === state.dark) return;
    const rest = state.dark ? "#a9b6c4" : "#34475c";
    let tabStop: Cell | null = null;
    for (const cell of this.#cells.values()) {
      const here = cell.layer.position === state.layer;
      const chosen = here && state.heads.includes(cell.head);
      const colour = chosen ? headColour(cell.place, state.dark).css : rest;
      if (colour !== cell.colour) {
        cell.strip.paint(cell.place, cell.column, colour);
        cell.element.style.setProperty("--head", colour);
        cell.colour = colour;
      }
      set(cell.element, "aria-selected", chosen);
      cell.element.parentElement!.classList.toggle("chosen", here);
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
      : !here ? [...state.heads, cell.head]
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
