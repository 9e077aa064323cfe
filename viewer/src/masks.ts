// Masks: each node of the tree answers "may query i see key j".

import { arrayAt, PageError } from "./data";

/** `query` is the query's position in its text, `head` the head's place in the layer's list. */
export type Mask = (head: number, query: number, key: number) => boolean;

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
  return (head, query, key) => {
    const bit = head * headStride + query * queryStride + key * keyStride;
    // Not `bit >> 3`: a large mask has more than 2^31 bits.
    return ((values[Math.floor(bit / 8)]! >> (bit % 8)) & 1) === 1;
  };
}

export function compileMask(value: unknown, buffer: ArrayBuffer, shape: MaskShape, what = "mask"): Mask {
  const node = (value ?? {}) as Node;
  const { queryOffset } = shape;
  const child = (name: string): Mask => compileMask(node[name], buffer, shape, `${what}.${name}`);
  switch (node["kind"]) {
    case "causal":
      return (_, query, key) => key <= query + queryOffset;
    case "sliding_window": {
      const left = side(node, "left", what);
      const right = side(node, "right", what);
      return (_, query, key) => key >= query + queryOffset - left && key <= query + queryOffset + right;
    }
    case "padding": {
      const { values } = arrayAt(buffer, node["valid"], `${what}.valid`, "u8", [shape.keys]);
      return (_head, _query, key) => values[key] !== 0;
    }
    case "documents": {
      const ofQuery = arrayAt(buffer, node["query"], `${what}.query`, "i32", [shape.queries]).values;
      const ofKey = arrayAt(buffer, node["key"], `${what}.key`, "i32", [shape.keys]).values;
      return (_, query, key) => ofQuery[query] === ofKey[key];
    }
    case "prefix": {
      const length = side(node, "length", what);
      return (_head, _query, key) => key < length;
    }
    case "dense":
      return dense(node, buffer, shape, what);
    case "and": {
      const left = child("left");
      const right = child("right");
      return (head, query, key) => left(head, query, key) && right(head, query, key);
    }
    case "or": {
      const left = child("left");
      const right = child("right");
      return (head, query, key) => left(head, query, key) || right(head, query, key);
    }
    case "not": {
      const inner = child("mask");
      return (head, query, key) => !inner(head, query, key);
    }
    default:
      throw new PageError(`${what} has kind ${JSON.stringify(node["kind"])}, which this page's viewer does not know.`);
  }
}
