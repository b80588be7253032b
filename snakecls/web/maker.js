// Names this browser window, so that "undo" takes back what was decided in it, and nothing else.
() => {
  const random = crypto.getRandomValues(new Uint8Array(12));
  const id = sessionStorage.getItem("snakecls-review") || Array.from(random, byte => byte.toString(16)).join("");
  sessionStorage.setItem("snakecls-review", id);
  return id;
}
