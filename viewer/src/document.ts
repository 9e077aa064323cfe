// The JSON document, checked once: what leaves this file has the shapes that the rest of the viewer relies on.

import type { Planes } from "./codec";
import { arrayAt, PageError } from "./data";
import { compileMask, type Mask } from "./masks";
import { readPicture, readSound, type Picture, type Sound } from "./picture/read";
import { readTraits, type Traits } from "./traits";

export interface Text {
  readonly name: string;
  readonly tokens: readonly string[];
  /** Tokens that were there before a model wrote the rest; null where nothing was written. */
  readonly prompt: number | null;
  /** The picture whose patches are tokens of this text. */
  readonly picture: Picture | null;
  /** The sound whose frames are the tokens of this text. */
  readonly sound: Sound | null;
}

/** A text's name, and which of its tokens were written. */
export function describe({ name, tokens, prompt }: Text): string {
  return prompt === null || prompt >= tokens.length ? name : `${name}, written from token ${prompt} on`;
}

export interface Layer {
  /** Place in the page's list of layers. */
  readonly position: number;
  /** Which of two recordings it belongs to; 0 where the page shows one. */
  readonly recording: number;
  /** The number shown to people; an encoder-decoder model has several layers 0. */
  readonly index: number;
  readonly name: string;
  readonly heads: readonly number[];
  readonly queryText: number;
  readonly keyText: number;
  /** Recorded query positions, or null for all of them in order. */
  readonly queries: readonly number[] | null;
  readonly queryCount: number;
  readonly keyCount: number;
  /** What weights are computed from; null where they come from elsewhere. */
  readonly qk: Factors | null;
  /** [heads, queryCount, keyCount], in 65535ths: weights that were given, with no queries and keys to compute them from. */
  readonly weights: Uint16Array | null;
  readonly softcap: number | null;
  readonly bias: { readonly values: Float32Array; readonly heads: number } | null;
  readonly mask: Mask | null;
  readonly sink: Float32Array | null;
  /** Beside weights that were given; null where each row's is computed. */
  readonly entropy: Float32Array | null;
  readonly overview: { readonly values: Uint8Array; readonly rows: number; readonly columns: number };
  readonly overviewPeak: Float32Array;
  readonly blocks: BlockMaps | null;
  readonly traits: Traits | null;
}

export interface Factors {
  readonly q: Planes;
  readonly k: Planes;
  readonly steps: Float64Array;
  readonly lse: Float64Array;
}

/** Of each square block of weights, as round(255 √·): the share of a query's attention that its keys get, and the largest weight. */
export interface BlockMaps {
  /** Tokens a side, a power of two. */
  readonly side: number;
  readonly rows: number;
  readonly columns: number;
  /** [heads, rows, columns] each. */
  readonly mean: Uint8Array;
  readonly max: Uint8Array;
}

export interface Start {
  readonly layer?: number;
  readonly heads?: readonly number[];
  readonly text?: number;
  readonly token?: number;
}

export interface Page {
  readonly title: string;
  readonly provenance: Readonly<Record<string, string>>;
  readonly accuracy: number;
  /** Where numbers come from: the page itself, the server that sent it, or the notebook whose frame it is in. */
  readonly source: "page" | "server" | "frame";
  readonly texts: readonly Text[];
  readonly start: Start;
  /** The names of two recordings that are compared; null where the page shows one. */
  readonly recordings: readonly [string, string] | null;
  readonly layers: readonly Layer[];
}

/** Of the page format. */
const VERSION = 2;

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isText = (value: unknown): value is string => typeof value === "string";

function need<T>(value: unknown, test: (value: unknown) => value is T, what: string, expected: string): T {
  if (test(value)) return value;
  const came = JSON.stringify(value) ?? "nothing";
  throw new PageError(`${what} is ${came.length > 60 ? `${came.slice(0, 57)}...` : came}, expected ${expected}.`);
}

const listOf = <T>(test: (value: unknown) => value is T) =>
  (value: unknown): value is T[] => Array.isArray(value) && value.every(test);

