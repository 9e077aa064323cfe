// Unpacks the viewer, which is most of a small page's bytes, and starts it.

import { inflate } from "./data";

const scope = globalThis as unknown as { multihead: { readonly ready: Promise<void> } };

async function start(): Promise<void> {
  const packed = document.getElementById("multihead-viewer")!;
  const script = document.createElement("script");
  try {
    script.textContent = new TextDecoder().decode(await inflate(packed.textContent, packed.dataset["coding"] ?? ""));
  } catch (error) {
    const complaint = document.createElement("p");
    complaint.setAttribute("role", "alert");
    complaint.className = "complaint";
    complaint.textContent = error instanceof Error ? error.message : String(error);
    document.getElementById("multihead")!.replaceChildren(complaint);
    throw error;
  }
  packed.remove();
  document.head.append(script);
  // The viewer has taken this object's place.
  await scope.multihead.ready;
}

scope.multihead = { ready: start() };
// The reader sees the complaint in the page; whoever awaits `ready` still gets the error.
scope.multihead.ready.catch(() => {});
