// The engine of `hgrn2 serve`: the model runs on the server, and this speaks its HTTP interface.
//
// An engine has
//   info    {name, about, example, chat, layers}
//   write   ({text | messages, base, options}, onEvent, signal) -> {finished, tokens}
//           events {type: "read", tokens, reused}, {type: "tokens", tokens: [{text, logprob, top, gates}]}
//   states  list, save, fork, remove, download, load, memory, compare

const ALTERNATIVES = 5;

let askForKey; // () => Promise of a key that the user gives

export async function open(tell, forKey) {
  askForKey = forKey;
  const { data } = await asked("v1/models");
  const model = data[0];
  const more = model.hgrn2 ?? {};
  return {
    info: { name: model.id, about: "on this server", example: more.example ?? "", chat: Boolean(more.chat), layers: more.layers ?? [] },
    write: (request, onEvent, signal) => write(model.id, request, onEvent, signal),
    states: {
      list: async () => (await asked("v1/states")).data,
      save: (text, base, name) => asked("v1/states", { prompt: text, ...(base && { state: base }), ...(name && { name }) }),
      fork: (state, name) => asked(`v1/states/${state}/fork`, name ? { name } : {}),
      remove: (state) => asked(`v1/states/${state}`, undefined, "DELETE"),
      download: async (state) => (await answered(`v1/states/${state}/file`)).blob(),
      load: async (file) => {
        const name = encodeURIComponent(file.name.replace(/\.safetensors$/, "").slice(0, 100));
        return (await answered(`v1/states/load?name=${name}`, {
          method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" },
        })).json();
      },
      memory: (state) => asked(`v1/states/${state}/memory`),
      compare: (a, b) => asked("v1/states/compare", { a, b }),
    },
  };
}

async function write(model, { text, messages, base, options }, onEvent, signal) {
  const { greedy, seed, ...rest } = options; // `gates` costs a server time: whoever does not look at them leaves them out
  const body = {
    model, ...rest, ...(greedy && { greedy: true }), ...(seed !== null && { seed }), ...(base && { state: base }),
    stream: true, stream_options: { include_usage: true },
    ...(messages ? { messages, logprobs: true, top_logprobs: ALTERNATIVES } : { prompt: text, logprobs: ALTERNATIVES }),
  };
  const response = await answered(messages ? "v1/chat/completions" : "v1/completions", { ...json(body), signal });
  const result = { finished: "stop", tokens: 0 };
  let pending = []; // memory lengths of tokens whose text is still to come
  try {
    for await (const chunk of chunks(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      pending.push(...(chunk.hgrn2?.gates ?? []));
      const tokens = (chunk.choices ?? []).flatMap(tokensOf);
      for (const token of tokens) token.gates = pending.shift()?.layers ?? null;
      if (tokens.length) onEvent({ type: "tokens", tokens });
      result.tokens += tokens.length;
      result.finished = chunk.choices?.[0]?.finish_reason ?? result.finished;
      if (chunk.usage) {
        const reused = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
        onEvent({ type: "read", tokens: chunk.usage.prompt_tokens, reused });
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  return result;
}

/** The tokens of a choice of a chunk, of either kind of completion; without logprobs its text is one token. */
function tokensOf(choice) {
  const text = choice.text ?? choice.delta?.content ?? "";
  const known = choice.logprobs;
  if (known?.content?.length) {
    return joined(known.content.map((one) => ({
      text: one.token, logprob: one.logprob, top: (one.top_logprobs ?? []).map((other) => ({ text: other.token, logprob: other.logprob })),
    })), text);
  }
  if (known?.tokens?.length) {
    return joined(known.tokens.map((token, n) => ({
      text: token, logprob: known.token_logprobs[n],
      top: Object.entries(known.top_logprobs?.[n] ?? {}).map(([other, logprob]) => ({ text: other, logprob })),
    })), text);
  }
  return text ? [{ text, logprob: null, top: [] }] : [];
}

/** Tokens whose texts make the chunk's text; where they do not (parts of a character), the last one has all of it. */
function joined(tokens, text) {
  if (tokens.map((token) => token.text).join("") === text) return tokens;
  return tokens.map((token, n) => ({ ...token, text: n === tokens.length - 1 ? text : "" }));
}

/** Objects of a stream of server-sent events. */
async function* chunks(body) {
  const decoder = new TextDecoder();
  let held = "";
  for (const reader = body.getReader(); ; ) {
    const { done, value } = await reader.read();
    held += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
    if (done) return;
  }
}

const json = (body) => ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

async function asked(path, body, method) {
  return (await answered(path, body === undefined ? { method: method ?? "GET" } : json(body))).json();
}

/** A response that is no error; asks for a key where the server wants one. */
async function answered(path, options = {}) {
  const key = sessionStorage.getItem("hgrn2-key");
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    sessionStorage.setItem("hgrn2-key", await askForKey(Boolean(key)));
    return answered(path, options);
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error?.message ?? `${response.status} ${response.statusText}`);
}
