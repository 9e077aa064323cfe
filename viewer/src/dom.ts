// Elements from code. Tokens only ever enter the page as text nodes.

import { shorten, type Piece } from "./tokens";

type Child = Node | string | null | false | undefined;
type Props = Record<string, string | number | boolean | null | undefined | ((event: never) => void)>;

/** h("button", { class: "x", onclick: f, "aria-pressed": true }, "text") */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener);
    else set(element, name, value);
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== false && child !== undefined));
  return element;
}

export function set(element: Element, name: string, value: string | number | boolean | null | undefined): void {
  const aria = name.startsWith("aria-");
  if (value === null || value === undefined || (value === false && !aria)) element.removeAttribute(name);
  else {
    const text = value === true && !aria ? "" : String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** A token, isolated so that right-to-left text and overrides stay inside it. */
export function tokenText(pieces: readonly Piece[], longest = Infinity): HTMLElement {
  return h("bdi", { class: "token-text" }, ...nodesOf(shorten(pieces, longest)));
}

export function nodesOf(pieces: readonly Piece[]): (Node | string)[] {
  return pieces.map((piece) => (piece.mark ? h("i", { class: "mark" }, piece.text) : piece.text));
}

export function replace(element: Element, ...children: Child[]): void {
  element.replaceChildren(...children.filter((child): child is Node | string => child !== null && child !== false && child !== undefined));
}

export function frame<A extends unknown[]>(work: (...args: A) => void): (...args: A) => void {
  let latest: A | null = null;
  return (...args) => {
    const waiting = latest !== null;
    latest = args;
    if (waiting) return;
    requestAnimationFrame(() => {
      const now = latest!;
      latest = null;
      work(...now);
    });
  };
}
