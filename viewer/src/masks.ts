// Masks: each node of the tree answers "may query i see key j".

import { arrayAt, PageError } from "./data";

/** `query` is the query's position in its text, `head` the head's place in the layer's list. */
export interface Mask {
  (head: number, query: number, key: number): boolean;
  /** The keys that a query sees, `to` not included and not below `from`, where they lie side by side for every query; else null. */
  readonly range: ((head: number, query: number) => Range) | null;
}

interface Range {
  readonly from: number;
  readonly to: number;
}

export interface MaskShape {
  readonly heads: number;
  /** Length of the whole query text, also where only some queries were recorded. */
  readonly queries: number;
  readonly keys: number;
  readonly queryOffset: number;
}

type Node = Record<string, unknown>;

function side(node: Node, name: string, what: string): number {
  const value = node[name];
  if (value === null) return Infinity;
  if (typeof value !== "number") throw new PageError(`${what}.${name} is ${JSON.stringify(value)}, expected a number or null.`);
  return value;
}

/** A mask by its ranges: what they say is all there is to it. */
function ranged(keys: number, ends: (query: number) => readonly [number, number]): Mask {
  const range = (_head: number, query: number): Range => {
    const [from, to] = ends(query);
    const first = Math.min(keys, Math.max(0, from));
    return { from: first, to: Math.max(first, Math.min(keys, to)) };
  };
  const mask = (_head: number, query: number, key: number): boolean => {
    const [from, to] = ends(query);
    return key >= from && key < to;
  };
  return Object.assign(mask, { range });
}

const scattered = (mask: (head: number, query: number, key: number) => boolean): Mask => Object.assign(mask, { range: null });

function padding(valid: Uint8Array): Mask {
  let [from, to] = [0, valid.length];
  while (from < to && valid[from] === 0) from++;
  while (from < to && valid[to - 1] === 0) to--;
  if (valid.subarray(from, to).every((one) => one !== 0)) return ranged(valid.length, () => [from, to]);
  return scattered((_head, _query, key) => valid[key] !== 0);
}

function both(left: Mask, right: Mask): Mask {
  const mask = (head: number, query: number, key: number): boolean => left(head, query, key) && right(head, query, key);
  if (!left.range || !right.range) return scattered(mask);
  const [one, other] = [left.range, right.range];
  return Object.assign(mask, {
    range: (head: number, query: number): Range => {
      const [a, b] = [one(head, query), other(head, query)];
      const from = Math.max(a.from, b.from);
      return { from, to: Math.max(from, Math.min(a.to, b.to)) };
    },
  });
}

function dense(node: Node, buffer: ArrayBuffer, shape: MaskShape, what: string): Mask {
  const sizes = node["shape"];
  const full = [shape.heads, shape.queries, shape.keys];
  if (!Array.isArray(sizes) || sizes.length !== 3 || !sizes.every((size, axis) => size === 1 || size === full[axis])) {
    throw new PageError(`${what}.shape is ${JSON.stringify(sizes)}, expected [${full.join(", ")}] with 1 where it is broadcast.`);
  }
  const [heads, queries, keys] = sizes as [number, number, number];
  const bytes = Math.ceil((heads * queries * keys) / 8);
  const { values } = arrayAt(buffer, node["bits"], `${what}.bits`, "u8", [bytes]);
  const headStride = heads === 1 ? 0 : queries * keys;
  const queryStride = queries === 1 ? 0 : keys;
  const keyStride = keys === 1 ? 0 : 1;
  return scattered((head, query, key) => {
    const bit = head * headStride + query * queryStride + key * keyStride;
    // Not `bit >> 3`: a large mask has more than 2^31 bits.
    return ((values[Math.floor(bit / 8)]! >> (bit % 8)) & 1) === 1;
  });
}

export function compileMask(value: unknown, buffer: ArrayBuffer, shape: MaskShape, what = "mask"): Mask {
  const node = (value ?? {}) as Node;
  const { queryOffset } = shape;
  const child = (name: string): Mask => compileMask(node[name], buffer, shape, `${what}.${name}`);
  switch (node["kind"]) {
    case "causal":
      return ranged(shape.keys, (query) => [0, query + queryOffset + 1]);
    case "sliding_window": {
      const left = side(node, "left", what);
      const right = side(node, "right", what);
      return ranged(shape.keys, (query) => [query + queryOffset - left, query + queryOffset + right + 1]);
    }
    case "padding":
      return padding(arrayAt(buffer, node["valid"], `${what}.valid`, "u8", [shape.keys]).values);
    case "documents": {
      const ofQuery = arrayAt(buffer, node["query"], `${what}.query`, "i32", [shape.queries]).values;
      const ofKey = arrayAt(buffer, node["key"], `${what}.key`, "i32", [shape.keys]).values;
      return scattered((_, query, key) => ofQuery[query] === ofKey[key]);
    }
    case "prefix": {
      const length = side(node, "length", what);
      return ranged(shape.keys, () => [0, length]);
    }
    case "dense":
      return dense(node, buffer, shape, what);
    case "and":
      return both(child("left"), child("right"));
    case "or": {
      const left = child("left");
      const right = child("right");
      return scattered((head, query, key) => left(head, query, key) || right(head, query, key));
    }
    case "not": {
      const inner = child("mask");
      return scattered((head, query, key) => !inner(head, query, key));
    }
    default:
      throw new PageError(`${what} has kind ${JSON.stringify(node["kind"])}, which this page's viewer does not know.`);
  }
}
