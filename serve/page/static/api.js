// What the page asks of its server. Whatever changes something carries a header that other sites cannot send.

const MARK = { "X-Promptmill-Page": "1" };

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function refusal(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // It was no JSON: the status has to do.
  }
  return new Refused(response.status, message);
}

async function ask(path, options = {}) {
  const response = await fetch(`api/${path}`, { credentials: "same-origin", cache: "no-store", ...options });
  if (!response.ok) throw await refusal(response);
  return response;
}

export function query(fields) {
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export async function get(path, fields = {}, signal) {
  return (await ask(path + query(fields), { signal })).json();
}

export async function post(path, body, headers = {}) {
  const json = body === undefined ? {} : { "Content-Type": "application/json" };
  const sent = body === undefined ? undefined : JSON.stringify(body);
  return (await ask(path, { method: "POST", body: sent, headers: { ...MARK, ...json, ...headers } })).json();
}

export async function logIn(key) {
  return post("session", undefined, { Authorization: `Bearer ${key}` });
}

export async function logOut() {
  return (await ask("session", { method: "DELETE", headers: MARK })).json();
}

// Uploads a file; `progress` is told the share that was sent.
export function upload(file, name, progress) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("expires_after[anchor]", "created_at");
    form.append("expires_after[seconds]", "86400");
    form.append("file", file, name);
    const request = new XMLHttpRequest();
    request.open("POST", "api/files");
    for (const [header, value] of Object.entries(MARK)) request.setRequestHeader(header, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && progress(event.loaded / event.total));
    request.addEventListener("error", () => reject(new Refused(0, "The connection broke off.")));
    request.addEventListener("load", () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // An error without JSON: the status has to do.
      }
      if (request.status === 200) resolve(answer);
      else reject(new Refused(request.status, answer.error?.message ?? `The server answered ${request.status}.`));
    });
    request.send(form);
  });
}

// Posts, and hands over each line of the answer, a JSON object, as it comes.
export async function follow(path, body, take, signal) {
  const response = await ask(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { ...MARK, "Content-Type": "application/json" },
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).forEach((line) => take(JSON.parse(line)));
    if (done) return;
  }
}
