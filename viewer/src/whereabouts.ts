// Beside a long text: where in it the weight lies, from its first token at the top to its last at the bottom.

import { headColour } from "./colours";
import { h } from "./dom";
import { rowStart, type Shading } from "./shading";

/** Pixels around a click in which the strongest row is meant. */
const NEAR = 4;
const THINNEST = 2;
/** A row as strong as this is drawn in full colour, also where no row is stronger. */
const FULL = 0.05;
const FAINTEST = 0.02;

export interface Section {
  readonly tokens: number;
  /** null where the section's text is not the one that is looked at. */
  readonly shading: Shading | null;
  /** Tokens in sight, the end excluded. */
  readonly from: number;
  readonly to: number;
}

export class Whereabouts {
  readonly element = h("canvas", { class: "whereabouts", "aria-hidden": true, title: "where in the text the weight lies: click to go there" });
  onjump: (section: number, token: number) => void = () => {};
  #sections: readonly Section[] = [];
  /** Asked for once, since every change of the page would make the answer wait for a new layout. */
  #height = 0;

  constructor() {
    const jump = (event: PointerEvent) => this.#jump(event.offsetY);
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      jump(event);
      event.preventDefault();
    });
    this.element.addEventListener("pointermove", (event) => { if (this.element.hasPointerCapture(event.pointerId)) jump(event); });
  }

  resize(): void {
    this.#height = this.element.clientHeight;
  }

  /** Rows that a section of so many tokens has. */
  rows(tokens: number, all: number): number {
    return Math.max(1, Math.min(tokens, Math.round((this.#height * tokens) / Math.max(all, 1))));
  }

  /** `places`: the heads' places in their layer, by place among the spreads. */
  draw(sections: readonly Section[], places: readonly number[], dark: boolean): void {
    this.#sections = sections;
    const { clientWidth: width, clientHeight: height } = this.element;
    const scale = window.devicePixelRatio || 1;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.element.width !== across) this.element.width = across;
    if (this.element.height !== down) this.element.height = down;
    const context = this.element.getContext("2d");
    if (!context) return;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.element);
    context.fillStyle = style.getPropertyValue("--wash");
    context.fillRect(width / 2 - 5, 0, 10, height);
    this.#extents((section, top, size) => {
      const { shading, tokens } = section;
      if (shading) this.#rows(context, shading, top, size, width, (which) => headColour(places[which] ?? 0, dark).css);
      context.strokeStyle = style.getPropertyValue("--ink");
      const [y0, y1] = [section.from, section.to].map((token) => top + (token / Math.max(tokens, 1)) * size) as [number, number];
      if (section.to > section.from) context.strokeRect(width / 2 - 7.5, y0 + 0.5, 15, Math.max(y1 - y0 - 1, 3));
    });
  }

  #rows(context: CanvasRenderingContext2D, shading: Shading, top: number, size: number, width: number, colour: (which: number) => string): void {
    const strongest = shading.rowWeights.reduce((a, b) => Math.max(a, b), FULL);
    for (let row = 0; row < shading.rows; row++) {
      const share = shading.rowWeights[row]! / strongest;
      if (share < FAINTEST) continue;
      context.globalAlpha = Math.sqrt(share);
      context.fillStyle = colour(shading.rowWhich[row]!);
      context.fillRect(width / 2 - 5, top + (row / shading.rows) * size, 10, Math.max(size / shading.rows, THINNEST));
    }
    context.globalAlpha = 1;
  }

  #extents(each: (section: Section, top: number, size: number, place: number) => void): void {
    const all = this.#sections.reduce((sum, { tokens }) => sum + tokens, 0);
    let top = 0;
    this.#sections.forEach((section, place) => {
      const size = (this.element.clientHeight * section.tokens) / Math.max(all, 1);
      each(section, top, size, place);
      top += size;
    });
  }

  #jump(y: number): void {
    this.#extents((section, top, size, place) => {
      if (y < top || y >= top + size || section.tokens === 0) return;
      const { shading, tokens } = section;
      this.onjump(place, shading ? strongestNear(shading, (y - top) / size, NEAR / size) : Math.floor(((y - top) / size) * tokens));
    });
  }
}

/** The token with the largest weight around a place, both as shares of the text; the place itself where there is none. */
export function strongestNear(shading: Shading, share: number, near: number): number {
  const { rows, rowWeights, rowTokens, count } = shading;
  const at = Math.min(Math.floor(share * rows), rows - 1);
  const reach = Math.ceil(near * rows);
  let best = at;
  for (let row = Math.max(0, at - reach); row <= Math.min(rows - 1, at + reach); row++) if (rowWeights[row]! > rowWeights[best]!) best = row;
  return rowWeights[best]! > 0 ? rowTokens[best]! : Math.min(rowStart(at, count, rows), count - 1);
}
