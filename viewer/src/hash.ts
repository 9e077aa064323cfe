// What is chosen, in the address: a link opens on the same picture.

import type { Page, Start } from "./document";
import { isScale } from "./map/shade";
import { VIEWS, type State, type View } from "./state";
import { isSort } from "./traits";

function layerKey(page: Page, position: number): string {
  const { index } = page.layers[position]!;
  const shared = page.layers.filter((layer) => layer.index === index).length > 1;
  return shared ? `${index}@${position}` : String(index);
}

export function toHash(page: Page, state: State): string {
  const parts = new URLSearchParams({ layer: layerKey(page, state.layer), heads: state.heads.join("-"), text: String(state.text) });
  parts.set("token", state.token === null ? "none" : String(state.token));
  parts.set("view", state.view);
  parts.set("direction", state.direction);
  if (state.sort !== "") parts.set("sort", state.sort);
  if (state.marks) parts.set("marks", "1");
  if (state.view === "picture") parts.set("opacity", state.opacity);
  if (state.view === "map") {
    parts.set("scale", state.scale);
    parts.set("cells", state.pooling);
    if (state.key !== null) parts.set("key", String(state.key));
    if (state.at !== "") parts.set("at", state.at);
  }
  return `#${parts.toString().replaceAll("%40", "@").replaceAll("%2C", ",")}`;
}

const whole = (text: string | null): number | undefined => (text !== null && /^\d+$/.test(text) ? Number(text) : undefined);

/** Only what the hash says; anything it says wrongly is left out. */
export function fromHash(page: Page, hash: string): Partial<State> {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const found: { -readonly [K in keyof State]?: State[K] } = {};
  const [index, position] = (parts.get("layer") ?? "").split("@");
  const layer = position === undefined ? page.layers.findIndex((one) => String(one.index) === index) : (whole(position) ?? -1);
  if (page.layers[layer]) found.layer = layer;
  const heads = parts.get("heads");
  if (heads !== null && /^[\d-]*$/.test(heads)) found.heads = heads === "" ? [] : heads.split("-").map(Number);
  const text = whole(parts.get("text"));
  if (text !== undefined && page.texts[text]) found.text = text;
  const token = parts.get("token") === "none" ? null : whole(parts.get("token"));
  if (token !== undefined) found.token = token;
  const view = parts.get("view");
  if (VIEWS.includes(view as View)) found.view = view as View;
  const direction = parts.get("direction");
  if (direction === "out" || direction === "in") found.direction = direction;
  const sort = parts.get("sort");
  if (isSort(sort)) found.sort = sort;
  if (parts.has("marks")) found.marks = parts.get("marks") === "1";
  const scale = parts.get("scale");
  if (isScale(scale)) found.scale = scale;
  const opacity = parts.get("opacity");
  if (isScale(opacity)) found.opacity = opacity;
  const pooling = parts.get("cells");
  if (pooling === "mean" || pooling === "max") found.pooling = pooling;
  const key = whole(parts.get("key"));
  if (key !== undefined) found.key = key;
  const at = parts.get("at");
  if (at !== null && /^-?\d+(\.\d+)?(,-?\d+(\.\d+)?){2}$/.test(at)) found.at = at;
  return found;
}

export function fromStart(page: Page, start: Start): Partial<State> {
  const fits = page.layers.filter((layer) => layer.index === start.layer);
  const layer = fits.find((one) => one.queryText === start.text) ?? fits[0] ?? page.layers[0]!;
  return {
    layer: layer.position,
    text: start.text !== undefined && page.texts[start.text] ? start.text : layer.queryText,
    ...(Array.isArray(start.heads) ? { heads: start.heads } : { heads: layer.heads.slice(0, 1) }),
    ...(typeof start.token === "number" ? { token: start.token } : {}),
  };
}
