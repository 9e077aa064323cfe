// Rows, columns and partners of a page that is served: asked for when they are wanted, and remembered.

import { PageError } from "./data";
import type { Page } from "./document";
import type { Ask } from "./map/supply";
import type { Focus } from "./state";
import type { Partner, Spread } from "./targets";

/** The pointer passes over many tokens; only where it stays is anything asked. */
const REST_MS = 40;

/** Asks the server that sent the page, below its own address, which holds the secret. */
export function askServer(base: string): Ask {
  return async (path, parameters, signal) => {
    let response: Response;
    try {
      response = await fetch(`${base}${path}?${new URLSearchParams(parameters)}`, { signal, credentials: "omit" });
    } catch (error) {
      if (signal.aborted) throw error;
      throw new PageError("The server does not answer: it has been stopped, or the connection is gone.");
    }
    if (response.ok) return response.arrayBuffer();
    const told = await response.json().catch(() => null) as { error?: unknown } | null;
    throw new PageError(typeof told?.error === "string" ? told.error : `The server answered ${response.status}.`);
  };
}

const rest = (signal: AbortSignal): Promise<void> => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, REST_MS);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

export class Remote {
  /** Something has arrived, so whoever draws may ask again. */
  onarrive: () => void = () => {};
  onfail: (error: unknown) => void = () => {};
  #about = "";
  #wanted = new AbortController();

  constructor(readonly page: Page, readonly ask: Ask) {}

  /** Begins to ask for one head's weights about the focus; `arrived` gets them. Asking about another token ends it. */
  spread(layerPlace: number, head: number, focus: Focus, empty: Spread, arrived: (spread: Spread) => void): void {
    const about = JSON.stringify([layerPlace, focus]);
    if (about !== this.#about) {
      this.#wanted.abort();
      this.#wanted = new AbortController();
      this.#about = about;
    }
    const { signal } = this.#wanted;
    void this.#fetch(layerPlace, head, focus, empty, signal).then((spread) => {
      arrived(spread);
      this.onarrive();
    }).catch((error: unknown) => { if (!signal.aborted) this.onfail(error); });
  }

  async #fetch(layerPlace: number, head: number, focus: Focus, empty: Spread, signal: AbortSignal): Promise<Spread> {
    await rest(signal);
    const layer = this.page.layers[layerPlace]!;
    const out = focus.direction === "out";
    const common = { layer: String(layerPlace), heads: String(head) };
    const answer = new Float32Array(await (out
      ? this.ask("row", { ...common, query: String(focus.token) }, signal)
      : this.ask("column", { ...common, key: String(focus.token) }, signal)));
    const expected = out ? layer.keyCount : layer.queryCount;
    if (answer.length !== expected) throw new PageError(`A line of weights came with ${answer.length} of them, expected ${expected}.`);
    const weights = Float64Array.from(answer);
    return { ...empty, pending: false, weights, positions: out ? null : layer.queries, blind: out && weights.every((weight) => weight === 0) };
  }

  /** Every head's strongest partner; the returned function ends the asking. */
  partners(focus: Focus, done: (partners: Partner[]) => void): () => void {
    const controller = new AbortController();
    const { signal } = controller;
    const parameters = { text: String(focus.text), token: String(focus.token), direction: focus.direction };
    void rest(signal).then(() => this.ask("partners", parameters, signal)).then((answer) => {
      const found = JSON.parse(new TextDecoder().decode(answer)) as { layer: number; head: number; token: number; weight: number }[];
      const partners = found.filter(({ layer, weight }) => this.page.layers[layer] && weight > 0).map(({ layer, head, token, weight }) => {
        const { heads, keyText, queryText } = this.page.layers[layer]!;
        return { layer, head, place: heads.indexOf(head), text: focus.direction === "out" ? keyText : queryText, token, weight };
      });
      done(partners.sort((a, b) => b.weight - a.weight));
    }).catch((error: unknown) => { if (!signal.aborted) this.onfail(error); });
    return () => controller.abort();
  }
}
