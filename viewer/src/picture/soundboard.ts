// The frames of a sound along the time: its spectrogram, the heads' weights as columns over it and as curves above it.

import { headColour } from "../colours";
import type { Sound } from "./read";
import { frame, h, replace, set } from "../dom";
import { blended, frameAt, MOST_OPAQUE, pixelPeaks, shadeOf, timeTicks } from "./geometry";
import { coloursOf, peaksOf, shortWeight, type Shown } from "./shown";

const PIXELS_A_TICK = 72;
/** Pixels that one label takes. */
const LABEL = 96;

export class SoundBoard {
  readonly #curves = h("canvas", { class: "curves", "aria-hidden": true });
  readonly #columns = h("canvas", { "aria-hidden": true });
  readonly #marker = h("div", { class: "frame-marker", hidden: true });
  readonly #axis = h("div", { class: "time-axis", "aria-hidden": true });
  readonly #numbers = h("div", { class: "frame-numbers", "aria-hidden": true });
  readonly #strip: HTMLElement;
  readonly element: HTMLElement;
  onpoint: (token: number | null) => void = () => {};
  onchoose: (token: number) => void = () => {};
  #cursor = 0;
  #shown: Shown | null = null;

  constructor(readonly sound: Sound, readonly frames: number, readonly text: number, name: string) {
    this.#strip = h("div", {
      class: "sound", role: "slider", tabindex: 0, "data-text": text, "aria-label": `${name}, a frame by its time`, "aria-orientation": "horizontal",
      "aria-valuemin": 0, "aria-valuemax": frames - 1, "aria-valuenow": 0, "aria-valuetext": this.#time(0),
    }, sound.src === null ? null : h("img", { src: sound.src, alt: "", draggable: "false" }), this.#columns, this.#marker);
    this.element = h("div", { class: "sound-board" }, this.#numbers, this.#curves, this.#strip, this.#axis);
    const point = frame((token: number | null) => this.onpoint(token));
    this.#strip.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(this.#at(event)); });
    this.#strip.addEventListener("pointerleave", () => point(null));
    this.#strip.addEventListener("click", (event) => this.onchoose(this.#at(event)));
    this.#strip.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#paint()).observe(this.#strip);
  }

  grey(on: boolean): void {
    this.#strip.classList.toggle("grey", on);
  }

  show(shown: Shown): void {
    this.#shown = shown;
    if (shown.own !== null) this.#cursor = shown.own;
    set(this.#strip, "aria-valuenow", this.#cursor);
    set(this.#strip, "aria-valuetext", this.#time(this.#cursor));
    set(this.#marker, "hidden", shown.own === null);
    this.#marker.style.left = `${(100 * this.#cursor) / this.frames}%`;
    this.#marker.style.width = `${100 / this.frames}%`;
    this.#paint();
  }

  #time(token: number): string {
    const { secondsPerFrame } = this.sound;
    return `${(token * secondsPerFrame).toFixed(Math.max(2, Math.ceil(-Math.log10(secondsPerFrame))))} s`;
  }

  #at(event: MouseEvent): number {
    const box = this.#strip.getBoundingClientRect();
    return frameAt(this.frames, event.clientX - box.left, box.width);
  }

  #key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 10 : 1;
    const moves: Record<string, number> = {
      ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -50, PageUp: 50, Home: -Infinity, End: Infinity,
    };
    const move = moves[event.key];
    if (move === undefined) return;
    const from = this.#shown?.own === null ? this.#cursor - Math.sign(move) : this.#cursor;
    this.onchoose(Math.min(Math.max(from + move, 0), this.frames - 1));
    event.preventDefault();
    event.stopPropagation();
  }

  #paint(): void {
    const shown = this.#shown;
    const { clientWidth: width } = this.#strip;
    if (!shown || width === 0) return;
    const scale = window.devicePixelRatio || 1;
    const across = Math.round(width * scale);
    const peaks = shown.heads.map(({ weights }) => pixelPeaks(weights, across));
    const { shade, largest } = shadeOf(shown.state.opacity, shown.heads.map(({ weights }) => weights));
    this.#drawColumns(shown, peaks, across, (value) => shade(value) / 255);
    this.#drawCurves(shown, peaks, across, scale, largest);
    this.#label(shown, width);
    const { secondsPerFrame } = this.sound;
    const seconds = this.frames * secondsPerFrame;
    replace(this.#axis, ...timeTicks(seconds, width / PIXELS_A_TICK).map(({ at, label }) => {
      const tick = h("span", {}, label);
      tick.style.left = `${(100 * at) / seconds}%`;
      return tick;
    }));
  }

  #drawColumns(shown: Shown, peaks: readonly Float64Array[], across: number, opacity: (value: number) => number): void {
    const down = this.#strip.clientHeight;
    Object.assign(this.#columns, { width: across, height: down });
    const context = this.#columns.getContext("2d");
    if (!context) return;
    const colours = coloursOf(shown);
    for (let x = 0; x < across; x++) {
      const [red, green, blue, alpha] = blended(colours, peaks.map((one) => opacity(one[x]!)));
      if (alpha === 0) continue;
      context.fillStyle = `rgb(${red} ${green} ${blue} / ${MOST_OPAQUE * alpha})`;
      context.fillRect(x, 0, 1, down);
    }
  }

  /** A head's weights over the time, its largest as high as the drawing. */
  #drawCurves(shown: Shown, peaks: readonly Float64Array[], across: number, scale: number, largest: number): void {
    const down = Math.round(this.#curves.clientHeight * scale);
    Object.assign(this.#curves, { width: across, height: down });
    const context = this.#curves.getContext("2d");
    if (!context || largest === 0) return;
    shown.heads.forEach(({ place }, which) => {
      const { css, dashed } = headColour(place, shown.state.dark);
      context.strokeStyle = css;
      context.lineWidth = 1.5 * scale;
      context.setLineDash(dashed ? [6 * scale, 4 * scale] : []);
      context.beginPath();
      peaks[which]!.forEach((weight, x) => context.lineTo(x + 0.5, down - scale - (weight / largest) * (down - 2 * scale)));
      context.stroke();
    });
  }

  /** Each head's strongest frame with its time and weight, none over another. */
  #label(shown: Shown, width: number): void {
    const rows: [number[], number[]] = [[], []];
    const labels = peaksOf(shown.heads, 0, this.frames, 1).flatMap(({ head, place, token, weight }) => {
      const x = Math.min(Math.max(((token + 0.5) / this.frames) * width, LABEL / 2), width - LABEL / 2);
      const row = rows.find((taken) => taken.every((other) => Math.abs(other - x) >= LABEL));
      if (!row) return [];
      row.push(x);
      const label = h("span", { "data-token": token, "data-head": head, "data-weight": weight.toFixed(6) }, `${this.#time(token)} `, h("b", {}, shortWeight(weight)));
      label.style.left = `${x}px`;
      label.classList.toggle("raised", row === rows[1]);
      label.style.setProperty("--head", headColour(place, shown.state.dark).css);
      return [label];
    });
    replace(this.#numbers, ...labels);
  }
}
