// The page: what is asked for, what is running, which states there are. An engine does the work (server.js, browser.js).

import { GatesView, HeldView, TextView, compareTable, element, memoryTable } from "./view.js";

const $ = (id) => document.getElementById(id);
const text = new TextView($("text"), $("token"));
const gates = new GatesView($("gates"));
const held = new HeldView($("held"));

let engine;
let running = null; // AbortController of the text that is being written
let base = null; // state that the text goes on from: {id, name, tokens}
let written = null; // {base, text}: all that is in the text view, prompt included
let messages = []; // of a conversation

const chatting = () => document.querySelector('input[name="mode"]:checked')?.value === "chat";

function say(message) {
  $("status").textContent = message;
}

function fail(error) {
  $("error").textContent = error?.message ?? String(error);
  $("error").hidden = false;
}

/** Do something that may fail: its message is shown. */
async function tried(work) {
  $("error").hidden = true;
  try {
    return await work();
  } catch (error) {
    fail(error);
    return undefined;
  }
}

function busy(on) {
  for (const id of ["go", "more", "save"]) $(id).disabled = on || (id !== "go" && (written === null || (id === "more" && chatting())));
  $("stop").disabled = !on;
  document.body.setAttribute("aria-busy", String(on));
}

function options() {
  const number = (id) => Number($(id).value);
  for (const field of document.querySelectorAll(".fields input[type=number]")) {
    if (field.checkValidity()) continue;
    field.closest("details").open = true;
    field.focus();
    throw new Error(`${field.parentElement.firstChild.textContent.trim()}: ${field.validationMessage || "it does not fit"}`);
  }
  return {
    max_tokens: number("max_tokens"), temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p"),
    greedy: $("greedy").checked, gates: $("lengths").checked, seed: $("seed").value === "" ? null : number("seed"),
  };
}

/** Write on from a prompt, or from a conversation. */
async function write(request, shown) {
  if (running) return;
  const chosen = options();
  running = new AbortController();
  busy(true);
  held.start();
  say("Reading …");
  $("speed").textContent = "";
  let made = "", count = 0, first = null, last = null;
  const onEvent = (event) => {
    if (event.type === "prompt" && event.share < 1) say(`Reading: ${Math.round(100 * event.share)}%`);
    if (event.type !== "tokens") return;
    if (count === 0) say("Writing …");
    text.add(event.tokens);
    for (const token of event.tokens) {
      made += token.text;
      if (token.gates && chosen.gates) {
        gates.show(token.gates);
        held.add(token.gates);
      }
    }
    count += event.tokens.length;
    last = performance.now();
    first ??= { at: last, count };
    if (last - first.at > 200) $("speed").textContent = `${Math.round((count - first.count) / (last - first.at) * 1000)} tokens/s`;
  };
  let result;
  try {
    result = await engine.write({ ...request, options: chosen }, onEvent, running.signal);
    say(`${{ stop: "Stopped", eot: "The text has ended" }[result.finished] ?? "Done"}: ${count.toLocaleString("en")} tokens.`);
  } catch (error) {
    fail(error);
    say("Nothing more was written.");
  } finally {
    running = null;
    written = shown === null ? written : { base: request.base, text: shown + made };
    if (request.messages) messages.push({ role: "assistant", content: made });
    busy(false);
  }
}

async function go() {
  const prompt = $("prompt").value;
  if (running) return;
  if (chatting()) {
    if (!prompt.trim()) return;
    if (!messages.length) text.start("");
    messages.push({ role: "user", content: prompt });
    text.prompt(prompt, "You");
    text.turn(engine.info.name);
    $("prompt").value = "";
    await tried(() => write({ messages: [...messages], base: null }, null));
    return;
  }
  text.start(base ? `… ${prompt}` : prompt);
  written = null;
  await tried(() => write({ text: prompt, base: base?.id ?? null }, prompt));
}

async function more() {
  if (running || !written) return;
  await tried(() => write({ text: written.text, base: written.base }, written.text));
}

function goOnFrom(state) {
  base = state;
  $("origin").hidden = !state;
  if (!state) return;
  $("origin").querySelector("span").textContent = `Goes on from ${state.name} (${state.tokens.toLocaleString("en")} tokens).`;
  $("prompt").value = "";
  $("prompt").focus();
}

