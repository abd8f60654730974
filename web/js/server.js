/** What the server says of itself over HTTP. Addresses are relative, so a proxy may add a prefix. */

/** @param {string} path */
async function get(path) {
  const response = await fetch(new URL(path, document.baseURI), { cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

/** What the parameters are in a mode, and what the server offers. @param {string} [mode] */
export function getSettings(mode) {
  return get(mode ? `api/settings?mode=${mode}` : "api/settings");
}

/** How many users are being served. */
export async function getQueueSize() {
  return (await get("api/queue")).queue_size;
}

/** What runs on what, and how far its start has come. */
export function getStatus() {
  return get("api/status");
}
