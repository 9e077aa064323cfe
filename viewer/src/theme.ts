// Light and dark: the system's choice until the reader makes another.

const KEPT = "multihead-theme";

export class Theme {
  dark: boolean;
  onchange: (dark: boolean) => void = () => {};

  constructor(readonly root: HTMLElement) {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const kept = recall();
    this.dark = kept === null ? system.matches : kept === "dark";
    this.#apply();
    system.addEventListener("change", () => {
      if (recall() === null) this.#set(system.matches);
    });
  }

  turn(): void {
    this.#set(!this.dark);
    try {
      localStorage.setItem(KEPT, this.dark ? "dark" : "light");
    } catch { /* pages without storage forget the choice */ }
  }

  #set(dark: boolean): void {
    this.dark = dark;
    this.#apply();
    this.onchange(dark);
  }

  #apply(): void {
    document.documentElement.dataset["theme"] = this.dark ? "dark" : "light";
  }
}

function recall(): string | null {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}
