// Renews the page in place while it is looked at, so that a reader keeps their place and selection.
// Without JavaScript the page renews itself as a whole.
const every = 5000;
let busy = false;
async function renew() {
  const selecting = String(getSelection()) !== "";
  if (busy || document.hidden || selecting || document.activeElement?.closest("form")) return;
  busy = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, signal: AbortSignal.timeout(every) });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    put("[data-live=headline]", fresh);
    put("[data-live=rest]", fresh);
    document.title = fresh.title;
    document.documentElement.classList.remove("stale");
  } catch {
    document.documentElement.classList.add("stale");
  } finally {
    busy = false;
  }
}
function put(where, fresh) {
  const [old, next] = [document.querySelector(where), fresh.querySelector(where)];
  if (!old || !next || old.innerHTML === next.innerHTML) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const scrolled = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  old.className = next.className;
  old.innerHTML = next.innerHTML;
  old.querySelectorAll(".scroll").forEach((box, at) => (box.scrollLeft = scrolled[at] ?? 0));
  if (focused) old.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}
setInterval(renew, every);
document.addEventListener("visibilitychange", renew);
