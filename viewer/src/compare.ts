// Two recordings on one page: which layer of the one stands against which of the other.

import type { Layer, Page } from "./document";

export interface Match {
  readonly first: Layer;
  readonly second: Layer;
  /** Why their difference cannot be drawn; null where it can. */
  readonly apart: string | null;
  /** Whether the two read the same tokens. */
  readonly sameTexts: boolean;
}

/** The layer and its partner in the other recording, the first recording's first; null on a page of one recording. */
export function matchOf(page: Page, layer: Layer): Match | null {
  if (page.recordings === null) return null;
  const others = page.layers.filter((one) => one.recording !== layer.recording);
  const own = page.layers.filter((one) => one.recording === layer.recording);
  const other = others.find((one) => one.index === layer.index && one.name === layer.name)
    ?? others.find((one) => one.index === layer.index && crosses(one) === crosses(layer))
    ?? others[own.indexOf(layer)];
  if (!other) return null;
  const [first, second] = layer.recording === 0 ? [layer, other] : [other, layer];
  return { first, second, apart: apart(first, second), sameTexts: sameTexts(page, first, second) };
}

const crosses = (layer: Layer): boolean => layer.queryText !== layer.keyText;

function apart(first: Layer, second: Layer): string | null {
  if (first.queryCount === second.queryCount && first.keyCount === second.keyCount) return null;
  return `No difference can be drawn: the first has ${first.queryCount} queries and ${first.keyCount} keys, the second ${second.queryCount} and ${second.keyCount}.`;
}

function sameTexts(page: Page, first: Layer, second: Layer): boolean {
  const same = (a: number, b: number) => {
    const [one, other] = [page.texts[a]!.tokens, page.texts[b]!.tokens];
    return one.length === other.length && one.every((token, i) => token === other[i]);
  };
  return same(first.queryText, second.queryText) && same(first.keyText, second.keyText);
}
