// The notebook's widget: a frame with the page in it, and the messenger between that page and the kernel.

import { NAMED, type FromPage, type ToPage } from "./frame";

/** What anywidget gives of its model. */
interface Model {
  get(name: "page" | "state"): string;
  get(name: "height"): number;
  set(name: "state", value: string): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, callback: (...given: never[]) => void): void;
  off(event: string, callback: (...given: never[]) => void): void;
}

interface Answer {
  readonly id: number;
  readonly error?: string;
}

/** Shows the page in `el`; the returned function ends it. */
function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const box = document.createElement("div");
  const page = document.createElement("iframe");
  const asked = new Set<number>();
  // What the page and the model last agreed on.
  let known = model.get("state");
  page.setAttribute("sandbox", "allow-scripts");
  page.title = "What each head attends to";
  page.name = NAMED + known;
  page.srcdoc = model.get("page");
  Object.assign(box.style, { resize: "vertical", overflow: "hidden", minHeight: "160px", boxSizing: "border-box", paddingBottom: "14px" });
  Object.assign(page.style, { display: "block", width: "100%", height: "100%", border: "0" });

  const tell = (message: ToPage, move: Transferable[] = []) => page.contentWindow?.postMessage(message, "*", move);
  // A model whose kernel has ended may refuse.
  const send = (content: unknown): boolean => {
    try {
      model.send(content);
      return true;
    } catch {
      return false;
    }
  };
  const drop = (id: number) => { if (asked.delete(id)) send({ kind: "drop", id }); };
  const dropAll = () => asked.forEach(drop);

  const fromPage = ({ source, data }: MessageEvent<FromPage | null>) => {
    if (source === null || source !== page.contentWindow || typeof data !== "object" || data === null) return;
    if (data.multihead === "state" && typeof data.hash === "string") {
      known = data.hash;
      page.name = NAMED + known;
      model.set("state", known);
      model.save_changes();
    } else if (data.multihead === "ask" && Number.isSafeInteger(data.id)) {
      const { id, name, parameters } = data;
      if (send({ kind: "ask", id, name, parameters })) asked.add(id);
      else tell({ multihead: "answer", id, error: "The kernel is gone: run the cell again." });
    } else if (data.multihead === "drop" && Number.isSafeInteger(data.id)) drop(data.id);
  };
  const fromKernel = ({ id, error }: Answer, [bytes]: readonly DataView<ArrayBuffer>[]) => {
    if (!asked.delete(id)) return;
    if (bytes === undefined) {
      tell({ multihead: "answer", id, error: error ?? "The kernel answered nothing." });
      return;
    }
    const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    tell({ multihead: "answer", id, bytes: copy }, [copy]);
  };
  const toState = () => {
    const hash = model.get("state");
    if (hash === known) return;
    known = hash;
    page.name = NAMED + known;
    tell({ multihead: "state", hash });
  };
  const toHeight = () => { box.style.height = `${model.get("height")}px`; };

  addEventListener("message", fromPage);
  // A notebook that moves its cells about loads the frame anew.
  page.addEventListener("load", dropAll);
  model.on("msg:custom", fromKernel);
  model.on("change:state", toState);
  model.on("change:height", toHeight);
  toHeight();
  box.append(page);
  el.append(box);
  return () => {
    dropAll();
    removeEventListener("message", fromPage);
    model.off("msg:custom", fromKernel);
    model.off("change:state", toState);
    model.off("change:height", toHeight);
    box.remove();
  };
}

export default { render };
