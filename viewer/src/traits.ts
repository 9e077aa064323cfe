// What each head does, in numbers and in a word, and heads in the order of a number.

import { PageError } from "./data";
import type { Layer, Page } from "./document";

/** The numbers, by the names that the document has for them, and what a reader calls them. */
export const TRAITS = { entropy: "entropy", distance: "distance", sink: "sink", concentration: "concentration" } as const;
export type Trait = keyof typeof TRAITS;

export const MEANINGS: Record<Trait, string> = {
  entropy: "mean entropy of a query's weights, in nats: 0 when one key gets everything",
  distance: "mean distance between a query and what it looks at, in tokens",
  sink: "share of the attention that goes to the first token and to learned sinks",
  concentration: "Gini coefficient of the attention that keys receive: 0 when all receive the same, towards 1 when one receives everything",
};

/** Each label, a word for it where room is short, and when a head has it; multihead.recording.traits.LABELS, in words. */
export const KINDS: readonly (readonly [label: string, short: string, rule: string])[] = [
  ["previous token", "previous", "at least 0.5 of the attention goes to the token before"],
  ["next token", "next", "at least 0.5 goes to the token after"],
  ["itself", "itself", "at least 0.5 goes to the token itself"],
  ["first token", "first", "at least 0.5 goes to the text's first token"],
  ["delimiters", "delimiters", "at least 0.5 goes to special tokens and punctuation"],
  ["broad", "broad", "entropy is at least 0.8 of the largest there could be"],
  ["long-range", "long-range", "at least 0.5 goes 32 tokens away or farther"],
  ["", "", "none of these"],
];

export interface Traits {
  /** Of each head, in the layer's order; "" where no label fits. */
  readonly label: readonly string[];
  readonly numbers: Readonly<Record<Trait, readonly (number | null)[]>>;
}

const isNumber = (value: unknown): value is number | null => value === null || (typeof value === "number" && Number.isFinite(value));

/** A layer's traits; null in a document that has none. */
export function readTraits(value: unknown, what: string, heads: number): Traits | null {
  if (value === null || value === undefined) return null;
  const lists = (typeof value === "object" ? value : {}) as Record<string, unknown>;
  const read = <T>(name: string, test: (one: unknown) => one is T, expected: string): T[] => {
    const list = lists[name];
    if (Array.isArray(list) && list.length === heads && list.every(test)) return list;
    throw new PageError(`${what}.${name} is no list of ${expected}, one for each of ${heads} heads.`);
  };
  const numbers = Object.fromEntries(Object.keys(TRAITS).map((name) => [name, read(name, isNumber, "numbers or null")])) as Record<Trait, (number | null)[]>;
  return { label: read("label", (one): one is string => typeof one === "string", "labels"), numbers };
}

/** How heads are put in order: "" by layer and head; "entropy" the smallest first, "-entropy" the largest first. */
export type Sort = "" | Trait | `-${Trait}`;

export function isSort(text: string | null): text is Sort {
  return text !== null && (text === "" || Object.hasOwn(TRAITS, text.replace(/^-/, "")));
}

export function traitOf(sort: Sort): Trait | null {
  return sort === "" ? null : (sort.replace(/^-/, "") as Trait);
}

export interface Ranked {
  readonly layer: Layer;
  /** The head's place in its layer. */
  readonly place: number;
  readonly value: number | null;
}

/** Every head in the order that is asked for; those without the number come last, equal ones by layer and head. */
export function ranked(page: Page, sort: Sort): Ranked[] {
  const trait = traitOf(sort);
  const heads = page.layers.flatMap((layer) => layer.heads.map((_, place) => ({
    layer, place, value: trait === null ? null : (layer.traits?.numbers[trait][place] ?? null),
  })));
  if (trait === null) return heads;
  const sign = sort.startsWith("-") ? -1 : 1;
  return heads.sort((a, b) => a.value === null || b.value === null ? Number(a.value === null) - Number(b.value === null) : sign * (a.value - b.value));
}

/** Whether some head has the number. */
export function knows(page: Page, trait: Trait): boolean {
  return page.layers.some((layer) => layer.traits?.numbers[trait].some((value) => value !== null));
}

export function formatTrait(trait: Trait, value: number | null): string {
  if (value === null) return "–";
  return value.toFixed(trait !== "distance" ? 2 : value < 100 ? 1 : 0);
}