export function parseDocument(json: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    throw new PageError("The page's document is not JSON: the file seems to have been cut or changed.");
  }
  const document = need(value, isObject, "The page's document", "an object");
  if (document["format"] !== "multihead-page") {
    throw new PageError(`This is not a multihead page: its format is ${JSON.stringify(document["format"] ?? null)}.`);
  }
  if (document["version"] !== VERSION) {
    throw new PageError(`This page has format version ${JSON.stringify(document["version"] ?? null)}; its viewer reads version ${VERSION}. Write the page again with one version of multihead.`);
  }
  return document;
}

function readText(value: unknown, what: string): Text {
  const text = need(value, isObject, what, "an object");
  const tokens = need(text["tokens"], listOf(isText), `${what}.tokens`, "a list of texts");
  return {
    name: need(text["name"], isText, `${what}.name`, "text"),
    tokens,
    prompt: optional(text["prompt"], (count) => need(count, isCount, `${what}.prompt`, "null or a number of tokens")),
    picture: optional(text["picture"], (picture) => readPicture(picture, `${what}.picture`, tokens.length)),
    sound: optional(text["seconds_per_frame"], (seconds) => readSound(seconds, text["spectrogram"], what)),
  };
}

function planes(buffer: ArrayBuffer, reference: unknown, shift: unknown, what: string, heads: number, length: number): Planes {
  const { values, shape } = arrayAt(buffer, reference, what, "u8", [null, heads, null, length]);
  const [bytes, , dims] = shape as [number, number, number, number];
  if (bytes < 1 || bytes > 4) throw new PageError(`${what} has ${bytes} byte planes, expected 1 to 4.`);
  const shifts = arrayAt(buffer, shift, `${what}_shift`, "u8", [heads, length]).values;
  return { data: values, shifts, heads, dims, bytes, length };
}

function readQueries(value: unknown, what: string, length: number): number[] | null {
  if (value === null || value === undefined) return null;
  const inText = (position: unknown): position is number => isCount(position) && position < length;
  return need(value, listOf(inText), what, `null or positions below ${length}`);
}

function optional<T>(value: unknown, read: (value: unknown) => T): T | null {
  return value === null || value === undefined ? null : read(value);
}

function readLayer(value: unknown, position: number, texts: readonly Text[], buffer: ArrayBuffer): Layer {
  const what = `layers[${position}]`;
  const layer = need(value, isObject, what, "an object");
  const isTextIndex = (index: unknown): index is number => isCount(index) && index < texts.length;
  const oneText = `the index of one of ${texts.length} texts`;
  const queryText = need(layer["query_text"], isTextIndex, `${what}.query_text`, oneText);
  const keyText = need(layer["key_text"], isTextIndex, `${what}.key_text`, oneText);
  const heads = need(layer["heads"], listOf(isCount), `${what}.heads`, "a list of head numbers");
  if (heads.length === 0) throw new PageError(`${what}.heads is empty, expected at least one head.`);
  const wholeQueries = texts[queryText]!.tokens.length;
  const keyCount = texts[keyText]!.tokens.length;
  const queries = readQueries(layer["queries"], `${what}.queries`, wholeQueries);
  const queryCount = queries?.length ?? wholeQueries;
  const queryOffset = (layer["query_offset"] ?? 0) as number;
  need(queryOffset, Number.isSafeInteger as (v: unknown) => v is number, `${what}.query_offset`, "a whole number");
  const H = heads.length;
  const perQuery = (name: string) =>
    optional(layer[name], (reference) => arrayAt(buffer, reference, `${what}.${name}`, "f32", [H, queryCount]).values);
  const qk = optional(layer["q"], () => readFactors(layer, what, buffer, H, queryCount, keyCount));
  const overview = arrayAt(buffer, layer["overview"], `${what}.overview`, "u8", [H, null, null]);
  return {
    position,
    recording: need(layer["recording"] ?? 0, (value): value is number => value === 0 || value === 1, `${what}.recording`, "0 or 1"),
    index: need(layer["index"], isCount, `${what}.index`, "a layer number"),
    name: need(layer["name"], isText, `${what}.name`, "text"),
    heads, queryText, keyText, queries, queryCount, keyCount,
    qk,
    weights: optional(layer["weights"], (reference) => arrayAt(buffer, reference, `${what}.weights`, "u16", [H, queryCount, keyCount]).values),
    softcap: optional(layer["softcap"], (c) => need(c, (n): n is number => typeof n === "number" && n > 0, `${what}.softcap`, "null or a number above 0")),
    bias: optional(layer["bias"], (reference) => readBias(buffer, reference, `${what}.bias`, H, queryCount, keyCount)),
    mask: optional(layer["mask"], (mask) => compileMask(mask, buffer, { heads: H, queries: wholeQueries, keys: keyCount, queryOffset }, `${what}.mask`)),
    sink: perQuery("sink"),
    entropy: perQuery("entropy"),
    overview: { values: overview.values, rows: overview.shape[1]!, columns: overview.shape[2]! },
    traits: readTraits(layer["traits"], `${what}.traits`, H),
    overviewPeak: arrayAt(buffer, layer["overview_peak"], `${what}.overview_peak`, "f32", [H]).values,
    blocks: optional(layer["blocks"], (blocks) => readBlocks(blocks, `${what}.blocks`, buffer, H, queryCount, keyCount)),
  };
}

