// Text to ids and back, as `hgrn2.data.tokenizer` does it: bytes and characters.

/** The tokenizer that model.json describes. */
export function tokenizerOf(saved) {
  return saved.kind === "bytes" ? bytes(saved) : characters(saved);
}

function bytes(saved) {
  return {
    eot: saved.eot,
    encode: (text) => Array.from(new TextEncoder().encode(text.toWellFormed?.() ?? text)),
    decode: (id) => (id < 256 ? Uint8Array.of(id) : new Uint8Array(0)),
  };
}

function characters(saved) {
  const letters = Array.from(saved.characters);
  const ids = new Map(letters.map((letter, id) => [letter, id]));
  const encoder = new TextEncoder();
  return {
    eot: null,
    encode(text) {
      return Array.from(text, (letter, place) => {
        const id = ids.get(letter);
        if (id === undefined) {
          const code = letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
          throw new Error(`The model does not know the character “${letter}” (U+${code}) at position ${place}.`);
        }
        return id;
      });
    },
    decode: (id) => encoder.encode(letters[id]),
  };
}

/** Bytes to characters as they come; what a character lacks is held back. */
export class TextStream {
  constructor(pending = new Uint8Array(0)) {
    this.pending = pending;
  }

  /** The characters that these bytes complete. */
  push(more) {
    const all = new Uint8Array(this.pending.length + more.length);
    all.set(this.pending);
    all.set(more, this.pending.length);
    const end = all.length - unfinished(all);
    this.pending = all.slice(end);
    return new TextDecoder().decode(all.subarray(0, end));
  }
}

/** How many bytes at the end are the beginning of a character that is not whole. */
function unfinished(all) {
  for (let back = 1; back <= Math.min(3, all.length); back++) {
    const byte = all[all.length - back];
    if ((byte & 0xc0) === 0x80) continue;
    const length = byte >= 0xf0 && byte < 0xf5 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 1;
    return byte < 0xf5 && length > back ? back : 0;
  }
  return 0;
}
