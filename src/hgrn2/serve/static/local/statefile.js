// A state as a file, byte for byte what `hgrn2 generate --save-state` writes: safetensors with hashes and a checksum.

const FORMAT = "hgrn2-state-1";
const LARGEST_HEADER = 1 << 20;
const KEYS = ["model_hash", "tokenizer_hash", "tokens", "last", "dtype", "batch", "checksum"];

/** @returns {Promise<Uint8Array>} the file of a snapshot {state, last, tokens, pending} */
export async function writeState(snapshot, model) {
  const names = Object.keys(snapshot.state).sort();
  const metadata = {
    format: FORMAT, model_hash: model.model_hash, tokenizer_hash: model.tokenizer.sha256,
    tokens: String(snapshot.tokens), last: String(snapshot.last), dtype: model.dtype, batch: "1",
  };
  if (snapshot.pending.length) metadata.pending = hex(snapshot.pending);
  metadata.checksum = await checksum(snapshot.state, model, metadata);
  const header = { __metadata__: metadata };
  let offset = 0;
  for (const name of names) {
    const bytes = snapshot.state[name].byteLength;
    header[name] = { dtype: "F32", shape: [1, ...model.states[name]], data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const text = JSON.stringify(header);
  const head = new TextEncoder().encode(text + " ".repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8));
  const file = new Uint8Array(8 + head.length + offset);
  new DataView(file.buffer).setBigUint64(0, BigInt(head.length), true);
  file.set(head, 8);
  let place = 8 + head.length;
  for (const name of names) {
    const part = snapshot.state[name];
    file.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), place);
    place += part.byteLength;
  }
  return file;
}

/** The snapshot of a file's bytes; an Error of one line for one that is damaged or another model's. */
export async function readState(bytes, model) {
  const { header, data } = opened(bytes);
  const metadata = header.__metadata__ ?? {};
  if (metadata.format !== FORMAT) throw new Error("This is not a saved state.");
  const lacking = KEYS.filter((key) => typeof metadata[key] !== "string");
  if (lacking.length) throw new Error(`The state is damaged: it lacks ${lacking.join(", ")}.`);
  if (metadata.model_hash !== model.model_hash) throw new Error("This is a state of another model.");
  if (metadata.tokenizer_hash !== model.tokenizer.sha256) throw new Error("This is a state with another tokenizer.");
  if (metadata.dtype !== model.dtype || metadata.batch !== "1") throw new Error("This state has another form.");
  const [tokens, last] = [metadata.tokens, metadata.last].map((text) => (/^\d{1,15}$/.test(text) ? Number(text) : -1));
  if (tokens < 1 || last < 0 || last >= model.vocab_size) throw new Error("The state is damaged: its numbers are wrong.");
  const state = {};
  const names = Object.keys(model.states);
  const found = Object.keys(header).filter((name) => name !== "__metadata__");
  if (found.length !== names.length) throw new Error("The state is damaged: its tensors are not this model's.");
  for (const name of names) state[name] = tensor(header[name], data, model.states[name]);
  if ((await checksum(state, model, metadata)) !== metadata.checksum) throw new Error("The state is damaged: its checksum differs.");
  return { state, tokens, last, pending: unhex(metadata.pending ?? "") };
}

function opened(bytes) {
  const length = bytes.length >= 8 ? Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)) : Infinity;
  if (length > LARGEST_HEADER || 8 + length > bytes.length) throw new Error("This is not a safetensors file.");
  try {
    const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
    if (header === null || typeof header !== "object") throw new Error("no object");
    return { header, data: bytes.subarray(8 + length) };
  } catch {
    throw new Error("This is not a safetensors file.");
  }
}

function tensor(entry, data, shape) {
  const count = shape.reduce((a, b) => a * b, 1);
  const [begin, end] = entry?.data_offsets ?? [];
  const fits = entry?.dtype === "F32" && String(entry.shape) === String([1, ...shape]) && Number.isInteger(begin) &&
    end - begin === 4 * count && begin >= 0 && end <= data.length;
  if (!fits) throw new Error("The state is damaged: its tensors are not this model's.");
  return new Float32Array(data.slice(begin, end).buffer);
}

/** SHA-256 over the metadata, as Python writes a dict, and the tensors in the order of their names. */
async function checksum(state, model, metadata) {
  const stated = Object.keys(metadata).filter((key) => key !== "checksum").sort();
  const encoder = new TextEncoder();
  const parts = [encoder.encode(`{${stated.map((key) => `'${key}': '${metadata[key]}'`).join(", ")}}`)];
  for (const name of Object.keys(state).sort()) {
    parts.push(encoder.encode(`\0${name}\0torch.float32\0[${[1, ...model.states[name]].join(", ")}]\0`));
    parts.push(new Uint8Array(state[name].buffer, state[name].byteOffset, state[name].byteLength));
  }
  if (!globalThis.crypto?.subtle) throw new Error("State files need a page from https or from this machine.");
  const all = new Uint8Array(await new Blob(parts).arrayBuffer());
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", all)));
}

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

function unhex(text) {
  if (!/^([0-9a-f]{2}){0,3}$/.test(text)) throw new Error("The state is damaged: its last character is wrong.");
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}