function readFactors(layer: Json, what: string, buffer: ArrayBuffer, heads: number, queries: number, keys: number): Factors {
  const q = planes(buffer, layer["q"], layer["q_shift"], `${what}.q`, heads, queries);
  const k = planes(buffer, layer["k"], layer["k_shift"], `${what}.k`, heads, keys);
  if (q.dims !== k.dims) throw new PageError(`${what}.q has ${q.dims} dimensions a head and ${what}.k has ${k.dims}: they must be equal.`);
  return {
    q, k,
    steps: arrayAt(buffer, layer["steps"], `${what}.steps`, "f64", [heads, q.dims]).values,
    lse: arrayAt(buffer, layer["lse"], `${what}.lse`, "f64", [heads, queries]).values,
  };
}

function readBlocks(value: unknown, what: string, buffer: ArrayBuffer, heads: number, queries: number, keys: number): BlockMaps {
  const blocks = need(value, isObject, what, "an object");
  const isPower = (side: unknown): side is number => isCount(side) && side > 0 && Number.isInteger(Math.log2(side));
  const side = need(blocks["side"], isPower, `${what}.side`, "a power of two");
  const [rows, columns] = [Math.ceil(queries / side), Math.ceil(keys / side)];
  const cells = (name: string) => arrayAt(buffer, blocks[name], `${what}.${name}`, "u8", [heads, rows, columns]).values;
  return { side, rows, columns, mean: cells("mean"), max: cells("max") };
}

function readBias(buffer: ArrayBuffer, reference: unknown, what: string, heads: number, queries: number, keys: number) {
  const { values, shape } = arrayAt(buffer, reference, what, "f32", [null, queries, keys]);
  const found = shape[0]!;
  if (found !== 1 && found !== heads) throw new PageError(`${what} has ${found} heads, expected 1 or ${heads}.`);
  return { values, heads: found };
}

function readSource(value: unknown): Page["source"] {
  if (value === null || value === undefined) return "page";
  const kind = need(value, isObject, "source", "null or an object")["kind"];
  if (kind !== "server" && kind !== "frame") throw new PageError(`source.kind is ${JSON.stringify(kind ?? null)}, which this page's viewer does not know.`);
  return kind;
}

export function readPage(document: Json, buffer: ArrayBuffer): Page {
  const texts = need(document["texts"], Array.isArray as (v: unknown) => v is unknown[], "texts", "a list")
    .map((text, i) => readText(text, `texts[${i}]`));
  const layers = need(document["layers"], Array.isArray as (v: unknown) => v is unknown[], "layers", "a list")
    .map((layer, i) => readLayer(layer, i, texts, buffer));
  if (layers.length === 0) throw new PageError("The page holds no layer, so there is nothing to draw.");
  const provenance = isObject(document["provenance"]) ? document["provenance"] : {};
  return {
    title: need(document["title"], isText, "title", "text"),
    provenance: Object.fromEntries(Object.entries(provenance).map(([key, value]) => [key, String(value)])),
    accuracy: typeof document["accuracy"] === "number" ? document["accuracy"] : NaN,
    source: readSource(document["source"]),
    texts,
    layers,
    recordings: optional(document["recordings"], (names) => need(names, (value): value is [string, string] => listOf(isText)(value) && value.length === 2, "recordings", "two names")),
    start: isObject(document["start"]) ? (document["start"] as Start) : {},
  };
}
