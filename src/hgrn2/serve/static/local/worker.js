// The model in a thread of its own: reads prompts, makes tokens, keeps states. Answers messages {id, what, ...}.

import * as ort from "../runtime/ort.wasm.bundle.min.mjs";
import { compared, memoryOf } from "./matrices.js";
import { choose, logSumExp, mostProbable, randomOf } from "./sampling.js";
import { readState, writeState } from "./statefile.js";
import { TextStream, tokenizerOf } from "./tokenizer.js";

const SEGMENT = 256; // tokens of a prompt read at a time
const ALTERNATIVES = 5; // of each token, with their probabilities
const FLUSH_MS = 60; // tokens are told in groups: drawing each by itself costs more than making it
const LARGEST_FILE = 1 << 30;

let model; // model.json
let session;
let tokenizer;
let keepOne; // the tensor that asks for the last logits only
let stopped = new Set();
const states = new Map(); // id -> {id, name, tokens, bytes, parent, created, snapshot}
let last = null; // where the last text stands: {text, base, snapshot}

self.onmessage = async ({ data }) => {
  if (data.what === "stop") return void stopped.add(data.run);
  try {
    self.postMessage({ id: data.id, done: await DOES[data.what](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: error?.message ?? String(error) });
  }
};

const DOES = {
  open,
  write,
  list: () => [...states.values()].map(described).reverse(),
  save: ({ text, base, name }) => save(text, base, name),
  fork: ({ state, name }) => described(keep(found(state).snapshot, name, state)),
  remove: ({ state }) => void states.delete(found(state).id),
  download: ({ state }) => writeState(found(state).snapshot, model),
  load: async ({ bytes, name }) => described(keep(await readState(bytes, model), name, null)),
  memory: ({ state }) => ({ ...described(found(state)), layers: memoryOf(found(state).snapshot.state, model.layers) }),
  compare: ({ a, b }) => ({
    tokens: [found(a).tokens, found(b).tokens],
    layers: compared(found(a).snapshot.state, found(b).snapshot.state, model.layers),
  }),
};

/** Fetch everything and start the engine; tells how much has come. */
async function open({ id, base }) {
  const response = await fetch(new URL("model.json", base));
  if (!response.ok) throw new Error(`model.json: ${response.status} ${response.statusText}`);
  model = await response.json();
  if (model.format !== "hgrn2-web-1") throw new Error(`This page cannot read format ${model.format}.`);
  const names = ["runtime/ort-wasm-simd-threaded.wasm", model.graph, model.weights];
  const total = names.reduce((sum, name) => sum + model.files[name].bytes, 0);
  let come = 0;
  const tell = (bytes) => self.postMessage({ id, progress: (come += bytes) / total });
  const [wasm, graph, weights] = await Promise.all(names.map((name) => whole(new URL(name, base), model.files[name].bytes, tell)));
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(graph, {
    executionProviders: ["wasm"], externalData: [{ path: model.weights, data: weights }],
  });
  tokenizer = tokenizerOf(model.tokenizer, await vocabularyOf(base));
  keepOne = new ort.Tensor("int64", BigInt64Array.of(1n), [1]);
  return model;
}

async function vocabularyOf(base) {
  const { vocabulary } = model.tokenizer;
  if (!vocabulary) return null;
  const response = await fetch(new URL(vocabulary, base));
  if (!response.ok) throw new Error(`${vocabulary}: ${response.status} ${response.statusText}`);
  return response.json();
}

async function whole(url, size, tell) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: ${response.status} ${response.statusText}`);
  const bytes = new Uint8Array(size);
  let place = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (place + value.length > size) throw new Error(`${url.pathname} is longer than model.json says.`);
    bytes.set(value, place);
    place += value.length;
    tell(value.length);
  }
  if (place !== size) throw new Error(`${url.pathname} is shorter than model.json says.`);
  return bytes;
}

function zeros() {
  const sized = (shape) => new Float32Array(shape.reduce((a, b) => a * b, 1));
  return Object.fromEntries(Object.entries(model.states).map(([name, shape]) => [name, sized(shape)]));
}

/** Read ids after a state: logits of the last one, the state after it, ln f by layer and head. Changes no state. */
async function step(ids, state) {
  const feed = { tokens: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]), logits_to_keep: keepOne };
  for (const [name, shape] of Object.entries(model.states)) feed[`past.${name}`] = new ort.Tensor("float32", state[name], [1, ...shape]);
  const out = await session.run(feed);
  const after = Object.fromEntries(Object.keys(model.states).map((name) => [name, out[`present.${name}`].data]));
  return { logits: out.logits.data, state: after, gates: model.layers.map((_, layer) => out[`gates.${layer}`].data) };
}

/** The ids that are to be read, and the state before them. A text that begins with the last one goes on from there. */
function begin(text, base) {
  if (last && last.base === base && last.text && text.startsWith(last.text)) {
    const { snapshot } = last;
    const more = tokenizer.encode(text.slice(last.text.length));
    return { state: snapshot.state, ids: [snapshot.last, ...more], tokens: snapshot.tokens + more.length,
      pending: more.length ? new Uint8Array(0) : snapshot.pending, reused: snapshot.tokens };
  }
  const ids = tokenizer.encode(text);
  if (base) {
    const { snapshot } = found(base);
    return { state: snapshot.state, ids: [snapshot.last, ...ids], tokens: snapshot.tokens + ids.length,
      pending: ids.length ? new Uint8Array(0) : snapshot.pending, reused: snapshot.tokens };
  }
  if (!ids.length && tokenizer.eot === null) throw new Error("Write at least one character to continue.");
  return { state: zeros(), ids: ids.length ? ids : [tokenizer.eot], tokens: Math.max(1, ids.length), pending: new Uint8Array(0), reused: 0 };
}

/** All ids but the last are read; a prompt can be long, so that it can be stopped, too. */
async function readPrompt(start, run, tell) {
  let { state } = start;
  const end = start.ids.length - 1;
  for (let first = 0; first < end && !stopped.has(run); first += SEGMENT) {
    ({ state } = await step(start.ids.slice(first, Math.min(first + SEGMENT, end)), state));
    tell(Math.min(first + SEGMENT, end) / Math.max(1, end));
    await breath();
  }
  return { state, last: start.ids[end], tokens: start.tokens, pending: start.pending };
}

async function write({ id, run, text, base, options }) {
  const began = performance.now();
  const start = begin(text, base);
  let here = await readPrompt(start, run, (share) => self.postMessage({ id, event: { type: "prompt", share } }));
  if (stopped.has(run)) return { finished: "stop", tokens: 0 };
  self.postMessage({ id, event: { type: "read", tokens: start.tokens, reused: start.reused } });
  const random = randomOf(options.seed ?? Math.floor(Math.random() * 2 ** 31));
  const stream = new TextStream(here.pending);
  let shown = text, made = 0, finished = "length", group = [], flushed = 0, first = null; // the first token is told at once
  const flush = () => {
    if (group.length) self.postMessage({ id, event: { type: "tokens", tokens: group } });
    [group, flushed] = [[], performance.now()];
  };
  while (made < options.max_tokens) {
    const { logits, state, gates } = await step([here.last], here.state);
    const token = choose(logits, options, random);
    first ??= performance.now() - began;
    made += 1;
    here = { state, last: token, tokens: here.tokens + 1, pending: stream.pending };
    if (token === tokenizer.eot) {
      finished = "eot";
      break;
    }
    const piece = stream.push(tokenizer.decode(token));
    here.pending = stream.pending;
    shown += piece;
    group.push({ text: piece, ...certainty(logits, token), gates: gates.map((layer) => Array.from(layer, (x) => -1 / x)) });
    if (performance.now() - flushed > FLUSH_MS) {
      flush();
      await breath();
      if (stopped.has(run)) {
        finished = "stop";
        break;
      }
    }
  }
  flush();
  stopped.delete(run);
  last = { text: shown, base, snapshot: here };
  return { finished, tokens: made, first_ms: first, total_ms: performance.now() - began };
}

/** ln p of the chosen token, and the likeliest ones with theirs. */
function certainty(logits, token) {
  const whole = logSumExp(logits);
  const decoder = new TextDecoder();
  const top = mostProbable(logits, ALTERNATIVES).map((id) => ({ text: id === tokenizer.eot ? "" : decoder.decode(tokenizer.decode(id)), logprob: logits[id] - whole }));
  return { logprob: logits[token] - whole, top };
}

/** Let messages in. */
const breath = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => (port1.close(), resolve());
  port2.postMessage(null);
});

function found(id) {
  const state = states.get(id);
  if (!state) throw new Error("There is no such state.");
  return state;
}

async function save(text, base, name) {
  const exact = last && last.text === text && last.base === base;
  const snapshot = exact ? last.snapshot : await readPrompt(begin(text, base), null, () => {});
  return described(keep(snapshot, name, base ?? null));
}

/** Values are never written to, so that states may share them. */
function keep(snapshot, name, parent) {
  const random = crypto.getRandomValues(new Uint8Array(8));
  const id = `st-${Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  const bytes = Object.values(snapshot.state).reduce((sum, part) => sum + part.byteLength, 0);
  if (bytes > LARGEST_FILE) throw new Error("The state is too large to keep.");
  states.set(id, { id, name: name || id, tokens: snapshot.tokens, bytes, parent, created: Date.now() / 1000, snapshot });
  return states.get(id);
}

const described = ({ snapshot, ...state }) => state;
