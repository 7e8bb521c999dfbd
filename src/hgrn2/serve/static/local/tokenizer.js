// Text to ids and back, as `hgrn2.data` does it: bytes, characters, and byte-level BPE.

/** The tokenizer that model.json describes; `vocabulary` is the file that it names, if any. */
export function tokenizerOf(saved, vocabulary) {
  if (saved.kind === "bpe") return pairs(saved, vocabulary);
  return saved.kind === "bytes" ? bytes(saved) : characters(saved);
}

// How GPT-2 splits words before bytes are joined; white space is Unicode's.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const WIDTH = 2 ** 24; // more than there are ids
const KEPT = 20_000; // words whose ids are remembered

/** Byte-level BPE: of the pairs in a word, the one that comes first among the merges is joined, again and again. */
function pairs(saved, vocabulary) {
  const ranks = new Map(vocabulary.merges.map(([left, right, joined], rank) => [left * WIDTH + right, [rank, joined]]));
  const encoder = new TextEncoder();
  const known = new Map();
  const join = (word) => {
    const ids = Array.from(encoder.encode(word), (byte) => vocabulary.of_bytes[byte]);
    for (;;) {
      let best = Infinity, merged = 0;
      for (let n = 0; n + 1 < ids.length; n++) {
        const found = ranks.get(ids[n] * WIDTH + ids[n + 1]);
        if (found && found[0] < best) [best, merged] = found;
      }
      if (best === Infinity) return ids;
      const [left, right] = vocabulary.merges[best];
      for (let n = 0; n + 1 < ids.length; n++) {
        if (ids[n] === left && ids[n + 1] === right) ids.splice(n, 2, merged);
      }
    }
  };
  return {
    eot: saved.eot,
    encode(text) {
      const ids = [];
      for (const [word] of text.matchAll(WORDS)) {
        if (!known.has(word)) {
          if (known.size >= KEPT) known.clear();
          known.set(word, join(word));
        }
        for (const id of known.get(word)) ids.push(id);
      }
      return ids;
    },
    decode: (id) => Uint8Array.from(vocabulary.bytes[id], (byte) => byte.charCodeAt(0)),
  };
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
