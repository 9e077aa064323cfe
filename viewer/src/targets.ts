// For a chosen token: the weights of the chosen heads, and each head's strongest partner over all layers.

import type { Layer } from "./document";
import type { Focus, Store } from "./state";

/** One head's weights between the focus and every token of the other side, by position in the text. */
export interface Spread {
  readonly head: number;
  readonly place: number;
  /** Still asked for: the store tells its listeners when it is there. */
  readonly pending: boolean;
  /** null where the query was not recorded, or while they are asked for. */
  readonly weights: Float64Array | null;
  /** Text positions of `weights`, or null when they are 0, 1, 2, ... */
  readonly positions: readonly number[] | null;
  readonly blind: boolean;
  readonly sink: number | null;
  readonly entropy: number | null;
}

export interface Partner {
  readonly layer: number;
  readonly head: number;
  readonly place: number;
  readonly text: number;
  readonly token: number;
  readonly weight: number;
}

const REMEMBERED = 128;
const NOTHING = { pending: false, weights: null, positions: null, blind: false, sink: null, entropy: null } as const;

export function reads(layer: Layer, focus: Focus): boolean {
  return (focus.direction === "out" ? layer.queryText : layer.keyText) === focus.text;
}

/** The lede, the picture and the panel ask for the same rows while the pointer moves. */
export function spread(store: Store, layerPlace: number, head: number, focus: Focus): Spread {
  const key = `${layerPlace},${head},${aboutKey(focus)}`;
  const known = store.spreads.get(key);
  if (known) return known;
  const found = store.remote ? askedSpread(store, key, layerPlace, head, focus) : computeSpread(store, layerPlace, head, focus);
  remember(store, key, found);
  return found;
}

function remember(store: Store, key: string, found: Spread): void {
  if (store.spreads.size >= REMEMBERED) store.spreads.clear();
  store.spreads.set(key, found);
}

/** A place for what is on its way; one that is given up is asked for again when it is wanted again. */
function askedSpread(store: Store, key: string, layerPlace: number, head: number, focus: Focus): Spread {
  const layer = store.page.layers[layerPlace]!;
  const place = layer.heads.indexOf(head);
  const nothing = { ...NOTHING, head, place };
  const recorded = focus.direction === "in" || store.weights[layerPlace]!.recordedRow(focus.token) !== null;
  if (place < 0 || !reads(layer, focus) || !recorded) return nothing;
  for (const [known, { pending }] of store.spreads) if (pending && !known.endsWith(aboutKey(focus))) store.spreads.delete(known);
  const empty = { ...nothing, pending: true };
  store.remote!.spread(layerPlace, head, focus, empty, (spread) => remember(store, key, spread));
  return empty;
}

const aboutKey = (focus: Focus): string => [focus.text, focus.token, focus.direction].join();

function computeSpread(store: Store, layerPlace: number, head: number, focus: Focus): Spread {
  const weights = store.weights[layerPlace]!;
  const { layer } = weights;
  const place = layer.heads.indexOf(head);
  const nothing = { ...NOTHING, head, place };
  if (place < 0 || !reads(layer, focus)) return nothing;
  if (focus.direction === "in") return { ...nothing, weights: weights.column(place, focus.token), positions: layer.queries };
  const row = weights.recordedRow(focus.token);
  if (row === null) return nothing;
  const found = weights.row(place, row);
  return {
    ...nothing,
    weights: found,
    blind: weights.blind(place, row),
    sink: layer.sink ? weights.sink(place, row) : null,
    entropy: weights.entropy(place, row, found),
  };
}

export const positionOf = (spread: Spread, i: number): number => spread.positions?.[i] ?? i;

export function strongest(weights: Float64Array): number {
  let best = 0;
  for (let i = 1; i < weights.length; i++) if (weights[i]! > weights[best]!) best = i;
  return best;
}

function* partnersByLayer(store: Store, focus: Focus): Generator<Partner[]> {
  for (const layer of store.page.layers) {
    if (!reads(layer, focus)) continue;
    const text = focus.direction === "out" ? layer.keyText : layer.queryText;
    const found: Partner[] = [];
    for (const [place, head] of layer.heads.entries()) {
      const one = computeSpread(store, layer.position, head, focus);
      if (!one.weights || one.weights.length === 0) continue;
      const best = strongest(one.weights);
      const weight = one.weights[best]!;
      if (weight > 0) found.push({ layer: layer.position, head, place, text, token: positionOf(one, best), weight });
    }
    yield found;
  }
}

const SLICE_MS = 12;

/** Calls `done` at once when the work fits in one slice, else later; the returned function cancels. */
export function findPartners(store: Store, focus: Focus, done: (partners: Partner[]) => void): () => void {
  if (store.remote) return store.remote.partners(focus, done);
  const work = partnersByLayer(store, focus);
  const all: Partner[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const slice = () => {
    const until = performance.now() + SLICE_MS;
    do {
      const next = work.next();
      if (next.done) {
        all.sort((a, b) => b.weight - a.weight);
        done(all);
        return;
      }
      all.push(...next.value);
    } while (performance.now() < until);
    timer = setTimeout(slice, 0);
  };
  slice();
  return () => clearTimeout(timer);
}
