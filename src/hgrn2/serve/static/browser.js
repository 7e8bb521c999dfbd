// The engine of an exported page: the model runs in this browser. The same surface as server.js.

/** @returns an engine: see server.js */
export async function open(tell) {
  const worker = new Worker(new URL("local/worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let count = 0;
  worker.onerror = (event) => {
    for (const { reject } of waiting.values()) reject(new Error(event.message || "The model's thread could not start."));
    waiting.clear();
  };
  worker.onmessage = ({ data }) => {
    const call = waiting.get(data.id);
    if (!call) return;
    if ("event" in data) return call.onEvent?.(data.event);
    if ("progress" in data) return tell(data.progress);
    waiting.delete(data.id);
    if ("error" in data) call.reject(new Error(data.error));
    else call.resolve(data.done);
  };
  const ask = (what, message = {}, onEvent) => new Promise((resolve, reject) => {
    const id = ++count;
    waiting.set(id, { resolve, reject, onEvent });
    worker.postMessage({ id, what, ...message });
  });
  const model = await ask("open", { base: document.baseURI });
  keepOffline();
  return {
    info: {
      name: model.name, example: model.example, chat: false,
      about: `${model.layers.length} layers, ${model.precision} weights, in this browser`,
      layers: model.layers,
    },
    async write({ text, base, options }, onEvent, signal) {
      const run = ++count;
      const stop = () => worker.postMessage({ what: "stop", run });
      signal.addEventListener("abort", stop, { once: true });
      if (signal.aborted) stop();
      try {
        return await ask("write", { run, text, base, options }, onEvent);
      } finally {
        signal.removeEventListener("abort", stop);
      }
    },
    states: {
      list: () => ask("list"),
      save: (text, base, name) => ask("save", { text, base, name }),
      fork: (state, name) => ask("fork", { state, name }),
      remove: (state) => ask("remove", { state }),
      download: async (state) => new Blob([await ask("download", { state })], { type: "application/octet-stream" }),
      load: async (file) => ask("load", { bytes: new Uint8Array(await file.arrayBuffer()), name: file.name.replace(/\.safetensors$/, "") }),
      memory: (state) => ask("memory", { state }),
      compare: (a, b) => ask("compare", { a, b }),
    },
  };
}

/** Once the page works, its files are kept for a browser without network. */
function keepOffline() {
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("sw.js").catch(() => {});
}
