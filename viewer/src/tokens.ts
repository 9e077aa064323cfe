// Tokens as a reader can see them: nothing invisible, nothing that disturbs the line it stands in.

export interface Piece {
  readonly text: string;
  /** A stand-in for something that cannot be seen. */
  readonly mark: boolean;
}

const NAMED: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "⇥", "\x7f": "␡", "\u00a0": "⍽", "\u00ad": "‹SHY›", "\ufeff": "‹BOM›" };
const INVISIBLE = /[\p{Cc}\p{Zl}\p{Zp}\p{Zs}\p{Cs}\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]/u;
const COMBINING = /\p{M}/u;
const VARIATION = /[\ufe00-\ufe0f]/;
/** A letter keeps this many combining marks; a taller pile would cover the lines around it. */
const PILE = 5;
const EMOJI = /\p{Extended_Pictographic}|\p{Regional_Indicator}/u;

const hex = (character: string): string => `‹${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}›`;

function standIn(character: string): string {
  const code = character.codePointAt(0)!;
  return NAMED[character] ?? (code < 0x20 ? String.fromCharCode(0x2400 + code) : character === " " ? "␣" : hex(character));
}

/** Zero-width joiners hold an emoji together; everywhere else they are made visible. */
function joinsEmoji(characters: readonly string[], i: number): boolean {
  const before = characters[i - 1];
  const after = characters[i + 1];
  return characters[i] === "\u200d" && before !== undefined && after !== undefined
    && (EMOJI.test(before) || before === "\ufe0f") && EMOJI.test(after);
}

/** A token as it is spelled. */
export function display(token: string): Piece[] {
  if (token === "") return [{ text: "∅", mark: true }];
  const [first] = token;
  const wordStart = (first === "Ġ" || first === "▁") && token.length > 1;
  return wordStart ? joined([{ text: first, mark: true }, ...visible(token.slice(1))]) : visible(token);
}

/** Text with a stand-in for each character that could not be seen, or would reach out of the place it has. */
export function visible(text: string): Piece[] {
  const characters = [...text];
  const from = text.length - text.trimStart().length;
  const to = characters.length - (text.length - text.trimEnd().length);
  let pile = 0;
  return joined(characters.map((character, i) => {
    const combines = COMBINING.test(character);
    pile = combines ? pile + 1 : 0;
    const inner = character === " " && i >= from && i < to;
    if (INVISIBLE.test(character) && !inner && !joinsEmoji(characters, i)) return { text: standIn(character), mark: true };
    if (!combines) return { text: character, mark: false };
    const alone = pile === i + 1 || INVISIBLE.test(characters[i - pile]!);
    if (pile > PILE || (alone && VARIATION.test(character))) return { text: hex(character), mark: true };
    // A circle to stand on: else the mark would sit on whatever the page shows before the token.
    return alone && pile === 1 ? { text: `◌${character}`, mark: true } : { text: character, mark: alone };
  }));
}

/** Neighbours of one kind as one piece. */
export function joined(pieces: readonly Piece[]): Piece[] {
  const found: { text: string; mark: boolean }[] = [];
  for (const { text, mark } of pieces) {
    const last = found.at(-1);
    if (last && last.mark === mark) last.text += text;
    else found.push({ text, mark });
  }
  return found;
}

/** At most `longest` characters, the last one an ellipsis where something was left out. */
export function shorten(pieces: readonly Piece[], longest: number): Piece[] {
  if (pieces.reduce((sum, piece) => sum + [...piece.text].length, 0) <= longest) return [...pieces];
  const kept: Piece[] = [];
  let room = longest - 1;
  for (const piece of pieces) {
    const characters = [...piece.text].slice(0, room);
    room -= characters.length;
    if (characters.length > 0) kept.push({ text: characters.join(""), mark: piece.mark });
  }
  return [...kept, { text: "…", mark: true }];
}

export function plain(token: string): string {
  return display(token).map((piece) => piece.text).join("");
}

/** [CLS], <s>, <|endoftext|>, ...: shown last where words are what people look for. Looks at the spelling only; <0xE4> and <E4> are bytes. */
export function isSpecial(token: string): boolean {
  return !/^<(0x)?[\dA-F]{2}>$/.test(token) && /^(\[[A-Z]+\d*\]|<[^<>\s]+>|<\|[^<>\s]+\|>)$/.test(token);
}

export const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`;

export function formatWeight(weight: number, digits = 3): string {
  const smallest = 10 ** -digits;
  return weight > 0 && weight < smallest / 2 ? `<${smallest.toFixed(digits)}` : weight.toFixed(digits);
}
