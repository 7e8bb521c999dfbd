// Keeps the files of an exported page, so that it opens without network. Another export has another version.
const NAME = "hgrn2-@VERSION@";
const SCOPE = new URL("./", self.location.href);

self.addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const cache = await caches.open(NAME);
    const response = await fetch(new URL("model.json", SCOPE), { cache: "no-cache" });
    const { files } = await response.clone().json();
    await cache.put(new URL("model.json", SCOPE), response);
    const kept = Object.keys(files).filter((name) => name !== "sw.js" && name !== "index.html");
    await cache.addAll([...kept, "index.html", "./"].map((name) => new URL(name, SCOPE)));
    await self.skipWaiting();
  })());
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const old = (await caches.keys()).filter((name) => name.startsWith("hgrn2-") && name !== NAME);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  })());
});

// The network first for the few small files that say what there is, so that a new export is seen at once.
self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || !event.request.url.startsWith(SCOPE.href)) return;
  event.respondWith((async () => {
    const kept = await (await caches.open(NAME)).match(event.request, { ignoreSearch: true });
    const small = /(\/|\.html|\.json|\.js|\.css)$/.test(new URL(event.request.url).pathname);
    if (kept && !small) return kept;
    try {
      return await fetch(event.request);
    } catch (error) {
      if (kept) return kept;
      throw error;
    }
  })());
});
