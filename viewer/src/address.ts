// Where the choices are kept, so that they can be found again.

export interface Address {
  read(): string;
  /** Keeps what is chosen; a `step` is one that the reader can take back, where there is a way back. */
  write(hash: string, step: boolean): void;
  /** Called when it was changed from elsewhere. */
  onchange: (hash: string) => void;
}

/** The browser's own address: back and forward are undo and redo. */
export class BrowserAddress implements Address {
  onchange: (hash: string) => void = () => {};

  constructor() {
    addEventListener("popstate", () => this.onchange(location.hash));
  }

  read(): string {
    return location.hash;
  }

  write(hash: string, step: boolean): void {
    // Some browsers refuse this when it is called often, and in pages that have no address.
    try {
      if (step) history.pushState(null, "", hash);
      else history.replaceState(null, "", hash);
    } catch { /* the page works without it */ }
  }
}
