// The page inside a notebook's widget: the widget names the frame after what was chosen, keeps that when it changes, and passes
// questions on to the kernel.

import type { Address } from "./address";
import { PageError } from "./data";
import type { Ask } from "./map/supply";

/** Begins the name of a widget's frame; the hash of what was chosen follows. */
export const NAMED = "multihead:";

/** After so long without an answer the reader is told. */
const SLOW_MS = 4000;

export type FromPage =
  | { readonly multihead: "ask"; readonly id: number; readonly name: string; readonly parameters: Readonly<Record<string, string>> }
  | { readonly multihead: "drop"; readonly id: number }
  | { readonly multihead: "state"; readonly hash: string };

export type ToPage =
  | { readonly multihead: "answer"; readonly id: number; readonly bytes: ArrayBuffer }
  | { readonly multihead: "answer"; readonly id: number; readonly error: string }
  | { readonly multihead: "state"; readonly hash: string };

/** A notebook's origin is not known here, and what is said is no secret from who embeds the page. */
function tell(widget: Window, message: FromPage): void {
  widget.postMessage(message, "*");
}

function listen(widget: Window, heard: (message: ToPage) => void): void {
  addEventListener("message", ({ source, data }: MessageEvent<ToPage | null>) => {
    if (source === widget && typeof data === "object" && data !== null) heard(data);
  });
}

/** The widget around this page, or null where there is none. */
export function surroundingWidget(): Window | null {
  return window.parent !== window && window.name.startsWith(NAMED) ? window.parent : null;
}

/** What was chosen, kept by the widget: a frame without an address has no other place for it. */
export class FrameAddress implements Address {
  onchange: (hash: string) => void = () => {};
  readonly #first = window.name.slice(NAMED.length);

  constructor(readonly widget: Window) {
    listen(widget, (message) => { if (message.multihead === "state") this.onchange(String(message.hash)); });
  }

  read(): string {
    return this.#first;
  }

  write(hash: string): void {
    tell(this.widget, { multihead: "state", hash });
  }
}

interface Waiting {
  resolve(bytes: ArrayBuffer): void;
  reject(error: unknown): void;
}

/** Asks the kernel for numbers, through the widget. */
export class Kernel {
  /** Called with true when an answer takes long, and with false when one comes. */
  onslow: (slow: boolean) => void = () => {};
  readonly #waiting = new Map<number, Waiting>();
  // Answers reach every view of a notebook, so no two views may count alike.
  #next = Math.floor(Math.random() * 2 ** 48);
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly widget: Window) {
    listen(widget, (message) => { if (message.multihead === "answer") this.#answered(message); });
  }

  readonly ask: Ask = (name, parameters, signal) => {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      this.#waiting.set(id, { resolve, reject });
      this.#timer ??= setTimeout(() => this.onslow(true), SLOW_MS);
      signal.addEventListener("abort", () => {
        if (!this.#waiting.delete(id)) return;
        if (this.#waiting.size === 0) this.#rest(false);
        tell(this.widget, { multihead: "drop", id });
        reject(signal.reason);
      }, { once: true });
      tell(this.widget, { multihead: "ask", id, name, parameters });
    });
  };

  #answered(answer: ToPage & { multihead: "answer" }): void {
    const asked = this.#waiting.get(answer.id);
    if (!this.#waiting.delete(answer.id)) return;
    this.#rest(true);
    if ("error" in answer) asked!.reject(new PageError(String(answer.error)));
    else asked!.resolve(answer.bytes);
  }

  #rest(answered: boolean): void {
    clearTimeout(this.#timer);
    this.#timer = this.#waiting.size > 0 ? setTimeout(() => this.onslow(true), SLOW_MS) : undefined;
    if (answered) this.onslow(false);
  }
}
