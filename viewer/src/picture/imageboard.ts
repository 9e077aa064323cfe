// A picture with its patches: the weights over it in the heads' colours, and the patches to choose from.

import { headColour } from "../colours";
import type { Picture } from "./read";
import { frame, h, replace, set } from "../dom";
import { formatWeight } from "../tokens";
import { blended, MOST_OPAQUE, patchAt, patchOf, shadeOf, stepped, tokenOf, type Patch } from "./geometry";
import { coloursOf, peaksOf, shortWeight, type Shown } from "./shown";

/** Pixels a patch from which on the grid is drawn. */
const GRID_FROM = 7;
/** Patches of a head that carry a number, and how far apart they are. */
const PEAKS = 3;
const APART = 1.5;

export class ImageBoard {
  readonly #canvas = h("canvas", { "aria-hidden": true });
  readonly #cell = h("div", { class: "patch", role: "gridcell" });
  readonly #row = h("div", { role: "row" }, this.#cell);
  readonly #numbers = h("div", { class: "patch-numbers", "aria-hidden": true });
  readonly #frame: HTMLElement;
  readonly element: HTMLElement;
  /** The token under the pointer, null beside the picture. */
  onpoint: (token: number | null) => void = () => {};
  onchoose: (token: number) => void = () => {};
  #cursor: Patch = { row: 0, column: 0 };
  #shown: Shown | null = null;

  constructor(readonly picture: Picture, readonly text: number, name: string) {
    const { rows, columns, width, height, src } = picture;
    this.#frame = h("div", {
      class: "picture", role: "grid", tabindex: 0, "aria-rowcount": rows, "aria-colcount": columns, "data-text": text,
      "aria-label": `${name}: ${rows} rows of ${columns} patches; arrows choose a patch`,
    }, h("img", { src, alt: "", draggable: "false" }), this.#canvas, this.#row, this.#numbers);
    this.#frame.style.setProperty("--aspect", String(width / height));
    this.#cell.id = `patch-${text}`;
    set(this.#frame, "aria-activedescendant", this.#cell.id);
    this.element = h("div", { class: "picture-board" }, this.#frame);
    const point = frame((token: number | null) => this.onpoint(token));
    this.#frame.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(this.#at(event)); });
    this.#frame.addEventListener("pointerleave", () => point(null));
    this.#frame.addEventListener("click", (event) => {
      const token = this.#at(event);
      if (token !== null) this.onchoose(token);
    });
    this.#frame.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#paint()).observe(this.#frame);
  }

  /** Shows the picture in its own colours, or in grey, where the heads' colours stand out. */
  grey(on: boolean): void {
    this.#frame.classList.toggle("grey", on);
  }

  show(shown: Shown): void {
    this.#shown = shown;
    const chosen = shown.own === null ? null : patchOf(this.picture, shown.own);
    if (chosen) this.#cursor = chosen;
    this.#place(chosen !== null);
    this.#number(shown);
    this.#paint();
  }

  #at(event: MouseEvent): number | null {
    const box = this.#frame.getBoundingClientRect();
    const patch = patchAt(this.picture, event.clientX - box.left, event.clientY - box.top, box.width, box.height);
    return patch && tokenOf(this.picture, patch);
  }

  #key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const chosen = this.#shown?.own ?? null;
    const inside = chosen !== null && patchOf(this.picture, chosen) !== null;
    const next = stepped(this.picture, this.#cursor, event.key, event.shiftKey);
    if (!next) return;
    this.onchoose(tokenOf(this.picture, inside ? next : this.#cursor));
    event.preventDefault();
    event.stopPropagation();
  }

  /** Puts the cell that people and readers of screens are at over its patch. */
  #place(chosen: boolean): void {
    const { rows, columns } = this.picture;
    const { row, column } = this.#cursor;
    const token = tokenOf(this.picture, this.#cursor);
    this.#cell.classList.toggle("chosen", chosen);
    set(this.#row, "aria-rowindex", row + 1);
    set(this.#cell, "aria-colindex", column + 1);
    set(this.#cell, "aria-selected", chosen);
    set(this.#cell, "data-token", token);
    const weights = this.#shown?.heads.map(({ head, weights }) => `, head ${head} ${formatWeight(weights[token]!)}`).join("") ?? "";
    set(this.#cell, "aria-label", `patch row ${row}, column ${column}${weights}`);
    const { style } = this.#cell;
    [style.left, style.top, style.width, style.height] = [column / columns, row / rows, 1 / columns, 1 / rows].map((share) => `${100 * share}%`) as [string, string, string, string];
  }

  /** Numbers on the strongest patches, none so near another that they would cover each other. */
  #number(shown: Shown): void {
    const { rows, columns, first } = this.picture;
    const placed: Patch[] = [];
    const labels = peaksOf(shown.heads, first, first + rows * columns, PEAKS).flatMap(({ head, place, token, weight }) => {
      const patch = patchOf(this.picture, token)!;
      const near = placed.some(({ row, column }) => Math.abs(row - patch.row) < APART && Math.abs(column - patch.column) < 2 * APART);
      if (near) return [];
      placed.push(patch);
      const label = h("span", { "data-token": token, "data-head": head, "data-weight": weight.toFixed(6) }, shortWeight(weight));
      label.style.left = `clamp(18px, ${(100 * (patch.column + 0.5)) / columns}%, calc(100% - 18px))`;
      label.style.top = `clamp(8px, ${(100 * (patch.row + 0.5)) / rows}%, calc(100% - 8px))`;
      label.style.setProperty("--head", headColour(place, shown.state.dark).css);
      return [label];
    });
    replace(this.#numbers, ...labels);
  }

  #paint(): void {
    const { clientWidth: width, clientHeight: height } = this.#frame;
    const shown = this.#shown;
    const scale = window.devicePixelRatio || 1;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    if (!shown || across === 0 || down === 0) return;
    Object.assign(this.#canvas, { width: across, height: down });
    const context = this.#canvas.getContext("2d");
    if (!context) return;
    const { rows, columns, first } = this.picture;
    const patches = shown.heads.map(({ weights }) => weights.subarray(first, first + rows * columns));
    const { shade } = shadeOf(shown.state.opacity, patches);
    const colours = coloursOf(shown);
    const edge = (i: number, count: number, whole: number) => Math.round((i * whole) / count);
    for (let i = 0; i < rows * columns; i++) {
      const [red, green, blue, opacity] = blended(colours, patches.map((one) => shade(one[i]!) / 255));
      if (opacity === 0) continue;
      const [row, column] = [Math.floor(i / columns), i % columns];
      const [left, top] = [edge(column, columns, across), edge(row, rows, down)];
      context.fillStyle = `rgb(${red} ${green} ${blue} / ${MOST_OPAQUE * opacity})`;
      context.fillRect(left, top, edge(column + 1, columns, across) - left, edge(row + 1, rows, down) - top);
    }
    if (Math.min(width / columns, height / rows) < GRID_FROM) return;
    context.fillStyle = "rgb(255 255 255 / 0.28)";
    for (let column = 1; column < columns; column++) context.fillRect(edge(column, columns, across), 0, 1, down);
    for (let row = 1; row < rows; row++) context.fillRect(0, edge(row, rows, down), across, 1);
  }
}
