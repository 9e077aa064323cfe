// What boards are told to show: the chosen heads' weights over their text, and which of its tokens is in focus.

import { headColour, rgb } from "../colours";
import { largest } from "../panel";
import type { Focus, State } from "../state";
import { positionOf, type Spread } from "../targets";
import { formatWeight } from "../tokens";

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

/** Below this share of a head's largest weight nothing carries a number. */
const LEAST_SHARE = 0.5;

export function wholeWeights(spread: Spread, count: number): HeadWeights {
  const weights = new Float64Array(count);
  spread.weights?.forEach((weight, i) => { weights[positionOf(spread, i)] = weight; });
  return { head: spread.head, place: spread.place, weights };
}

/** Small weights with one more digit. */
export const shortWeight = (weight: number): string => formatWeight(weight, weight < 0.095 ? 3 : 2);

export const coloursOf = (shown: Shown): (readonly [number, number, number])[] =>
  shown.heads.map(({ place }) => rgb(headColour(place, shown.state.dark).css));

/** Of each head at most `each` of the strongest tokens from `from` to `to`, the last not included; the largest first. */
export function peaksOf(heads: readonly HeadWeights[], from: number, to: number, each: number): Peak[] {
  const found = heads.flatMap(({ head, place, weights }) => {
    const peaks = largest(weights.subarray(from, to), each).map((i) => ({ head, place, token: from + i, weight: weights[from + i]! }));
    return peaks.filter(({ weight }) => weight >= LEAST_SHARE * peaks[0]!.weight);
  });
  return found.sort((a, b) => b.weight - a.weight);
}
