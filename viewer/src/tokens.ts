// Tokens as a reader can see them: nothing invisible, nothing that disturbs the line it stands in.

export interface Piece {
  readonly text: string;
  /** A stand-in for something that cannot be seen. */
  readonly mark: boolean;
}

const NAMED: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "⇥", "\x7f": "␡", "\u00a0": "⍽", "\u00ad": "‹SHY›", "\ufeff": "‹BOM›" };
const INVISIBLE = /[\p{Cc}\p{Zl}\p{Zp}\p{Zs}\p{Cs}\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\u{e0000}-\u{e0fff}]/u;
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

export function display(token: string): Piece[] {
  if (token === "") return [{ text: "∅", mark: true }];
  const characters = [...token];
  const pieces: { text: string; mark: boolean }[] = [];
  const innerSpace = (i: number) =>
    characters[i] === " " && token.slice(0, i).trim() !== "" && characters.slice(i).join("").trim() !== "";
  characters.forEach((character, i) => {
    const wordStart = i === 0 && characters.length > 1 && (character === "Ġ" || character === "▁");
    const hidden = INVISIBLE.test(character) && !innerSpace(i) && !joinsEmoji(characters, i);
    const mark = hidden || wordStart;
    const text = hidden ? standIn(character) : character;
    const last = pieces.at(-1);
    if (last && last.mark === mark) last.text += text;
    else pieces.push({ text, mark });
  });
  return pieces;
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

/** [CLS], <s>, <|endoftext|>, ...: shown last where words are what people look for. Looks at the spelling only. */
export function isSpecial(token: string): boolean {
  return /^(\[[A-Z]+\d*\]|<[^<>\s]+>|<\|[^<>\s]+\|>)$/.test(token);
}

export function formatWeight(weight: number, digits = 3): string {
  const smallest = 10 ** -digits;
  return weight > 0 && weight < smallest / 2 ? `<${smallest.toFixed(digits)}` : weight.toFixed(digits);
}
