// The text along one side of the map: every token where there is room, else some with their positions.

import { h, tokenText } from "../dom";
import type { Piece } from "../tokens";

/** Pixels of a token's own row of text. */
const ROOM = 13;
/** Pixels between labels where not every token has one. */
const APART = { top: 26, left: 22 };
const LONGEST = 18;

export interface Label {
  /** Place along the axis, in tokens. */
  readonly at: number;
  readonly position: number;
}

/** Which tokens get a label when `scale` pixels show one token and those from `from` to `to` are in sight. */
export function labelled(from: number, to: number, scale: number, count: number, apart: number): number[] {
  const step = scale >= ROOM ? 1 : niceStep(apart / scale);
  const first = Math.max(0, Math.ceil(from / step - 0.999) * step);
  const found = [];
  for (let place = first; place < Math.min(to, count); place += step) found.push(place);
  return found;
}

/** The next of 1, 2, 5, 10, 20, 50, ... */
export function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return ([1, 2, 5, 10].find((factor) => factor * power >= least) ?? 10) * power;
}

export class Axis {
  readonly element: HTMLElement;
  tokenOf: (place: number) => { token: readonly Piece[]; position: number } = () => ({ token: [], position: 0 });

  constructor(readonly side: "top" | "left") {
    this.element = h("div", { class: `axis-text ${side}`, "aria-hidden": true });
  }

  /** `origin`: pixels from the side's begin to token 0; `scale`: pixels a token. */
  draw(origin: number, scale: number, count: number, chosen: number | null): void {
    const length = this.side === "top" ? this.element.clientWidth : this.element.clientHeight;
    const places = labelled(-origin / scale, (length - origin) / scale, scale, count, APART[this.side]);
    const all = scale >= ROOM;
    if (chosen !== null && !places.includes(chosen)) {
      const near = APART[this.side] / scale;
      const at = origin + (chosen + 0.5) * scale;
      if (at >= 0 && at <= length) places.splice(0, places.length, ...places.filter((place) => Math.abs(place - chosen) > near), chosen);
    }
    this.element.replaceChildren(...places.map((place) => {
      const { token, position } = this.tokenOf(place);
      const label = h("span", { class: place === chosen ? "label chosen" : "label" }, tokenText(token, LONGEST), all ? null : h("small", {}, String(position)));
      // The first and the last label would be cut in half at the edges.
      const middle = Math.min(Math.max(origin + (place + 0.5) * scale, 7), length - 7);
      label.style[this.side === "top" ? "left" : "top"] = `${middle.toFixed(1)}px`;
      return label;
    }));
  }
}
