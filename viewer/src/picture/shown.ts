// What boards are told to show: the chosen heads' weights over their text, and which of its tokens is in focus.

import { headColour, rgb } from "../colours";
import type { Focus, State } from "../state";
import { positionOf, type Spread } from "../targets";

/** One head's weights by token of a text; 0 where a query was not recorded. */
export interface HeadWeights {
  readonly head: number;
  readonly place: number;
  readonly weights: Float64Array;
}

export interface Shown {
  readonly state: State;
  /** Empty where the weights fall on another text. */
  readonly heads: readonly HeadWeights[];
  /** The token of this text that is looked from, null where it stands elsewhere. */
  readonly own: number | null;
  readonly focus: Focus | null;
}

/** The strongest tokens of one head. */
export interface Peak {
  readonly head: number;
  readonly place: number;
  readonly token: number;
  readonly weight: number;
}

/** Peaks that carry a number, by head; below this share of a head's largest weight there are none. */
const PEAKS = 3;
const LEAST_SHARE = 0.5;
const LEAST = 0.001;

export function wholeWeights(spread: Spread, count: number): HeadWeights {
  const weights = new Float64Array(count);
  spread.weights?.forEach((weight, i) => { weights[positionOf(spread, i)] = weight; });
  return { head: spread.head, place: spread.place, weights };
}

export const coloursOf = (shown: Shown): (readonly [number, number, number])[] =>
  shown.heads.map(({ place }) => rgb(headColour(place, shown.state.dark).css));

/** Of each head the strongest tokens between `from` and `to`, the largest first. */
export function peaksOf(heads: readonly HeadWeights[], from: number, to: number): Peak[] {
  const found = heads.flatMap(({ head, place, weights }) => {
    const tokens = Array.from({ length: to - from }, (_, i) => from + i).sort((a, b) => weights[b]! - weights[a]! || a - b);
    const largest = weights[tokens[0] ?? 0] ?? 0;
    return tokens.slice(0, PEAKS).map((token) => ({ head, place, token, weight: weights[token]! }))
      .filter(({ weight }) => weight >= LEAST && weight >= LEAST_SHARE * largest);
  });
  return found.sort((a, b) => b.weight - a.weight);
}