async function showStates() {
  const states = await engine.states.list();
  $("no-states").hidden = states.length > 0;
  $("states").replaceChildren(...states.map(stateItem));
  $("compare").hidden = states.length < 2;
  for (const id of ["a", "b"]) {
    const before = $(id).value;
    $(id).replaceChildren(...states.map((state) => element("option", { value: state.id }, state.name)));
    if (states.some((state) => state.id === before)) $(id).value = before;
  }
  if ($("a").value === $("b").value && states.length > 1) $("b").value = states.find((state) => state.id !== $("a").value).id;
}

function stateItem(state) {
  const size = `${state.tokens.toLocaleString("en")} tokens, ${Math.max(1, Math.round(state.bytes / 1024)).toLocaleString("en")} KiB`;
  const button = (label, work) => element("button", {
    type: "button", "aria-label": `${label}: ${state.name}`, onclick: () => tried(async () => { await work(); }),
  }, label);
  return element("li", {},
    element("strong", {}, state.name), ` ${size}`,
    element("div", { class: "row" },
      button("Go on from", () => goOnFrom(state)),
      button("Fork", async () => { await engine.states.fork(state.id, `${state.name} (copy)`.slice(0, 100)); await showStates(); }),
      button("What it holds", async () => found(memoryTable(state, await engine.states.memory(state.id)))),
      button("File", () => download(state)),
      button("Delete", async () => { await engine.states.remove(state.id); if (base?.id === state.id) goOnFrom(null); await showStates(); }),
    ));
}

function found(table) {
  $("found").replaceChildren(table);
  $("found").focus({ preventScroll: true });
  $("found").scrollIntoView({ block: "nearest" });
}

async function download(state) {
  const address = URL.createObjectURL(await engine.states.download(state.id));
  element("a", { href: address, download: `${state.name.replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 60)}.safetensors` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function save() {
  if (!written) return;
  const ends = written.text.trimEnd().slice(-24).replaceAll("\n", " ");
  await engine.states.save(written.text, written.base, `… ${ends}`);
  await showStates();
  say("The state is saved.");
}

function connect() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); go(); });
  $("more").addEventListener("click", more);
  $("stop").addEventListener("click", () => running?.abort());
  $("save").addEventListener("click", () => tried(save));
  $("forget").addEventListener("click", () => goOnFrom(null));
  $("load").addEventListener("change", ({ target }) => tried(async () => {
    for (const file of target.files) await engine.states.load(file);
    await showStates();
    target.value = "";
  }));
  $("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    const [a, b] = [$("a"), $("b")];
    const name = (select) => select.selectedOptions[0].textContent;
    tried(async () => found(compareTable(name(a), name(b), await engine.states.compare(a.value, b.value))));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); go(); }
  });
  for (const mode of document.querySelectorAll('input[name="mode"]')) mode.addEventListener("change", changeMode);
}

function changeMode() {
  messages = [];
  written = null;
  goOnFrom(null);
  text.start("");
  $("prompt-label").textContent = chatting() ? "Your message" : "Text to continue";
  $("go").textContent = chatting() ? "Send" : "Continue this text";
  busy(false);
}

/** A key, once the user has given one. */
function askForKey(again) {
  say(again ? "That is no key of this server." : "This server asks for a key.");
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
  return new Promise((resolve) => {
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      $("key-form").hidden = true;
      resolve($("key").value);
    }, { once: true });
  });
}

async function main() {
  const kind = document.querySelector('meta[name="hgrn2-engine"]').content;
  const { open } = await import(kind === "browser" ? "./browser.js" : "./server.js");
  connect();
  engine = await open((share) => { $("loading").value = share; }, askForKey);
  const { info } = engine;
  document.title = `${info.name} · hgrn2`;
  $("name").textContent = info.name;
  $("about").textContent = info.about;
  $("prompt").value ||= info.example;
  if (info.layers.some((layer) => layer.kind === "attention")) $("states-about").textContent = "A saved state continues its text exactly.";
  $("modes").hidden = !info.chat;
  if (info.chat) {
    document.querySelector('input[value="chat"]').checked = true;
    changeMode();
  }
  await showStates();
  $("loading").hidden = true;
  say("Ready.");
  busy(false);
  document.body.dataset.ready = "true";
}

main().catch((error) => {
  fail(error);
  say("The model could not be loaded.");
  $("loading").hidden = true;
});
