import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { PageError } from "../src/data";
import { parseDocument, readPage } from "../src/document";
import { FrameAddress, Kernel, surroundingWidget, type FromPage, type ToPage } from "../src/frame";
import { buildPage } from "./page";

/** A window that keeps what it is told. */
class Told {
  readonly told: FromPage[] = [];
  postMessage(message: FromPage): void {
    this.told.push(message);
  }
}

let widget: Told & Window;
let listeners: ((event: { source: unknown; data: unknown }) => void)[];
const hear = (data: ToPage | null | string, source: unknown = widget) => listeners.forEach((listener) => listener({ source, data }));
const bytes = new Float32Array([0.5]).buffer;

beforeEach(() => {
  widget = new Told() as unknown as Told & Window;
  listeners = [];
  vi.stubGlobal("addEventListener", (_: string, listener: (typeof listeners)[number]) => listeners.push(listener));
  vi.stubGlobal("window", { parent: widget, name: "multihead:#token=3" });
  vi.useFakeTimers();
});

afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

const askedId = (place: number) => (widget.told[place] as { id: number }).id;

describe("the kernel behind a frame", () => {
  it("answers a question by its number", async () => {
    const kernel = new Kernel(widget);
    const signal = new AbortController().signal;
    const [first, second] = [kernel.ask("row", { layer: "0" }, signal), kernel.ask("tile", {}, signal)];
    expect(widget.told).toMatchObject([{ multihead: "ask", name: "row", parameters: { layer: "0" } }, { name: "tile" }]);
    hear({ multihead: "answer", id: askedId(1), error: "There is none." });
    hear({ multihead: "answer", id: askedId(0), bytes });
    expect(await first).toBe(bytes);
    await expect(second).rejects.toThrow(new PageError("There is none."));
  });

  it("heeds nobody but the widget, and no answer that nobody waits for", async () => {
    const kernel = new Kernel(widget);
    const answer = vi.fn();
    void kernel.ask("row", {}, new AbortController().signal).then(answer, answer);
    hear({ multihead: "answer", id: askedId(0), bytes }, new Told());
    hear({ multihead: "answer", id: askedId(0) + 1, bytes });
    hear(null);
    hear("answer");
    await vi.advanceTimersByTimeAsync(10);
    expect(answer).not.toHaveBeenCalled();
  });

  it("takes back what nobody waits for", async () => {
    const kernel = new Kernel(widget);
    const controller = new AbortController();
    const asked = kernel.ask("row", {}, controller.signal);
    controller.abort(new Error("moved on"));
    await expect(asked).rejects.toThrow("moved on");
    expect(widget.told[1]).toEqual({ multihead: "drop", id: askedId(0) });
    await expect(kernel.ask("row", {}, controller.signal)).rejects.toThrow("moved on");
    expect(widget.told).toHaveLength(2);
  });

  it("tells when an answer takes long, and when it has come", () => {
    const kernel = new Kernel(widget);
    const slow = vi.fn();
    kernel.onslow = slow;
    const controller = new AbortController();
    kernel.ask("row", {}, new AbortController().signal).catch(() => {});
    kernel.ask("row", {}, controller.signal).catch(() => {});
    vi.advanceTimersByTime(3999);
    expect(slow).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1);
    expect(slow.mock.lastCall).toEqual([true]);
    controller.abort();
    hear({ multihead: "answer", id: askedId(0), bytes });
    expect(slow.mock.lastCall).toEqual([false]);
    vi.advanceTimersByTime(60_000);
    expect(slow.mock.lastCall).toEqual([false]);
  });

  it("counts so that no two views of a notebook count alike", () => {
    for (const kernel of [new Kernel(widget), new Kernel(widget)]) kernel.ask("row", {}, new AbortController().signal).catch(() => {});
    expect(Math.abs(askedId(0) - askedId(1))).toBeGreaterThan(1000);
    expect(Number.isSafeInteger(askedId(0))).toBe(true);
  });
});

describe("the widget around a page", () => {
  it("is known by the frame's name", () => {
    expect(surroundingWidget()).toBe(widget);
    vi.stubGlobal("window", { parent: widget, name: "other" });
    expect(surroundingWidget()).toBe(null);
    const alone: { name: string; parent?: unknown } = { name: "multihead:" };
    alone.parent = alone;
    vi.stubGlobal("window", alone);
    expect(surroundingWidget()).toBe(null);
  });

  it("keeps what is chosen", () => {
    const address = new FrameAddress(widget);
    expect(address.read()).toBe("#token=3");
    address.write("#token=4");
    expect(widget.told).toEqual([{ multihead: "state", hash: "#token=4" }]);
    const changed = vi.fn();
    address.onchange = changed;
    hear({ multihead: "state", hash: "#token=5" });
    hear({ multihead: "state", hash: "#token=6" }, new Told());
    expect(changed.mock.calls).toEqual([["#token=5"]]);
  });
});

describe("where a document's numbers come from", () => {
  const { document, buffer } = buildPage({});
  const read = (source: unknown) => readPage(parseDocument(JSON.stringify({ ...document, source })), buffer).source;

  it("is the page, the server or the notebook", () => {
    expect([null, { kind: "server" }, { kind: "frame" }].map(read)).toEqual(["page", "server", "frame"]);
    expect(() => read({ kind: "https://example.org" })).toThrow(/source\.kind is "https:\/\/example\.org", which this page's viewer does not know/);
  });
});
